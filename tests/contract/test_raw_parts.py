"""Parts of bytes without objects, as the saver for LangGraph reads and writes them."""

from __future__ import annotations

import pytest
from marks import ONE_STORE

import catga_store as cs
from catga_store.core import raw_parts
from catga_store.core.writes import plan_part
from catga_store.protocol.conversation import ask
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import Parts


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("limit", [2, 100])
def test_a_list_that_ends_with_a_name(store: cs.Store, limit: int, *, bodies: bool) -> None:
    """The last group of parts is one request, and has nothing of the group before."""
    large = b"x" * 2_000_000  # Redis cuts a list after a MiB of bodies
    with store.begin() as session:
        for name in ("g/1/c", "g/1/w", "g/2/c", "g/2/w/1", "g/2/w/c"):
            session.add_part(cs.Part("f", name, large if name == "g/2/w/c" else name.encode()))

    def listed(until: str, *, reverse: bool) -> list[str]:
        wanted = Parts("f", "g/", None, None, reverse, limit, bodies, 0, until=until)
        found = store._run(ask(wanted))
        assert all((one.body is not None) == bodies for one in found)
        return [one.name for one in found]

    assert listed("2/c", reverse=True) == ["g/2/w/c", "g/2/w/1", "g/2/c"][:limit]
    assert listed("/c", reverse=True) == ["g/2/w/c"]
    assert listed("/w", reverse=False) == ["g/1/c", "g/1/w"]
    assert (
        listed("none", reverse=False) == ["g/1/c", "g/1/w", "g/2/c", "g/2/w/1", "g/2/w/c"][:limit]
    )


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("bodies", [True, False])
def test_a_list_in_brief_has_what_a_write_needs(
    store: cs.Store, *, bodies: bool, reverse: bool
) -> None:
    """The four fields, name and body are those of the whole list, and a part can be written with them."""
    for name in ("g/a", "g/b", "g/~"):
        part = cs.Part("f", name, name.encode(), tag=f"t {name}")
        store.put_part(part)
        part.body = b"again"
        store.put_part(part)

    def listed(*, brief: bool) -> list[tuple[object, ...]]:
        wanted = Parts("f", "g/", None, None, reverse, 9, bodies, 0, brief=brief)
        return [
            (name, head.version, head.created_ms, head.position, head.revision, body)
            for name, head, body in store._run(ask(wanted))
        ]

    assert listed(brief=True) == listed(brief=False)
    wanted = Parts("f", "g/~", None, None, False, 1, bodies, 0, brief=True)
    ((_, old, _),) = store._run(ask(wanted))
    context, now_ms = store._context, store._context.settings.now_ms()
    put = raw_parts.plan_bytes(context, "f", "g/~", b"third", old=old, now_ms=now_ms)
    store._run(raw_parts.commit(context, [put], now_ms))
    found = store.get_part("f", "g/~")
    assert found is not None
    assert (found.version, found.body, found.tag) == (3, b"third", "")


@ONE_STORE
def test_a_plan_without_an_object_is_the_same(store: cs.Store) -> None:
    """Of a new part, of one that was read, and whatever is there."""
    context, now_ms = store._context, store._context.settings.now_ms()

    def plan(part: cs.Part[bytes], expected: str | None) -> None:
        old = None if part._loaded is None else part._loaded.head
        made = raw_parts.plan_bytes(
            context,
            part.flow_id,
            part.name,
            part.body,
            tag=part.tag,
            old=old,
            expected=expected,
            now_ms=now_ms,
        )
        assert made == plan_part(part, now_ms, context.limits, expected)

    part = cs.Part("f", "p", b"one", tag="t")
    for expected in (None, ANY, IF_ABSENT):
        plan(part, expected)

    store.put_part(part)
    part.body = b"two"
    plan(part, None)


@ONE_STORE
def test_what_a_part_cannot_be_is_refused(store: cs.Store) -> None:
    """With the errors of `Part`, before anything is sent."""
    context = store._context

    def plan(name: str, body: bytes = b"", tag: str = "") -> None:
        raw_parts.plan_bytes(context, "f", name, body, tag=tag, now_ms=0)

    with pytest.raises(cs.InvalidIdError, match="ends with '/'"):
        plan("p/")

    with pytest.raises(cs.UsageError, match="tag: expected at most 256 UTF-8 bytes, got 257"):
        plan("p", tag="t" * 257)

    with pytest.raises(cs.RecordTooLargeError, match="part 'p' of flow 'f' is 67108865 bytes long"):
        plan("p", b"x" * (context.limits.max_record_bytes + 1))
