"""The page on limits: each limit that it states is the one at which the library refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import catga_store as cs
from catga_store.codec.hooks.base import MAX_LEVELS
from catga_store.core.envelope import MAX_RESULT_BYTES
from catga_store.core.settings import Settings
from catga_store.protocol.keys import MAX_ID_BYTES
from catga_store.protocol.keys import MAX_STEP
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import REMEMBERED_COMMITS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (.+?) \| (.+?) \|", PAGE, re.MULTILINE))
RETENTION = cs.Retention()


def commit_of(records: int) -> None:
    """Write that many records in one commit."""
    with cs.MemoryStore() as store, store.begin() as session:
        for number in range(records):
            session.add(cs.FlowSnapshot(f"flow {number}", state={}))


def completion_of(size: int) -> None:
    """Complete a child with a result that takes that many bytes."""
    with cs.MemoryStore() as store:
        store.complete_child("wait", "child", result="r" * (size - len('""')))


def save_step(index: int) -> None:
    """Save the progress of a step."""
    with cs.MemoryStore() as store:
        store.save_for_each_progress("flow", index, cs.ForEachProgress())


def state_of(levels: int) -> None:
    """Store a state of that many nested lists."""
    state: object = None
    for _ in range(levels):
        state = [state]

    with cs.MemoryStore() as store:
        store.create(cs.FlowSnapshot("flow", state=state))


def prefix_of(size: int) -> None:
    """List flows whose ids begin with that much."""
    with cs.MemoryStore() as store:
        store.query_flows(id_prefix="i" * size)


def page_of(limit: int) -> None:
    """List flows."""
    with cs.MemoryStore() as store:
        store.query_flows(limit=limit)


@pytest.mark.parametrize(
    ("row", "stated", "most", "do", "error"),
    [
        ("records in one commit", "200", MAX_CHANGES, commit_of, cs.CommitTooLargeError),
        (
            "id of a flow, condition, child or owner",
            "1 to 512 bytes of UTF-8",
            MAX_ID_BYTES,
            lambda size: cs.FlowSnapshot("i" * size, state={}),
            cs.InvalidIdError,
        ),
        (
            "encoded result and error of one completion, combined",
            "256 KiB",
            MAX_RESULT_BYTES,
            completion_of,
            cs.RecordTooLargeError,
        ),
        ("step index", "0 to 2,147,483,647", MAX_STEP, save_step, cs.UsageError),
        ("nesting levels in a state", "100", MAX_LEVELS, state_of, cs.EncodingError),
        ("entries in one page of a listing", "1,000", 1000, page_of, cs.UsageError),
        (
            "`id_prefix` of a listing",
            "1 to 512 bytes of UTF-8",
            MAX_ID_BYTES,
            prefix_of,
            cs.UsageError,
        ),
    ],
)
def test_stated_limit_is_the_last_value_accepted(
    row: str, stated: str, most: int, do: Callable[[int], None], error: type[Exception]
) -> None:
    """The page's value is accepted, and the next one is refused with the page's error."""
    assert ROWS[row] == stated
    assert f"| {row} | {stated} | `{error.__name__}` |" in PAGE
    assert f"{most:,}" in stated or f"{most // 1024} KiB" == stated
    do(most)
    with pytest.raises(error):
        do(most + 1)


def test_stated_defaults_are_those_of_the_store() -> None:
    """Times and sizes that the page gives as defaults are the defaults."""
    assert ROWS["one record, before codecs are applied"] == "64 MiB by default"
    assert ROWS["maximum time to wait for the outcome of an operation"] == "10 s"
    assert ROWS["length of a lease"] == "30 s"
    assert ROWS["retention period of a completed or cancelled flow"] == "7 days"
    assert RETENTION.flows == timedelta(days=7)
    assert ROWS["retention period of a failed flow"] == "30 days"
    assert RETENTION.failed == timedelta(days=30)
    assert ROWS["retention period of a wait condition that has ended"] == "1 day"
    assert RETENTION.waits == timedelta(days=1)
    assert f"the last {REMEMBERED_COMMITS} commits that wrote it" in PAGE

    assert Settings().max_record_bytes == 64 * 1024 * 1024
    assert Settings().timeout == 10
    with cs.MemoryStore() as store:
        store.create(cs.FlowSnapshot("flow", state={}))
        before = store.now()
        [flow] = store.claim_due()
        assert flow.due_at is not None
        assert timedelta(seconds=30) <= flow.due_at - before < timedelta(seconds=40)


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b", "orders:1", "p" * 65, "a\nb"])
def test_prefix_that_breaks_the_stated_rule_is_refused(prefix: str) -> None:
    """Prefixes of Redis keys are 1 to 64 bytes, printable, without braces and a digit at the end."""
    rule = "1 to 64 bytes of printable text; no braces; must not end with a digit"
    assert ROWS["`prefix` of a Redis store"] == rule
    with pytest.raises(cs.UsageError, match="prefix"):
        cs.RedisStore(prefix=prefix)


def test_longest_prefix_is_accepted() -> None:
    """A prefix of 64 bytes makes a store."""
    cs.RedisStore(prefix="p" * 64).close()


@pytest.mark.parametrize("bucket", ["", "a b", "a.b", "ä", "b" * 65, "orders_wait"])
def test_bucket_that_breaks_the_stated_rule_is_refused(bucket: str) -> None:
    """Buckets of NATS are words that do not end in `_wait`."""
    rule = "1 to 64 characters from A-Z, a-z, 0-9, `_` and `-`; must not end with `_wait`"
    assert ROWS["`bucket` of a NATS store"] == rule
    with pytest.raises(cs.UsageError, match="bucket"):
        cs.NatsStore("nats://localhost", bucket=bucket)
