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
    """Keyword options of every store.

    | option | meaning | default |
    |---|---|---|
    | `owner` | names this worker in claims | host, pid and a random part |
    | `clock` | a function that returns the time as an aware datetime | the system's clock |
    | `timeout` | how long an operation may take to become certain | 10 s |
    | `poll_interval` | after how long a call that waits looks again although nothing has woken it | 5 s |
    | `retention` | how long ended records are kept | `Retention()` |
    | `partitions` | how many parts the store has; fixed at first use | 1 |
    | `history` | how many versions of each flow are kept, the current one included | 1 |
    | `max_record_bytes` | the most that one record may take, before its codecs | 64 MiB |
    | `codecs` | what bodies go through when they are written, in order: `Zstd`, `Encrypt`, a `BodyCodec` | none |
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
    """Filters of `query_flows`, `iter_flows` and `count_flows`; `None` does not restrict.

    `state_type` is a type or the name it is stored under. `created_after` and `updated_after` are
    inclusive, `created_before` and `updated_before` are exclusive. `id_prefix` is what the ids begin
    with, 1 to 512 bytes of UTF-8. `owner` is that of the claim, ended or not; `error_contains` is a part
    of the error, upper and lower case as it is there; `attempts_at_least` is a number of attempts. `tags`
    are those that a flow must all have.
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
    | `limit` | the most flows to look at | none |
    | `cursor` | where to continue: that of a report, with the same selection | the beginning |
    | `per_second` | how many flows are changed in a second at most; `None`: as fast as it goes | 1,000 |
    | `progress` | a function that is called with the report so far, after each page of up to 100 flows | none |
    """

    dry_run: bool
    limit: int | None
    cursor: str | None
    per_second: float | None
    progress: Callable[[BulkReport], object] | None


class DueFilters(TypedDict, total=False):
    """Filters of `query_due` and `count_due`; `None` does not restrict.

    `only` is what to list: `"due"` flows, under no claim or one that has ended; `"claimed"` ones, whose
    claim has not ended; or those whose claim is `"expired"`, which are due. `state_type` is a type or the
    name it is stored under. `tags` are those that a flow must all have.
    """

    only: Literal["due", "claimed", "expired"] | None
    state_type: Any | None
    tags: Mapping[str, str] | None


class DiagnosisOptions(TypedDict, total=False):
    """From when on something is wrong, for `diagnose` and `diagnose_all`.

    | option | meaning | default |
    |---|---|---|
    | `late` | how long a flow may be due, or a lease over, before a worker has claimed it | 5 min |
    | `idle` | how long a flow may wait without a deadline | 1 day |
    | `attempts` | how many attempts at one step are too many | 5 |
    | `types` | types that the program knows: flows of later versions of them are found | none |
    """

    late: timedelta
    idle: timedelta
    attempts: int
    types: Iterable[Any]


class WaitFilters(TypedDict, total=False):
    """Filters of `query_wait_conditions` and `iter_wait_conditions`; `None` does not restrict."""

    outcome: WaitOutcome | None
    parent_flow_id: str | None
