"""Tags of a flow: an immutable mapping of text to text, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from operator import attrgetter
from typing import Any
from typing import Self
from typing import TypeAlias
from typing import cast
from typing import final

from catga_store.errors import EncodingError
from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

__all__ = [
    "MOST_TAGS",
    "NO_TAGS",
    "Pairs",
    "Tags",
    "as_tags",
    "pairs_of",
    "tag_changes",
    "wanted_tags",
]

MOST_TAGS = 16
"""How many tags a flow may have."""
_KEY_BYTES, _VALUE_BYTES = 64, 256

Pairs: TypeAlias = tuple[tuple[str, str], ...]


@final
class Tags(Mapping[str, str]):
    """The tags of a flow, ordered by key. Equal to any mapping with the same items; hashable."""

    __slots__ = ("_pairs",)

    _pairs: Pairs

    @classmethod
    def of(cls, pairs: Pairs) -> Self:
        """Return tags of pairs that were checked, ordered by key."""
        tags = cls.__new__(cls)
        tags._pairs = pairs
        return tags

    def __getitem__(self, key: str) -> str:
        for name, value in self._pairs:
            if name == key:
                return value

        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._pairs])

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tags.of, (self._pairs,)

    def __repr__(self) -> str:
        return repr(dict(self._pairs))


NO_TAGS = Tags.of(())


def as_tags(value: Mapping[str, str]) -> Tags:
    """Return a mapping as tags, else raise `UsageError`."""
    return value if type(value) is Tags else Tags.of(tuple(sorted(_checked(value, "tags"))))


pairs_of: Callable[[Mapping[str, str]], Pairs] = attrgetter("_pairs")
"""Return the pairs of the tags of a flow, ordered by key. Every write asks; no function is called."""


def wanted_tags(value: Mapping[str, str] | None) -> Pairs:
    """Return the tags that a filter wants, in their order: the first is looked up."""
    return () if value is None else tuple(_checked(value, "tags"))


def tag_changes(
    value: Mapping[str, str], remove: Iterable[str] = ()
) -> tuple[Pairs, frozenset[str]]:
    """Return the tags to set, and the keys of those to remove."""
    if isinstance(remove, str | bytes):
        message = f"remove: expected a collection of tag keys, got {shown(remove)}"
        raise UsageError(message)

    wanted = tuple(_checked(value, "tags"))
    unwanted = frozenset(_key(key, "remove") for key in remove)
    if not wanted and not unwanted:
        message = (
            "no tags given; pass the tags to set, or pass the keys of the tags to remove as remove="
        )
        raise UsageError(message)

    both = unwanted.intersection(key for key, _ in wanted)
    if both:
        message = f"the tag {shown(min(both))} cannot be both set and removed"
        raise UsageError(message)

    return wanted, unwanted


def _mapping(value: object, what: str, values: str) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        message = f"{what}: expected a mapping of str to {values}, got {shown(value)}"
        raise UsageError(message)

    return cast("Mapping[object, object]", value)


def _checked(value: object, what: str) -> Iterator[tuple[str, str]]:
    given = _mapping(value, what, "str")
    if len(given) > MOST_TAGS:
        message = f"{what}: expected at most {MOST_TAGS} entries, got {len(given)}"
        raise UsageError(message)

    for key, text in given.items():
        yield (
            _key(key, what),
            _text(text, f"{what}[{shown(key)}]", 0, _VALUE_BYTES),
        )


def _key(value: object, what: str) -> str:
    return _text(value, f"key in {what}", 1, _KEY_BYTES)


def _text(value: object, what: str, least: int, most: int) -> str:
    if not isinstance(value, str):
        message = f"{what}: expected a str, got {shown(value)}"
        raise UsageError(message)

    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        message = f"{what} cannot be encoded: {error}"
        raise EncodingError(message, path="tags") from error

    if not least <= size <= most:
        message = f"{what}: expected {least} to {most} UTF-8 bytes, got {size}"
        raise UsageError(message)

    return str.__str__(value)
