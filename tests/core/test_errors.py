"""The tree of errors: exactly the documented one, and every error travels with its facts."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC
from datetime import datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import catga_store as cs
from catga_store import errors
from catga_store.protocol.requests import Check

# Each error under what it derives from, as the contract draws them; what the caller does next is
# decided by the second level.
TREE: dict[str, tuple[str, ...]] = {
    "CatgaStoreError": ("Exception",),
    "UsageError": ("CatgaStoreError",),
    "InvalidIdError": ("UsageError",),
    "StateTypeError": ("UsageError",),
    "EncodingError": ("UsageError",),
    "RecordTooLargeError": ("UsageError",),
    "CommitTooLargeError": ("UsageError",),
    "CrossPartitionError": ("UsageError",),
    "SessionClosedError": ("UsageError",),
    "StoreClosedError": ("UsageError",),
    "NotSupportedError": ("UsageError",),
    "StoreConfigError": ("CatgaStoreError",),
    # Beside the tree: the contract calls another number of partitions both of these.
    "PartitionCountError": ("UsageError", "StoreConfigError"),
    "ConflictError": ("CatgaStoreError",),
    "FlowExistsError": ("ConflictError",),
    "StaleFlowError": ("ConflictError",),
    "ClaimLostError": ("StaleFlowError",),
    "FlowClaimedError": ("ConflictError",),
    "FlowNotFoundError": ("ConflictError",),
    "FlowStatusError": ("ConflictError",),
    "StaleWaitConditionError": ("ConflictError",),
    "WaitConditionNotFoundError": ("ConflictError",),
    "StaleProgressError": ("ConflictError",),
    "PartExistsError": ("ConflictError",),
    "StalePartError": ("ConflictError",),
    "StoreUnavailableError": ("CatgaStoreError",),
    "CommitUncertainError": ("CatgaStoreError",),
    "CorruptRecordError": ("CatgaStoreError",),
    "CodecMissingError": ("CorruptRecordError",),
}

FACTS: dict[str, dict[str, Any]] = {
    "InvalidIdError": {"what": "a flow id", "value": "\ud800", "size": 3},
    "StateTypeError": {
        "expected": "Order",
        "actual": None,
        "expected_version": 2,
        "actual_version": 1,
    },
    "EncodingError": {"path": "$.items[2]"},
    "RecordTooLargeError": {"size": 11, "limit": 10},
    "CommitTooLargeError": {"size": 201, "limit": 200},
    "CrossPartitionError": {"partitions": {"a": 0, "b": 1}},
    "PartitionCountError": {"expected": 1, "actual": 4},
    "FlowExistsError": {"flow_id": "f", "actual": 3},
    "StaleFlowError": {"flow_id": "f", "expected": 1, "actual": 2},
    "ClaimLostError": {"flow_id": "f", "expected": 1, "actual": None},
    "FlowClaimedError": {
        "flow_id": "f",
        "owner": "w-1",
        "until": datetime(2030, 1, 1, tzinfo=UTC),
    },
    "FlowNotFoundError": {"flow_id": "f", "expected": 1},
    "FlowStatusError": {"flow_id": "f", "status": "COMPLETED", "actual": 1},
    "StaleWaitConditionError": {"correlation_id": "w", "expected": 1, "actual": 2},
    "WaitConditionNotFoundError": {"correlation_id": "w", "expected": 1},
    "StaleProgressError": {"flow_id": "f", "step_index": 2, "expected": 1, "actual": None},
    "PartExistsError": {"flow_id": "f", "name": "p", "actual": 1},
    "StalePartError": {"flow_id": "f", "name": "p", "expected": 1, "actual": None},
    "CommitUncertainError": {
        "commit_id": "c",
        "keys": (cs.Key("flow", "f"),),
        "changes": (Check(cs.Key("flow", "f"), "r"),),
        "kept_seconds": 20.0,
        "sent_at": None,
    },
    "CorruptRecordError": {"key": ("flow", "f", 0, "")},
    "CodecMissingError": {"key": ("flow", "f", 0, ""), "codec": "aes256gcm", "label": "2026-11"},
}


def make(name: str) -> cs.CatgaStoreError:
    """Make an error with all its facts."""
    error: cs.CatgaStoreError = getattr(cs, name)(f"message of {name}", **FACTS.get(name, {}))
    return error


def test_the_tree_is_the_documented_one() -> None:
    """The module has these errors with these bases, all of them public, and no others."""
    found = {
        name: tuple(base.__name__ for base in thing.__bases__)
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, BaseException)
    }
    assert found == TREE
    assert sorted(errors.__all__) == sorted(TREE)
    assert set(TREE) <= set(cs.__all__)


def test_the_docstring_draws_the_tree() -> None:
    """Every error stands in the drawing under its parent, by its indentation."""
    text = inspect.getdoc(errors) or ""
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in dedent(text.split("::\n\n")[1].split("\n\n")[0]).splitlines():
        name = line.lstrip("│├└─ ").split()[0]
        depth = line.index(name) // 4
        parents = [*parents[:depth], name]
        drawn[name] = parents[-2] if depth else "Exception"

    expected = {name: bases[0] for name, bases in TREE.items() if len(bases) == 1}
    assert drawn == expected
    assert "PartitionCountError" in text


def test_errors_name_the_package() -> None:
    """Each shows `catga_store` as its module, and says in a docstring when it is raised."""
    for name in TREE:
        kind = getattr(cs, name)
        assert kind.__module__ == "catga_store", name
        assert len((kind.__doc__ or "").strip()) > 20, name
        assert kind.__doc__.strip().endswith("."), name


COPIES: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol)
        )
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
def test_errors_travel_with_their_facts(how: str) -> None:
    """A copy in this process or another has the same class, message and attributes."""
    for name in TREE:
        error = make(name)
        twin = COPIES[how](error)
        assert type(twin) is type(error), name
        assert str(twin) == str(error) == f"message of {name}"
        assert twin.__dict__ == error.__dict__, name
        facts = FACTS.get(name, {})
        assert {fact: getattr(twin, fact) for fact in facts} == facts, name


@pytest.mark.parametrize("name", FACTS)
def test_every_declared_fact_is_set(name: str) -> None:
    """What a class annotates is what its errors carry."""
    kind = getattr(cs, name)
    declared = {
        fact
        for base in kind.__mro__
        if base.__module__ == "catga_store"
        for fact in vars(base).get("__annotations__", {})
        if not fact.startswith("_")
    }
    assert declared <= set(FACTS[name])


def test_a_conflict_alone_is_its_own_conflict() -> None:
    """`conflicts` of a single refusal holds that refusal, whichever it is."""
    for name in TREE:
        error = make(name)
        if isinstance(error, cs.ConflictError):
            assert error.conflicts == (error,)


def test_conflicts_travel(store: cs.Store) -> None:
    """A refusal of several records keeps all of them through a pickle."""
    for flow_id in ("a", "b"):
        store.create(cs.FlowSnapshot(flow_id, state={}))

    with store.session() as session:
        session.add(cs.FlowSnapshot("a", state={}))
        session.delete(session.get_one("b"))
        store.update(store.get_one("b"))
        with pytest.raises(cs.ConflictError) as caught:
            session.commit()

    twin = pickle.loads(pickle.dumps(caught.value))
    assert [type(error) for error in twin.conflicts] == [cs.FlowExistsError, cs.StaleFlowError]
    assert [error.flow_id for error in twin.conflicts] == ["a", "b"]
    assert str(twin) == str(caught.value)


def test_every_conflict_says_that_nothing_was_written(store: cs.Store) -> None:
    """Each refusal names the record, what was expected, what is there, and what it means."""
    store.create(cs.FlowSnapshot("f", state={}))
    stale = store.get_one("f")
    claimed = store.claim("f", owner="w-1")
    store.update(store.get_one("f"))
    refused: list[tuple[Callable[[], object], list[str]]] = [
        (
            lambda: store.create(cs.FlowSnapshot("f", state={})),
            ["flow 'f'", "version 3", "nothing in this commit was written"],
        ),
        (
            lambda: store.update(stale),
            ["flow 'f'", "version 1", "holds version 3", "nothing in this commit was written"],
        ),
        (
            lambda: store.update(claimed),
            [
                "claim on flow 'f'",
                "version 2",
                "holds version 3",
                "nothing in this commit was written",
            ],
        ),
        (
            lambda: store.claim("f"),
            ["flow 'f'", "claimed by 'w-1'", "2030-01-01T00:00:30+00:00"],
        ),
        (lambda: store.get_one("g"), ["flow 'g'", "deleted", "expired"]),
    ]
    for act, parts in refused:
        with pytest.raises(cs.ConflictError) as caught:
            act()

        for part in parts:
            assert part in str(caught.value)


def test_outage_is_an_error_of_few_frames(tmp_path: Path) -> None:
    """Its traceback shows the call, not how the library got to its server; its cause stays."""
    with cs.SQLiteStore(tmp_path / "missing" / "flows.db") as store:
        with pytest.raises(cs.StoreConfigError) as caught:
            store.get("f")

        assert len(caught.traceback) <= 3
        assert caught.value.__cause__ is not None
        shown = "".join(traceback.format_exception(caught.value))
        assert shown.count("  File ") <= 4
        assert "During handling" not in shown


def test_frames_of_the_users_function_stay(tmp_path: Path) -> None:
    """An outage of another store inside a transaction shows where it came from."""
    with cs.SQLiteStore(tmp_path / "missing" / "flows.db") as other, cs.MemoryStore() as store:

        def copied_from(_session: cs.Session) -> None:
            other.get("f")

        with pytest.raises(cs.StoreConfigError) as caught:
            store.transact(copied_from)

    assert "copied_from" in [entry.name for entry in caught.traceback]


@pytest.mark.anyio
async def test_async_outage_is_an_error_of_few_frames(tmp_path: Path) -> None:
    """The async API shows no more."""
    async with cs.AsyncSQLiteStore(tmp_path / "missing" / "flows.db") as store:
        with pytest.raises(cs.StoreConfigError) as caught:
            await store.get("f")

    assert len(caught.traceback) <= 4


def test_one_except_clause_per_reaction() -> None:
    """Each error falls under exactly one reply to "what do I do next?"."""
    answers = (
        cs.UsageError,
        cs.StoreConfigError,
        cs.ConflictError,
        cs.StoreUnavailableError,
        cs.CommitUncertainError,
        cs.CorruptRecordError,
    )
    for name in TREE:
        if name not in ("CatgaStoreError", "PartitionCountError"):
            assert sum(issubclass(getattr(cs, name), answer) for answer in answers) == 1
