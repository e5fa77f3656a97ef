"""Keyword options that several public functions take, each written once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import Literal
from typing import TypedDict

from catga_store.codec.bodies import BodyCodec
from catga_store.model.bulk import BulkReport
from catga_store.model.flows import FlowStatus
from catga_store.model.listings import Retention
from catga_store.model.waits import WaitOutcome

__all__ = [
    "BulkOptions",
    "DiagnosisOptions",
    "DueFilters",
    "FlowFilters",
    "StoreOptions",
    "WaitFilters",
]


class StoreOptions(TypedDict, total=False):
    """Keyword options that every store accepts.

    | option | meaning | default |
    |---|---|---|
    | `owner` | the name of this worker in claims | the host name, the process id and a random part |
    | `clock` | a function that returns the time as an aware datetime | the system clock |
    | `timeout` | the maximum time to determine the outcome of an operation | 10 s |
    | `poll_interval` | the interval at which a waiting call checks the store even if it has not been woken | 5 s |
    | `retention` | how long records that have ended are kept | `Retention()` |
    | `partitions` | the number of partitions, which is fixed at first use | 1 |
    | `history` | the number of versions of each flow that are kept, including the current version | 1 |
    | `max_record_bytes` | the maximum size of a record in bytes, before codecs are applied | 64 MiB |
    | `codecs` | the codecs that are applied to bodies, in order: `Zstd`, `Encrypt`, a `BodyCodec` | none |
    """

    owner: str | None
    clock: Callable[[], datetime] | None
    timeout: timedelta
    poll_interval: timedelta
    retention: Retention
    partitions: int
    history: int
    max_record_bytes: int
    codecs: Iterable[BodyCodec] | None


class FlowFilters(TypedDict, total=False):
    """Filters of `query_flows`, `iter_flows` and `count_flows`; `None` means no restriction.

    `state_type` is a type or a stored type name. `created_after` and `updated_after` are inclusive;
    `created_before` and `updated_before` are exclusive. `id_prefix` is the beginning of the ids, 1 to 512
    bytes of UTF-8. `owner` is the owner of the claim, even if its lease has ended; `error_contains` is a
    substring of the error and is case-sensitive; `attempts_at_least` is a number of attempts. A flow must
    have all of `tags`.
    """

    status: FlowStatus | None
    state_type: Any | None
    created_after: datetime | None
    created_before: datetime | None
    updated_before: datetime | None
    id_prefix: str | None
    updated_after: datetime | None
    owner: str | None
    error_contains: str | None
    attempts_at_least: int | None
    tags: Mapping[str, str] | None


class BulkOptions(TypedDict, total=False):
    """Keyword options of the operations of `bulk`.

    | option | meaning | default |
    |---|---|---|
    | `dry_run` | change nothing, and count what would be changed | `False` |
    | `limit` | the maximum number of flows to check | none |
    | `cursor` | where to continue: the `cursor` of a report with the same selection | the beginning |
    | `per_second` | the maximum number of flows to change per second; `None`: no limit | 1,000 |
    | `progress` | a function that is called with the current report after each page of up to 100 flows | none |
    """

    dry_run: bool
    limit: int | None
    cursor: str | None
    per_second: float | None
    progress: Callable[[BulkReport], object] | None


class DueFilters(TypedDict, total=False):
    """Filters of `query_due` and `count_due`; `None` means no restriction.

    `only` selects what to list: `"due"` flows, which have no claim or a claim that has ended; `"claimed"`
    flows, whose claim has not ended; or `"expired"` flows, which are due because their claim has ended.
    `state_type` is a type or a stored type name. A flow must have all of `tags`.
    """

    only: Literal["due", "claimed", "expired"] | None
    state_type: Any | None
    tags: Mapping[str, str] | None


class DiagnosisOptions(TypedDict, total=False):
    """Thresholds and types for `diagnose` and `diagnose_all`.

    | option | meaning | default |
    |---|---|---|
    | `late` | how long a flow may remain unclaimed after it is due or its lease has ended | 5 min |
    | `idle` | how long a flow may wait without a deadline | 1 day |
    | `attempts` | the number of attempts at one step that is too many | 5 |
    | `types` | the types that the program knows; flows with later versions of them are reported | none |
    """

    late: timedelta
    idle: timedelta
    attempts: int
    types: Iterable[Any]


class WaitFilters(TypedDict, total=False):
    """Filters of `query_wait_conditions` and `iter_wait_conditions`; `None` means no restriction."""

    outcome: WaitOutcome | None
    parent_flow_id: str | None
