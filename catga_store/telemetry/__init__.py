"""OpenTelemetry for stores: a span for each operation, metrics, and gauges. Needs the extra `otel`.

Until `instrument` is called nothing is measured or imported, and an operation pays one attribute
lookup. Spans and metrics go to the global providers, or to those that are passed.

| span `catga_store.<operation>` | |
|---|---|
| `catga_store.operation` | `update`, `claim_due`, `session_commit`, `transact`, … |
| `catga_store.store` | the class of the store, as in `SQLiteStore` |
| `catga_store.api` | `blocking` or `async` |
| `catga_store.records` | the number of records read or listed, plus the number of changes sent |
| `catga_store.key` | the record, if the operation concerned exactly one: `flow 'order-42'` |
| `catga_store.outcome` | `ok`, `conflict`, `uncertain`, `unavailable`, `usage`, … |

The other outcomes are `config`, `corrupt`, `cancelled`, and `error` for an exception that is not of
this library, such as one raised by the function of a transaction. `claim_due` with `wait` is the operation
`claim_when_due`; what it takes is mostly waiting, as with `wait_due` and `watch`.

For every outcome but `ok`, `conflict` and `cancelled`, which programs expect, the span records the
exception and has the status ERROR. Operations inside the function of a transaction are child spans.

| metric | counts |
|---|---|
| `catga_store.operation.duration` | a histogram of seconds, by operation and outcome |
| `catga_store.conflicts` | changes that a store refused, including those of commits that were retried |
| `catga_store.retries` | commits sent again by the same operation after a refusal |
| `catga_store.uncertain_commits` | commits whose outcome is not known |
| `catga_store.claimed_flows` | flows given to a worker |
| `catga_store.due_conditions` | ended wait conditions whose parent was notified |

Each has the operation, the store and the API as attributes. Retries inside the client of a server are
not counted.

`observe_stats` and `observe_stats_async` report what `Store.stats` says, as gauges:

| gauge | value |
|---|---|
| `catga_store.flow.count` | flows, by `catga_store.flow.type` and `catga_store.flow.status` |
| `catga_store.flow.due` | flows that are due |
| `catga_store.flow.oldest_due_age` | seconds for which the first of them has been due; 0 if there is none |
| `catga_store.flow.claimed` | flows under a claim that has not ended |
| `catga_store.flow.expired_leases` | flows whose claim has ended without a write of its owner |
| `catga_store.wait.pending` | wait conditions that have not ended |
| `catga_store.wait.overdue` | those of them whose deadline has passed |
| `catga_store.wait.due` | wait conditions that `claim_due` acts upon now |

Each has the class of the store as `catga_store.store`, and the attributes that were passed. A status is
in lower case; for a type that has flows every status is reported, so that one falls to 0.
"""

from catga_store.telemetry.gauges import observe_stats
from catga_store.telemetry.gauges import observe_stats_async
from catga_store.telemetry.operations import instrument
from catga_store.telemetry.operations import uninstrument

__all__ = ["instrument", "observe_stats", "observe_stats_async", "uninstrument"]
