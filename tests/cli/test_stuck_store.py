"""A store with 30 flows that are stuck in ten ways: one command names them, few others mend them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import catga_store as cs
from tests.support import stuck
from tests.support.in_process import run_here

MENDING = (
    "release --finding lease_expired --yes",
    "retry --finding attempts_high --yes",
    "wake --finding wait_gone --finding never_due --finding no_deadline --finding children_ended --yes",
    "purge --finding parent_gone --yes",
)
CANNOT_BE_MENDED = {"unreadable/0", "unreadable/1", "future_version/0"}
LONG = 4970


def stores() -> list[object]:
    """Small on SQLite; as large as the contract says, and on servers, in the nightly run.

    A store in memory cannot be reached by a command.
    """
    return [
        pytest.param("sqlite", 200, id="sqlite"),
        *(
            pytest.param(kind, LONG, marks=pytest.mark.nightly, id=f"{kind}-5000")
            for kind in ("sqlite", "redis-8.2", "nats")
        ),
    ]


def revisions(store: cs.Store) -> dict[str, str]:
    """The revision of every flow."""
    return {flow.flow_id: flow.revision for flow in store.iter_flows()}


@pytest.mark.parametrize(("kind", "others"), stores())
def test_stuck_flows_are_named_by_one_command_and_mended_by_four(
    kind: str, others: int, url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 of 30 are mended, and no other flow is touched."""
    url = url_of(kind)
    with cs.open_store(url) as store:
        every = stuck.seed(url, others)
        before = revisions(store)
        named = run_here(monkeypatch, url, "stuck --json")
        assert named.code == 1
        found = {one["flow_id"]: one["findings"][0]["code"] for one in named.json["stuck"]}
        assert found.keys() == every
        assert all(
            code == ("lease_expired" if way == "poison" else way)
            for flow_id, code in found.items()
            for way in [flow_id.partition("/")[0]]
        )
        assert run_here(monkeypatch, url, "stuck").err == "30 flows stuck\n"
        for command in MENDING:
            assert run_here(monkeypatch, url, command).code == 0, command

        left = run_here(monkeypatch, url, "stuck --ids")
        assert set(left.out.split()) == CANNOT_BE_MENDED
        after = revisions(store)
        touched = {flow_id for flow_id, revision in after.items() if before[flow_id] != revision}
        mended = {one for one in every - CANNOT_BE_MENDED if not one.startswith("parent_gone")}
        assert touched == mended
        assert after.keys() == before.keys()
        claimed = store.claim_due(cs.RAW, limit=100)
        assert {flow.flow_id for flow in claimed} == mended
