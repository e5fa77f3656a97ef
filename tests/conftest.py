"""What every test shares: the Hypothesis profiles and the event loops."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck
from hypothesis import settings

# No deadlines and no check for slowness: a busy machine must not decide whether a test passes.
settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,  # the same examples every time, so that a failure is of this change
    max_examples=50,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep",
    deadline=None,
    max_examples=2_000,
    print_blob=True,
    stateful_step_count=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))  # --hypothesis-profile wins


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run a test marked `anyio` once on every event loop."""
    backend: str = request.param
    return backend
