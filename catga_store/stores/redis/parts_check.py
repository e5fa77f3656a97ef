"""The parts of flows in a Redis store, for the doctor: do their names, heads and bodies agree?

Nothing is changed. Workers may write meanwhile, so what looks wrong is looked at twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from catga_store.protocol.keys import part_key
from catga_store.stores.findings import Finding
from catga_store.stores.redis.commit_args import chunks_in
from catga_store.stores.redis.index_check import PerformsPipes
from catga_store.stores.redis.index_check import ask
from catga_store.stores.redis.index_check import keys_of
from catga_store.stores.redis.layout import RedisLayout
from catga_store.stores.redis.parts import COUNTER
from catga_store.stores.redis.parts import NAME

__all__ = ["examine_parts"]

_PAGE = 1000
_MOST_PARTS = 100_000
"""Parts that are compared at most, and fields of one flow's parts that are listed at once."""


def examine_parts(link: PerformsPipes, layout: RedisLayout) -> Iterator[Finding]:
    """Compare the names of parts with what is stored under them, and the other way round."""
    flows, parts, wrong = 0, 0, list[str]()
    for number in range(layout.partitions):
        for keys in keys_of(link, layout.parts[number]):
            for key in keys:
                flow_id = key.removeprefix(layout.parts[number])
                count, found = _examine(link, layout, number, flow_id)
                if found:
                    _, again = _examine(link, layout, number, flow_id)
                    wrong += [_shown(flow_id, name) for name in sorted(found & again)]

                flows += 1
                parts += count

            if parts >= _MOST_PARTS:
                break

    found_all = f"{parts:,} parts of {flows:,} flows were compared with the lists of part names"
    if wrong:
        yield Finding(
            "parts",
            "problem",
            f"{found_all}; {len(wrong):,} do not match, for example {', '.join(wrong[:3])}",
            "listings fail or omit these parts, because another program has written to these keys",
            "keep other programs away from these keys, and write or delete each of these "
            "parts again",
        )
    else:
        yield Finding("parts", "ok", found_all, "each part is listed and has its body")


def _shown(flow_id: bytes, name: bytes) -> str:
    texts = flow_id.decode(errors="replace"), name.decode(errors="replace")
    return str(part_key(*texts)) if name else f"all parts of flow {texts[0]!r}"


def _examine(
    link: PerformsPipes, layout: RedisLayout, number: int, flow_id: bytes
) -> tuple[int, set[bytes]]:
    """Return how many parts a flow has, and the names of those that do not agree.

    An empty name stands for the flow, which is not listed among those that have parts.
    """
    parts, names = layout.parts[number] + flow_id, layout.names[number] + flow_id
    listed, stored = ask(
        link, [(b"ZSCORE", layout.index[number], b"ni" + flow_id), (b"HLEN", parts)]
    )
    wrong = {b""} if stored and listed is None else set[bytes]()
    count = 0
    for members in _members(link, names):
        count += len(members)
        wrong |= _without_body(link, layout, number, parts, [one[1:] for one in members])

    if stored <= _MOST_PARTS:
        (fields,) = ask(link, [(b"HKEYS", parts)])
        heads = [field[1:] for field in fields if field.startswith(b"h")]
        scores = ask(link, [(b"ZSCORE", names, _member(name)) for name in heads])
        wrong |= {name for name, score in zip(heads, scores, strict=True) if score is None}

    return count, wrong


def _member(name: bytes) -> bytes:
    return (COUNTER if name.endswith(b"/") else NAME) + name


def _members(link: PerformsPipes, names: bytes) -> Iterator[list[bytes]]:
    first = b"-"
    while True:
        (members,) = ask(link, [(b"ZRANGEBYLEX", names, first, b"+", b"LIMIT", 0, _PAGE)])
        if members:
            yield members

        if len(members) < _PAGE:
            return

        first = b"(" + members[-1]


def _without_body(
    link: PerformsPipes, layout: RedisLayout, number: int, parts: bytes, names: list[bytes]
) -> set[bytes]:
    """Return the names that have no head, no body, or a large body without all of its chunks."""
    asked = [
        args
        for name in names
        for args in (
            (b"HEXISTS", parts, b"h" + name),
            (b"HEXISTS", parts, b"b" + name),
            (b"HGET", parts, b"l" + name),
        )
    ]
    replies = ask(link, asked)
    wrong: set[bytes] = set()
    large: dict[bytes, bytes] = {}
    for name, head, body, place in zip(
        names, replies[::3], replies[1::3], replies[2::3], strict=True
    ):
        if not head or bool(body) == (place is not None):
            wrong.add(name)
        elif place is not None:
            large[name] = place

    uploads = [chunks_in(place) for place in large.values()]
    counts = ask(link, [(b"HLEN", layout.upload[number] + upload) for _, upload in uploads])
    for name, (chunks, _), stored in zip(large, uploads, counts, strict=True):
        if stored != chunks + 1:
            wrong.add(name)

    return wrong
