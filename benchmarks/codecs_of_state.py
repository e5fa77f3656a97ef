"""Time the codec alone and in place; benchmarks subtract it to find the library's own share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from state import SIZE
from state import Order
from state import make_order

from catga_store import codec

__all__ = ["codec_calls", "stubbed_codec", "timed_codec"]


def codec_calls() -> dict[str, Callable[[], object]]:
    """Encode and decode the state, and do nothing else."""
    state = make_order()
    data = codec.encode_state(state, Order)
    assert abs(len(data) - SIZE) <= SIZE * 0.02, f"the state takes {len(data)} bytes"
    assert codec.decode_state(data, Order) == state
    return {
        "encode": partial(codec.encode_state, state, Order),
        "decode": partial(codec.decode_state, data, Order),
    }


@contextmanager
def timed_codec() -> Iterator[list[int]]:
    """Measure the codec where it is called: there it takes longer than alone, because caches are cold."""
    spent: list[int] = []
    clock = time.perf_counter_ns

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(data: object, state_type: object) -> Any:
            start = clock()
            result = function(data, state_type)
            spent.append(clock() - start)
            return result

        return call

    encode, decode = timed(codec.encode_state), timed(codec.decode_state)
    with mock.patch.multiple(codec, encode_state=encode, decode_state=decode):
        yield spent


@contextmanager
def stubbed_codec() -> Iterator[None]:
    """Replace the codec by functions that return constants: a state, and different bytes of the same size each time."""
    state = make_order()
    texts: list[bytes] = []
    for number in range(11):  # prime to the number of flows, so that none meets its own bytes again
        state.note = f"{number:02}{state.note[2:]}"
        texts.append(codec.encode_state(state, Order))

    others = itertools.cycle(texts)

    def encode(_state: object, _type: object) -> bytes:
        return next(others)

    def decode(_data: object, _type: object) -> Order:
        return state

    with mock.patch.multiple(codec, encode_state=encode, decode_state=decode):
        yield
