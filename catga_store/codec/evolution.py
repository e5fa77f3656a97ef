"""State types that change: a name that outlives the module, a version, upcasters between versions.

A name and a version are stored beside the JSON data of a state. A program that knows a later version
lifts older data step by step when it reads it: each upcaster takes the data of one version and
returns that of the next, and the last result is made into objects. What is stored stays as it is
until the flow is written again.
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
from catga_store.protocol.masking import shown

__all__ = ["Upcaster", "flow_state", "lift"]

C = TypeVar("C")

Upcaster: TypeAlias = Callable[[Any], Any]
"""Takes the JSON data of one version, which it may change, and returns that of the next."""

_UPCASTERS = "__flow_upcasters__"


def flow_state(
    name: str, *, version: int = 1, upcasters: Mapping[int, Upcaster] | None = None
) -> Callable[[type[C]], type[C]]:
    """Name a state type, and define how data of its older versions is read.

    The name is stored instead of the class's `__qualname__`, so you can move and rename the class;
    `claim_due` and `query_flows` find flows by this name. Put this decorator above the decorator that makes
    the class an attrs class or a dataclass. A subclass does not inherit the name.

    `upcasters` maps a version to a function that receives JSON data of that version, which it may change in
    place, and returns JSON data of the next version. Upcasters are called in order whenever an older flow is
    read, so they must always return the same result; the flow is stored in the new form when it is next
    written. The keys must run up to `version - 1` without a gap; otherwise, the call raises `UsageError`.

    Reading a state raises `StateTypeError` if its data is older than the first upcaster, if an upcaster
    fails, or if its data has a later version. `get` without a type returns the stored data as it is. A type
    without a name is version 1 of its `__qualname__`: to start with version 2, use the `__qualname__` as the
    name.

    A new field with a default does not need a new version: where the field is missing, it gets the default.
    Only the outermost type of a state has a stored version; its upcasters also convert the data inside it.

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
        found = shown(version)
        message = f"state type {name!r}: expected an int of at least 1 as its version, got {found}"
        raise UsageError(message)

    steps = MappingProxyType(dict(upcasters or {}))
    _check_steps(name, version, steps)

    def decorate(cls: type[C]) -> type[C]:
        if not codec.is_state_type(cls):
            message = (
                f"{cls!r} cannot be used as state type {name!r}: expected an attrs class, a "
                "dataclass or a TypedDict; put @flow_state above @define or @dataclass"
            )
            raise UsageError(message)

        named: Any = cls
        named.__flow_type__ = name, version
        setattr(named, _UPCASTERS, steps)
        return cls

    return decorate


def lift(data: Any, state_type: Any, stored: int) -> Any:
    """Lift data of version `stored` to the version of the type; changes the data and returns it.

    `StateTypeError` if an upcaster is missing, fails, or returns anything but JSON data.
    """
    cls = codec.class_of(state_type)
    name, version = codec.type_name(cls), codec.type_version(cls)
    steps: Mapping[int, Upcaster] = cls.__dict__.get(_UPCASTERS, {})  # never a base's

    for number in range(stored, version):
        step = steps.get(number)
        if step is None:
            message = (
                f"state type {name!r} has no upcaster from version {number} to {number + 1}, "
                f"so a state stored as version {stored} cannot be read as version {version}; "
                "add the upcaster to @flow_state(…, upcasters=…)"
            )
            raise _refusal(message, name, version, stored)

        data = _stepped(step, data, name, version, number)

    return data


def _stepped(step: Upcaster, data: Any, name: str, version: int, number: int) -> Any:
    which = f"the upcaster of {name!r} from version {number} to {number + 1}"
    try:
        lifted: Any = step(data)
    except RecursionError:
        raise  # the caller's stack is nearly full: that says nothing about the data
    except Exception as error:
        message = f"{which} failed with {type(error).__name__}: {error}"
        raise _refusal(message, name, version, number) from error

    if lifted.__class__ is not dict:
        found = "None: is a return statement missing?" if lifted is None else repr(lifted.__class__)
        message = f"{which} must return a dict of JSON data, not {found}"
        raise _refusal(message, name, version, number)

    try:
        codec.check_json_data(lifted)
    except EncodingError as error:
        message = f"{which} must return JSON data: {error}"
        raise _refusal(message, name, version, number) from error

    return lifted


def _refusal(message: str, name: str, version: int, stored: int) -> StateTypeError:
    return StateTypeError(
        message, expected=name, actual=name, expected_version=version, actual_version=stored
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        message = f"state type name: expected a non-empty str, got {shown(name)}"
        raise UsageError(message)

    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"invalid state type name {name!r}: {error}"
        raise UsageError(message) from error


def _check_steps(name: str, version: int, steps: Mapping[int, Upcaster]) -> None:
    for number, step in steps.items():
        if type(number) is not int or not 1 <= number < version:
            message = (
                (
                    f"state type {name!r}: expected ints of at least 1 and less than its version, "
                    f"{version}, as upcaster keys, got {shown(number)}"
                )
                if version > 1
                else f"state type {name!r} is at version 1, so it cannot have upcasters; raise its"
                " version or remove the upcasters"
            )
            raise UsageError(message)

        given: object = step
        if not callable(given):
            message = (
                f"upcaster of {name!r} from version {number}: expected a function, got "
                f"{shown(given)}"
            )
            raise UsageError(message)

    gap = set(range(min(steps, default=version), version)) - steps.keys()
    if gap:
        message = (
            f"state type {name!r} has no upcaster from version {min(gap)}; add one to "
            "@flow_state(…, upcasters=…)"
        )
        raise UsageError(message)
