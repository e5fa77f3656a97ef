"""The codecs of one store, applied in order at writing and in reverse at reading."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple
from typing import cast

from catga_store.codec.bodies.base import BodyCodec
from catga_store.codec.bodies.base import BodyPlace
from catga_store.codec.bodies.frames import ConcealedBody
from catga_store.codec.bodies.frames import Packed
from catga_store.codec.bodies.frames import framed
from catga_store.codec.bodies.frames import header_of
from catga_store.codec.bodies.frames import parse
from catga_store.errors import CatgaStoreError
from catga_store.errors import CodecMissingError
from catga_store.errors import CorruptRecordError
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

__all__ = ["Chain"]

_NAME = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_LABEL = re.compile(r"[!-~]{0,64}", re.ASCII)
_MOST = 8
_MOST_PLANS, _LONGEST_HEADER = 256, 1024
"""A bound on memory: a store has few headers, but anyone who can write to it can make more."""


class _Step(NamedTuple):
    """One codec that is undone."""

    codec: BodyCodec
    label: str
    inner: tuple[str, ...]
    """Those that were applied before, by name."""
    bound: tuple[tuple[str, str], ...] | None
    """The trail of what this codec bound to its place, if that need not be made again in another place."""


class _Plan(NamedTuple):
    """How bodies with one header are read: all that does not depend on their data."""

    start: int
    """Where the data begin."""
    kind: int
    steps: list[_Step]
    """The codecs, the last first, as far as this store has them."""
    missing: tuple[str, str] | None
    """Name and label of the codec after these that it does not have."""


class Chain:
    """Up to eight codecs with different names."""

    def __init__(self, codecs: Iterable[BodyCodec]) -> None:
        self.codecs = _checked(codecs)
        self._by_name = {codec.name: codec for codec in self.codecs}
        self._required = [codec.name for codec in self.codecs if codec.required]
        bound = [place for place, codec in enumerate(self.codecs) if codec.binds]
        self._free = {codec.name for codec in self.codecs[: bound[0] if bound else 0]}
        """Those that are applied before the first that binds."""
        self.binds = any(codec.binds for codec in self.codecs)
        self.conceals = any(codec.conceals for codec in self.codecs)
        self.hides_error = any(codec.hides_error for codec in self.codecs)
        self._plans: dict[bytes, _Plan] = {}

    def __repr__(self) -> str:
        return repr(list(self.codecs))

    def encode(self, data: bytes, place: BodyPlace, kind: int, *, keeps: bool = False) -> bytes:
        """Return what is stored of a body; `StoreConfigError` if a codec cannot encode it.

        With `keeps` it is the one that was read, in another place: only codecs that bind do their work again.
        Without that a claim of 32 KiB would cost half as much again for a compression that makes the same bytes.
        """
        trail: list[str] = []
        codecs = self.codecs
        packed = data.packed if keeps and type(data) is ConcealedBody else None
        # A flow may be given back through another store, which has other codecs.
        if packed is not None and self._free.issuperset([name for name, _ in packed.trail]):
            data, codecs = packed.data, codecs[len(self._free) :]
            for name, label in packed.trail:
                trail.append(f"{name}={label}" if label else name)
                place = place.after(name)

        for codec in codecs:
            encoded = _encoded(codec, data, place)
            if encoded is not None:
                label, data = encoded
                trail.append(f"{codec.name}={label}" if label else codec.name)
                place = place.after(codec.name)

        return framed(kind, ",".join(trail), data)

    def decode(self, stored: bytes, place: Callable[[int], BodyPlace]) -> bytes:
        """Return the body of which this is stored; `CorruptRecordError` if it cannot be decoded.

        `place` returns the place of a body that was written in this way: the kind of its frame.
        """
        header = header_of(stored)
        plan = self._plans.get(header)
        if plan is None:
            plan = self._plan(header, stored)

        start, kind, steps, missing = plan
        data = stored[start:]
        packed: Packed | None = None
        if steps:
            at = place(kind)
            codec: BodyCodec | None = None
            try:
                for codec, label, inner, bound in steps:
                    data = codec.decode(label, data, at.within(inner) if inner else at)
                    if bound is not None:
                        packed = Packed(bound, data)
            except CorruptRecordError:
                raise
            except Exception as error:
                # Its text may have something of the body in it.
                name = "" if codec is None else codec.name
                message = (
                    f"the codec {name!r} raised {type(error).__name__} while decoding the body"
                )
                raise CorruptRecordError(message, key=None) from None

        if missing is not None:
            name, label = missing
            message = (
                f"the body was encoded with the codec {name!r}, which is not among this store's "
                "codecs; open the store with this codec as well"
            )
            raise CodecMissingError(message, key=None, codec=name, label=label)

        if not self.conceals:
            return bytes(data)

        body = ConcealedBody(data)
        body.packed = packed
        return body

    def _plan(self, header: bytes, stored: bytes) -> _Plan:
        """Make the plan for a header, and keep it; `CorruptRecordError` if nothing with it is read."""
        try:
            frame = parse(stored)
        except ValueError as error:
            raise CorruptRecordError(str(error), key=None) from None

        trail = () if frame is None else frame.trail
        if self._required:
            self._check_required(trail)

        steps: list[_Step] = []
        missing: tuple[str, str] | None = None
        for at in range(len(trail) - 1, -1, -1):
            name, label = trail[at]
            codec = self._by_name.get(name)
            if codec is None:
                missing = name, label
                break

            inner = tuple([name for name, _ in trail[:at]])
            bound = trail[:at] if codec.binds and self._free.issuperset(inner) else None
            steps.append(_Step(codec, label, inner, bound))

        plan = _Plan(len(header), 0 if frame is None else frame.kind, steps, missing)
        if len(header) <= _LONGEST_HEADER:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()

            self._plans[header] = plan

        return plan

    def is_current(self, stored: bytes, place: Callable[[int], BodyPlace]) -> bool:
        """Return whether a body would be stored with the same codecs, keys included, if it were written now.

        Of a codec that may leave a body as it is, only its presence tells.
        """
        try:
            frame = parse(stored)
        except ValueError:
            return False

        if frame is None:
            return False

        names = [name for name, _ in frame.trail]
        wanted = [codec.name for codec in self.codecs if codec.required or codec.binds]
        if not set(wanted) <= set(names) <= self._by_name.keys():
            return False

        at = place(frame.kind)
        return all(self._by_name[name].is_current(label, at) for name, label in frame.trail)

    def _check_required(self, trail: Iterable[tuple[str, str]]) -> None:
        names = [name for name, _ in trail]
        missing = [name for name in self._required if name not in names]
        if missing:
            message = (
                f"the body was stored without the codec {missing[0]!r}, which this store "
                "requires; if the body was written before the store used this codec, set "
                "accept_plain=True on the codec, then rewrap the store"
            )
            raise CorruptRecordError(message, key=None)


def _encoded(codec: BodyCodec, data: bytes, place: BodyPlace) -> tuple[str, bytes] | None:
    try:
        encoded: object = codec.encode(data, place)
    except CatgaStoreError:
        raise
    except Exception as error:
        message = f"the codec {codec.name!r} raised {type(error).__name__} while encoding the body"
        raise StoreConfigError(message) from error

    if encoded is None:
        return None

    label, data = _checked_pair(codec, encoded)
    if not _LABEL.fullmatch(label) or "," in label or "=" in label:
        message = (
            f"the codec {codec.name!r} returned the invalid label {shown(label)}; a label must be "
            "at most 64 printable ASCII characters, without spaces, ',' or '='"
        )
        raise UsageError(message)

    return label, data


def _checked_pair(codec: BodyCodec, encoded: object) -> tuple[str, bytes]:
    kind = type(encoded).__name__
    pair = cast("tuple[object, ...]", encoded) if isinstance(encoded, tuple) else ()
    if len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is bytes:  # noqa: PLR2004  a pair
        return pair[0], pair[1]

    message = (
        f"the codec {codec.name!r}: expected encode() to return None or a (label, bytes) pair, "
        f"got {kind}"
    )
    raise UsageError(message)


def _checked(codecs: object) -> tuple[BodyCodec, ...]:
    if isinstance(codecs, str | bytes) or not isinstance(codecs, Iterable):
        message = (
            "codecs: expected a list of codecs, such as [Zstd(), Encrypt(keys)], got "
            f"{shown(codecs)}"
        )
        raise UsageError(message)

    found = tuple(cast("Iterable[object]", codecs))
    for codec in found:
        if not isinstance(codec, BodyCodec) or isinstance(codec, type):
            message = f"codecs: expected a BodyCodec such as Zstd(), got {shown(codec)}"
            raise UsageError(message)

        name: object = getattr(codec, "name", None)
        if type(name) is not str or not _NAME.fullmatch(name):
            message = (
                f"codecs: invalid codec name {shown(name)}; expected 1 to 32 characters from"
                " a-z, 0-9, _ and -"
            )
            raise UsageError(message)

    checked = cast("tuple[BodyCodec, ...]", found)
    names = [codec.name for codec in checked]
    if len(set(names)) < len(names) or len(names) > _MOST:
        message = (
            f"codecs: expected at most {_MOST} codecs, each with a different name, got "
            f"{', '.join(names)}"
        )
        raise UsageError(message)

    return checked
