"""Random numbers of the library, which are not those of the program that uses it.

The functions of `random` share one generator. A program that seeds it, for example in each of its workers,
would make them all claim the same flows and pause for the same times; and the library, whose threads draw
numbers at any moment, would change the numbers that the program gets.
"""

import os
import random

choices = random.Random()  # noqa: S311  nothing secret is drawn from it
"""Decides which flows are claimed. A test that seeds it can repeat a run."""

if hasattr(os, "register_at_fork"):
    # A child process would draw the numbers of its parent.
    os.register_at_fork(after_in_child=choices.seed)

_system = random.SystemRandom()

uniform = _system.uniform
"""Return a number between these two.

It comes from the operating system, so threads can draw from it without changing what `choices` draws next.
"""

pick = _system.choice
"""Return one of these."""


def jittered(longest: float) -> float:
    """Return half of a pause to all of it, so that those who failed together do not try again together."""
    return longest * uniform(0.5, 1)
