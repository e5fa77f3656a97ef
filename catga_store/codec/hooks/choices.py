"""The hooks of enums, flags, literals and unions.

A union chooses its member by the class of a value when it writes, and by the kind of a JSON value
when it reads. Members that look alike in JSON are written as `{"$type": tag, "value": …}`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from catga_store.codec.hooks.base import NONE
from catga_store.codec.hooks.base import OBJECT
from catga_store.codec.hooks.base import Dec
from catga_store.codec.hooks.base import Enc
from catga_store.codec.hooks.base import Hooks
from catga_store.codec.hooks.base import Kind
from catga_store.codec.hooks.base import Misfit
from catga_store.codec.hooks.base import Unkept
from catga_store.codec.hooks.base import describe
from catga_store.codec.hooks.base import kind_of
from catga_store.codec.hooks.leaves import LEAVES
from catga_store.codec.hooks.leaves import leaf
from catga_store.codec.hooks.typeforms import label_of
from catga_store.codec.hooks.typeforms import named_by_itself

__all__ = ["enum_hooks", "flag_hooks", "literal_hooks", "union_hooks"]

_PLAIN: frozenset[type] = frozenset((str, bool, NONE, int, float))
_TAG = "$type"
_VALUE = "value"
_TAGGED = {_TAG, _VALUE}


def enum_hooks(cls: type[enum.Enum]) -> Hooks:
    """Make the hooks of an enum: its values if all are str or int, else the names."""
    members = list(cls.__members__.values())
    by_value = all(member.value.__class__ in (str, int) for member in members)
    transport = {member: member.value if by_value else member.name for member in members}
    return _choice(cls.__qualname__, frozenset((cls,)), transport.items())


def flag_hooks(cls: type[enum.Flag]) -> Hooks:
    """Make the hooks of a flag: its integer."""
    whole = LEAVES[int].enc

    def to(value: enum.Flag) -> Any:
        return whole(value.value)

    def back(number: int) -> Any:
        value = cls(number)
        if value.__class__ is not cls or value.value != number:
            raise Misfit(cls.__qualname__, "an integer that is not one of its values")

        return value

    return leaf(cls, int, to, back)


def literal_hooks(declared: Any, choices: Iterable[tuple[Any, Any]]) -> Hooks:
    """Make the hooks of a literal: of its values, each with its JSON value."""
    choices = list(choices)
    classes = frozenset(value.__class__ for value, _ in choices)
    return _choice(label_of(declared), classes, choices)


def _choice(label: str, classes: frozenset[type], choices: Iterable[tuple[Any, Any]]) -> Hooks:
    """Make the hooks of finitely many values, each with its JSON value."""
    choices = list(choices)
    encs = {(value.__class__, value): transport for value, transport in choices}
    decs = {(transport.__class__, transport): value for value, transport in choices}
    if len(encs) != len(decs):
        raise Unkept(label, "two of its values have the same JSON form")

    def enc(value: Any) -> Any:
        try:
            return encs[value.__class__, value]
        except (KeyError, TypeError):
            raise Misfit(label, describe(value)) from None

    def dec(value: Any, _: Any) -> Any:
        try:
            return decs[value.__class__, value]
        except (KeyError, TypeError):
            raise Misfit(label, f"{kind_of(value)} that is not one of its values") from None

    return Hooks(label, classes, frozenset(kind for kind, _ in decs), enc, dec, distinct=True)


# --- unions ---------------------------------------------------------------------------------------


def union_hooks(declared: Any, members: Sequence[Hooks]) -> Hooks:
    """Make the hooks of a union; with one member, it is that."""
    if len(members) == 1:
        return members[0]

    for hooks in members:
        if not hooks.classes:  # plain JSON data: only what is plain JSON itself may stand beside it
            if all(other.classes <= _PLAIN for other in members):
                return hooks

            raise Unkept(
                declared, "values of its other members cannot be distinguished from plain JSON data"
            )

    by_class = _by_class(declared, members)
    label = " | ".join(hooks.label for hooks in members)
    kinds = [kind for hooks in members for kind in hooks.kinds]
    shared = {kind for kind in kinds if kinds.count(kind) > 1}
    if shared:
        return _tagged(declared, label, members, shared | {dict})

    encs = {cls: hooks.enc for cls, hooks in by_class.items()}
    decs = {kind: hooks.dec for hooks in members for kind in hooks.kinds}

    def dec(value: Any, _: Any) -> Any:
        inner = decs.get(value.__class__)
        if inner is None:
            raise Misfit(label, kind_of(value))

        return inner(value, None)

    return Hooks(
        label,
        frozenset(encs),
        frozenset(kinds),
        _by_class_enc(label, encs),
        dec,
        distinct=all(hooks.distinct for hooks in members),
    )


def _by_class(declared: Any, members: Iterable[Hooks]) -> dict[type, Hooks]:
    """Find the member that takes the values of a class; there may be only one."""
    found: dict[type, Hooks] = {}
    for hooks in members:
        for cls in hooks.classes:
            if cls in found:
                why = f"values of {found[cls].label} and {hooks.label} cannot be distinguished"
                raise Unkept(declared, why)

            found[cls] = hooks

    return found


def _by_class_enc(label: str, encs: Mapping[type, Enc]) -> Enc:
    def enc(value: Any) -> Any:
        inner = encs.get(value.__class__)
        if inner is None:
            raise Misfit(label, describe(value))

        return inner(value)

    return enc


def _tagged(declared: Any, label: str, members: Sequence[Hooks], tagged: set[Kind]) -> Hooks:
    """Make the hooks of a union whose members look alike in JSON.

    Members with a kind of JSON value in `tagged` are written with a tag, whatever the order of the
    union: `typing` takes `A | B` and `B | A` for the same.
    """
    encs: dict[type, Enc] = {}
    by_tag: dict[str, Hooks] = {}
    bare: dict[Kind, Dec] = {}
    for hooks in members:
        if not hooks.kinds & tagged:
            encs |= dict.fromkeys(hooks.classes, hooks.enc)
            bare |= dict.fromkeys(hooks.kinds, hooks.dec)
            continue

        tag = _tag_of(hooks)
        if tag in by_tag:
            raise Unkept(declared, f"two of its members are named {tag}")

        by_tag[tag] = hooks
        encs |= dict.fromkeys(hooks.classes, _tagging(tag, hooks.enc))

    def dec(value: Any, _: Any) -> Any:
        if value.__class__ is dict and value.keys() == _TAGGED:
            named = value[_TAG]
            hooks = by_tag.get(named) if named.__class__ is str else None
            if hooks is None:
                raise Misfit(label, f"an object whose tag is not one of {list(by_tag)}")

            return hooks.dec(value[_VALUE], None)

        inner = bare.get(value.__class__)
        if inner is not None:
            return inner(value, None)

        return _only_fit(value, label, by_tag.values())

    return Hooks(
        label,
        frozenset(encs),
        OBJECT | bare.keys(),
        _by_class_enc(label, encs),
        dec,
        distinct=all(hooks.distinct for hooks in members),
    )


def _tag_of(hooks: Hooks) -> str:
    """Name a member of a union: its `__flow_type__` name, or the name of its class."""
    if len(hooks.classes) > 1:
        return "Literal"

    (cls,) = hooks.classes
    named = named_by_itself(cls)
    return str(named[0]) if named else cls.__name__


def _tagging(tag: str, inner: Enc) -> Enc:
    def enc(value: Any) -> Any:
        return {_TAG: tag, _VALUE: inner(value)}

    return enc


def _only_fit(value: Any, label: str, members: Iterable[Hooks]) -> Any:
    """Read a value written before its type became a union, if exactly one member takes it."""
    fits: list[Any] = []
    for hooks in members:
        try:
            fits.append(hooks.dec(value, None))
        except RecursionError:
            raise
        except Exception:  # noqa: S112  whatever a member raises, it does not take the value
            continue

    if len(fits) != 1:
        raise Misfit(
            label,
            f"{kind_of(value)} without a tag, which matches {len(fits)} members instead of one",
        )

    return fits[0]
