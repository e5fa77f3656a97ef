"""State types that change: a name that outlives the module, a version, upcasters between versions.

What is stored is a name and a version beside JSON data. A program that knows a later version lifts
older data step by step when it reads it: each upcaster takes the data of one version and answers
that of the next, and only the last answer is made into objects. Nothing is rewritten until the
flow is.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from typing import TypeAlias
from typing import TypeVar

from catga_store import codec
from catga_store.errors import EncodingError
from catga_store.errors import StateTypeError
from catga_store.errors import UsageError

__all__ = ["Upcaster", "flow_state", "lift"]

C = TypeVar("C")

Upcaster: TypeAlias = Callable[[Any], Any]
"""Takes the JSON data of one version, which it may change, and answers that of the next."""

_UPCASTERS = "__flow_upcasters__"


def flow_state(
    name: str, *, version: int = 1, upcasters: Mapping[int, Upcaster] | None = None
) -> Callable[[type[C]], type[C]]:
    """Name a state type, and say how data of its older versions is read.

    The name is stored instead of the class's `__qualname__`, so the class may be moved and renamed;
    `claim_due` and `query_flows` find flows by it. Stands above the decorator that makes the class
    an attrs class or a dataclass; subclasses have names of their own.

    `upcasters` maps a version to the function that makes its data that of the next: JSON data in,
    which it may change in place, and JSON data out. They are called in order at every read of an
    older flow, so they must answer the same each time; the flow is written as it is now when it
    next changes. The keys run up to `version - 1` without a gap (else `UsageError`); data older
    than the first is refused. A flow that no upcaster reaches, an upcaster that fails and a version
    from the future are each a `StateTypeError` that says so; `get` without a type reads the stored
    data as it is. A type without a name is version 1 of its `__qualname__`: give it that name to
    go on from there.

    A new field with a default needs no version: what is missing takes the default. Only the
    outermost type of a state has a stored version; its upcasters lift what is inside it, too.

    >>> import attrs
    >>> import catga_store as cs
    >>> @cs.flow_state("order")
    ... @attrs.define
    ... class Order:
    ...     euros: float
    >>> def euros_to_cents(data):
    ...     data["cents"] = round(data.pop("euros") * 100)
    ...     return data
    >>> @cs.flow_state("order", version=2, upcasters={1: euros_to_cents})
    ... @attrs.define
    ... class LaterOrder:
    ...     cents: int
    >>> store = cs.MemoryStore()
    >>> store.create(cs.FlowSnapshot("order-1", state=Order(19.9)))
    >>> store.get_one("order-1", LaterOrder).state
    LaterOrder(cents=1990)
    >>> store.get_one("order-1").state
    {'euros': 19.9}
    """
    _check_name(name)
    if type(version) is not int or version < 1:
        message = (
            f"the version of state type {name!r} must be an int of at least 1, not {version!r}"
        )
        raise UsageError(message)

    steps = MappingProxyType(dict(upcasters or {}))
    _check_steps(name, version, steps)

    def decorate(cls: type[C]) -> type[C]:
        if not codec.is_state_type(cls):
            message = (
                f"{cls!r} cannot be the state type {name!r}: expected an attrs class, a dataclass"
                " or a TypedDict; put @flow_state above the decorator that makes it one"
            )
            raise UsageError(message)

        named: Any = cls
        named.__flow_type__ = name, version
        setattr(named, _UPCASTERS, steps)
        return cls

    return decorate


def lift(data: Any, state_type: Any, stored: int) -> Any:
    """Make data of version `stored` that of the type as it is today; changes and answers it.

    `StateTypeError` if a step is missing, fails, or answers what is no JSON data.
    """
    cls = codec.class_of(state_type)
    name, version = codec.type_name(cls), codec.type_version(cls)
    steps: Mapping[int, Upcaster] = cls.__dict__.get(_UPCASTERS, {})  # never a base's

    for number in range(stored, version):
        step = steps.get(number)
        if step is None:
            message = (
                f"no upcaster leads from version {number} of {name!r} to {number + 1}, and this"
                f" program reads version {version}; name one in @flow_state(…, upcasters=…)"
            )
            raise _refusal(message, name, version, stored)

        data = _stepped(step, data, name, version, number)

    return data


def _stepped(step: Upcaster, data: Any, name: str, version: int, number: int) -> Any:
    did = f"the upcaster of {name!r} from version {number} to {number + 1}"
    try:
        lifted: Any = step(data)
    except RecursionError:
        raise  # the caller's stack is nearly full: nobody knows whether the data fits
    except Exception as error:
        message = f"{did} failed with {type(error).__name__}: {error}"
        raise _refusal(message, name, version, number) from error

    if lifted.__class__ is not dict:
        found = "None: does it return its data?" if lifted is None else repr(lifted.__class__)
        message = f"{did} must answer a dict of JSON data, not {found}"
        raise _refusal(message, name, version, number)

    try:
        codec.check_json_data(lifted)
    except EncodingError as error:
        message = f"{did} must answer JSON data: {error}"
        raise _refusal(message, name, version, number) from error

    return lifted


def _refusal(message: str, name: str, version: int, stored: int) -> StateTypeError:
    return StateTypeError(
        message, expected=name, actual=name, expected_version=version, actual_version=stored
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        message = f"the name of a state type must be text that is not empty, not {name!r}"
        raise UsageError(message)

    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"{name!r} cannot be the name of a state type: {error}"
        raise UsageError(message) from error


def _check_steps(name: str, version: int, steps: Mapping[int, Upcaster]) -> None:
    for number, step in steps.items():
        if type(number) is not int or not 1 <= number < version:
            message = (
                f"upcasters of state type {name!r} go from a version that is an int from 1 to"
                f" {version - 1} (its version is {version}), not from {number!r}"
            )
            raise UsageError(message)

        given: object = step
        if not callable(given):
            message = (
                f"the upcaster of {name!r} from version {number} must be a function, not {given!r}"
            )
            raise UsageError(message)

    gap = set(range(min(steps, default=version), version)) - steps.keys()
    if gap:
        message = f"state type {name!r} has no upcaster from version {min(gap)}; name it, too"
        raise UsageError(message)
