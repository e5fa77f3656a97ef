"""What the library draws at random is not drawn from the generator that the program seeds."""

from __future__ import annotations

import random

from forks import together

from catga_store.core.claim_plans import choose
from catga_store.protocol.chance import choices
from catga_store.protocol.keys import flow_key
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head

DUE = [Found(flow_key(str(number)), Head(1, 0, 0, 0)) for number in range(100)]


def chosen() -> list[str]:
    """Return which of what is due a claim would take."""
    return [found.key.id for found in choose(DUE, 10)]


def test_a_claim_draws_nothing_from_the_generator_of_the_program() -> None:
    """Two workers that seed `random` alike do not claim the same flows, and get the numbers they expect."""
    random.seed(1)
    before = random.getstate()
    first = chosen()
    random.seed(1)

    assert chosen() != first
    assert random.getstate() == before


def test_a_seeded_test_claims_the_same_flows_again() -> None:
    """What decides about claims can be seeded by itself."""
    state = choices.getstate()
    try:
        choices.seed(1)
        first = chosen()
        choices.seed(1)
        assert chosen() == first
    finally:
        choices.setstate(state)


def test_child_processes_do_not_draw_the_same() -> None:
    """A fork copies the generator of the parent; it is seeded anew in each child."""
    one, other = together(chosen, [], [])
    assert one != other
