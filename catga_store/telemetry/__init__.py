"""OpenTelemetry for stores: a span for each operation, metrics, and gauges. Requires the `otel` extra.

Until you call `instrument`, nothing is measured or imported, and each operation costs one additional
attribute lookup. Spans and metrics go to the global providers, or to the providers that you pass.

| span `catga_store.<operation>` | |
|---|---|
| `catga_store.operation` | `update`, `claim_due`, `session_commit`, `transact`, … |
| `catga_store.store` | the class of the store, such as `SQLiteStore` |
| `catga_store.api` | `blocking` or `async` |
| `catga_store.records` | the number of records read or listed, plus the number of changes sent |
| `catga_store.key` | the record, if the operation concerned exactly one: `flow 'order-42'` |
| `catga_store.outcome` | `ok`, `conflict`, `uncertain`, `unavailable`, `usage`, … |

The other outcomes are `config`, `corrupt`, `cancelled` and, for an exception that does not come from this
library, `error`; the function of a transaction may raise such an exception. `claim_due` with `wait` is
reported as the operation `claim_when_due`. Most of its duration is waiting time, as for `wait_due` and `watch`.

For every outcome except `ok`, `conflict` and `cancelled`, which programs expect, the span records the
exception and has the status ERROR. Operations inside the function of a transaction become child spans.

| metric | counts |
|---|---|
| `catga_store.operation.duration` | a histogram of seconds, by operation and outcome |
| `catga_store.conflicts` | changes that a store refused, including the changes of commits that were retried |
| `catga_store.retries` | commits that the same operation sent again after a refusal |
| `catga_store.uncertain_commits` | commits whose outcome is not known |
| `catga_store.claimed_flows` | flows that were given to a worker |
| `catga_store.due_conditions` | wait conditions that have ended and whose parent was notified |

Each metric has the operation, the store and the API as attributes. Retries inside the client of a server
are not counted.

`observe_stats` and `observe_stats_async` report the numbers of `Store.stats` as gauges:

| gauge | value |
|---|---|
| `catga_store.flow.count` | flows, by `catga_store.flow.type` and `catga_store.flow.status` |
| `catga_store.flow.due` | flows that are due |
| `catga_store.flow.oldest_due_age` | seconds for which the oldest due flow has been due; 0 if no flow is due |
| `catga_store.flow.claimed` | flows with a claim that has not ended |
| `catga_store.flow.expired_leases` | flows whose claim has ended without a write by its owner |
| `catga_store.wait.pending` | wait conditions that have not ended |
| `catga_store.wait.overdue` | pending wait conditions whose deadline has passed |
| `catga_store.wait.due` | wait conditions that `claim_due` would handle now |

Each gauge has the class of the store as `catga_store.store`, and the attributes that you pass. Statuses are
in lower case. For a type that has flows, every status is reported, so a status without flows falls to 0.
"""

from catga_store.telemetry.gauges import observe_stats
from catga_store.telemetry.gauges import observe_stats_async
from catga_store.telemetry.operations import instrument
from catga_store.telemetry.operations import uninstrument

__all__ = ["instrument", "observe_stats", "observe_stats_async", "uninstrument"]
