"""Durable workflow state: flow snapshots, wait conditions and ForEach progress.

The stores keep this state in memory, in SQLite, or on servers, for blocking code, asyncio and trio. Each
write is version-checked, and each commit is applied as a whole or not at all.

>>> import catga_store as cs
>>> store = cs.open_store("memory://")
>>> with store.begin() as session:
...     session.add(cs.FlowSnapshot("order-42", state={"paid": False}))
>>> with store.begin() as session:
...     order = session.get_one("order-42")
...     order.state["paid"] = True
...     order.position = order.position.advance()
>>> store.get_one("order-42").version
2

The library logs only what it cannot raise to a caller, under `catga_store.*`. Without a log handler of your
own, nothing is shown.

It logs at the level WARNING:

- `core.claims`: `claim_due` returns fewer flows than it could, because the store has failed in the meantime
  or because the lease of a flow has ended
- `core.claim_plans`: a due flow cannot be read, so it is postponed
- `core.claim_candidates`: a flow is claimed without a check of its ended waits, because a record cannot be read
- `core.commits`: the outcome of a commit is unknown; the message contains the id of the commit
- `core.unit_of_work`, `core.dropped`: a claimed flow was changed, but its session was closed or its object
  was dropped without a write
- `core.holding`, `core.async_holding`: a claim could not be extended
- `core.numbers`, `stores.*`: a listing skips a record that cannot be read, or expired records could not be
  removed
- `drivers.*`: the server refuses a request or the notifications of the store
- `telemetry`: the gauges of a store are not reported, because the store has failed
- `worker`: an attempt has failed, a claim was lost, the store cannot be reached, or it can be reached again

It logs at the level ERROR:

- `worker`: a flow has failed for good, or a run or an `on_failure` handler has raised an unexpected error
- `console`: a `redact` function has raised an error

Other events are logged at the levels INFO and DEBUG, such as an attempt of `transact` that had a conflict.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from catga_store.bulk import Bulk
from catga_store.codec.bodies import BodyCodec
from catga_store.codec.bodies import BodyPlace
from catga_store.codec.bodies import Encrypt
from catga_store.codec.bodies import Keys
from catga_store.codec.bodies import Zstd
from catga_store.codec.evolution import flow_state
from catga_store.copying import CopyReport
from catga_store.copying import copy
from catga_store.core.receipts import Receipt
from catga_store.core.state_types import RAW
from catga_store.errors import CatgaStoreError
from catga_store.errors import ClaimLostError
from catga_store.errors import CodecMissingError
from catga_store.errors import CommitTooLargeError
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import CorruptRecordError
from catga_store.errors import CrossPartitionError
from catga_store.errors import EncodingError
from catga_store.errors import FlowClaimedError
from catga_store.errors import FlowExistsError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import FlowStatusError
from catga_store.errors import InvalidIdError
from catga_store.errors import NotSupportedError
from catga_store.errors import PartExistsError
from catga_store.errors import PartitionCountError
from catga_store.errors import RecordTooLargeError
from catga_store.errors import SessionClosedError
from catga_store.errors import StaleFlowError
from catga_store.errors import StalePartError
from catga_store.errors import StaleProgressError
from catga_store.errors import StaleWaitConditionError
from catga_store.errors import StateTypeError
from catga_store.errors import StoreClosedError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.errors import WaitConditionNotFoundError
from catga_store.model.bulk import BulkReport
from catga_store.model.composite_ids import join_id
from catga_store.model.composite_ids import split_id
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.diagnosis import FlowFinding
from catga_store.model.flows import FlowPosition
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowStatus
from catga_store.model.flows import FlowSummary
from catga_store.model.flows import FlowVersion
from catga_store.model.listings import Page
from catga_store.model.listings import Retention
from catga_store.model.parts import Appended
from catga_store.model.parts import LogEntry
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stats import DueFlow
from catga_store.model.stats import StoreStats
from catga_store.model.times import NOW
from catga_store.model.waits import ChildResult
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition
from catga_store.model.waits import WaitOutcome
from catga_store.model.waits import WaitType
from catga_store.opening.blocking import MemoryStore
from catga_store.opening.blocking import NatsStore
from catga_store.opening.blocking import RedisStore
from catga_store.opening.blocking import SQLiteStore
from catga_store.opening.urls import open_async_store
from catga_store.opening.urls import open_store
from catga_store.protocol.keys import Key
from catga_store.rewrapping import RewrapReport
from catga_store.rewrapping import rewrap
from catga_store.session import Session
from catga_store.store import Store

if TYPE_CHECKING:
    from catga_store.aio import AsyncBulk
    from catga_store.aio import AsyncSession
    from catga_store.aio import AsyncStore
    from catga_store.opening.awaiting import AsyncMemoryStore
    from catga_store.opening.awaiting import AsyncNatsStore
    from catga_store.opening.awaiting import AsyncRedisStore
    from catga_store.opening.awaiting import AsyncSQLiteStore
    from catga_store.worker import AsyncRun
    from catga_store.worker import AsyncWorker
    from catga_store.worker import GiveUp
    from catga_store.worker import Retry
    from catga_store.worker import Run
    from catga_store.worker import Worker

__all__ = [
    "NOW",
    "RAW",
    "Appended",
    "AsyncBulk",
    "AsyncMemoryStore",
    "AsyncNatsStore",
    "AsyncRedisStore",
    "AsyncRun",
    "AsyncSQLiteStore",
    "AsyncSession",
    "AsyncStore",
    "AsyncWorker",
    "BodyCodec",
    "BodyPlace",
    "Bulk",
    "BulkReport",
    "CatgaStoreError",
    "ChildResult",
    "ClaimLostError",
    "CodecMissingError",
    "CommitTooLargeError",
    "CommitUncertainError",
    "Completion",
    "ConflictError",
    "CopyReport",
    "CorruptRecordError",
    "CrossPartitionError",
    "Diagnosis",
    "DueFlow",
    "EncodingError",
    "Encrypt",
    "FlowClaimedError",
    "FlowExistsError",
    "FlowFinding",
    "FlowNotFoundError",
    "FlowPosition",
    "FlowSnapshot",
    "FlowStatus",
    "FlowStatusError",
    "FlowSummary",
    "FlowVersion",
    "ForEachProgress",
    "GiveUp",
    "InvalidIdError",
    "Key",
    "Keys",
    "LogEntry",
    "MemoryStore",
    "NatsStore",
    "NotSupportedError",
    "Page",
    "Part",
    "PartExistsError",
    "PartitionCountError",
    "Receipt",
    "RecordTooLargeError",
    "RedisStore",
    "Retention",
    "Retry",
    "RewrapReport",
    "Run",
    "SQLiteStore",
    "Session",
    "SessionClosedError",
    "StaleFlowError",
    "StalePartError",
    "StaleProgressError",
    "StaleWaitConditionError",
    "StateTypeError",
    "Store",
    "StoreClosedError",
    "StoreConfigError",
    "StoreStats",
    "StoreUnavailableError",
    "UsageError",
    "WaitCondition",
    "WaitConditionNotFoundError",
    "WaitOutcome",
    "WaitType",
    "Worker",
    "Zstd",
    "copy",
    "flow_state",
    "join_id",
    "open_async_store",
    "open_store",
    "rewrap",
    "split_id",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_LATE = {
    "AsyncMemoryStore": "opening.awaiting",
    "AsyncNatsStore": "opening.awaiting",
    "AsyncRedisStore": "opening.awaiting",
    "AsyncSQLiteStore": "opening.awaiting",
    "AsyncBulk": "aio",
    "AsyncSession": "aio",
    "AsyncStore": "aio",
    "AsyncRun": "worker",
    "AsyncWorker": "worker",
    "GiveUp": "worker",
    "Retry": "worker",
    "Run": "worker",
    "Worker": "worker",
}
"""Names that are imported when they are first asked for, and from where."""

for _public in __all__:
    if _public not in _LATE and not _public.isupper():  # constants know no module
        globals()[_public].__module__ = __name__


def __getattr__(name: str) -> object:
    """The async API and the workers, when they are first asked for: they cost other programs nothing."""
    module = _LATE.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    value: object = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value  # else each use of the name comes by here
    return value
