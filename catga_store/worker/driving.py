"""Running the generators of a worker on both APIs; see `steps`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from typing import Any
from typing import TypeVar

__all__ = ["drive", "drive_async"]

R = TypeVar("R")


def drive(steps: Generator[Any, Any, R]) -> R:
    """Run a generator whose operations have blocked already: each result is sent back."""
    result: Any = None
    try:
        while True:
            result = steps.send(result)
    except StopIteration as end:
        returned: R = end.value
        return returned


async def drive_async(steps: Generator[Any, Any, R]) -> R:
    """Run a generator whose operations are to be awaited."""
    step: Callable[[Any], Any] = steps.send
    argument: Any = None
    try:
        while True:
            asked = step(argument)
            try:
                argument = await asked if hasattr(asked, "__await__") else asked
                step = steps.send
            except BaseException as error:  # noqa: BLE001  the generator decides
                argument = error
                step = steps.throw
    except StopIteration as end:
        returned: R = end.value
        return returned
