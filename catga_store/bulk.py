"""The blocking API: `Bulk`. Generated from `aio.py` by `tests/meta/generate_api.py`."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Unpack

from catga_store.core import actions
from catga_store.core import bulk
from catga_store.core import writes
from catga_store.core.base_store import Runner
from catga_store.core.context import Context
from catga_store.core.options import BulkOptions
from catga_store.model.bulk import BulkReport
from catga_store.model.tags import NO_TAGS
from catga_store.model.tags import tag_changes

__all__ = ["Bulk"]


class Bulk:
    """Operations on many flows of a store; each flow is changed in its own version-checked commit.

    If another writer has changed a flow since it was listed, the operation reads the flow again and changes
    it only if it still matches. `retry`, `wake`, `tag` and `purge` skip flows that a worker has claimed. Each
    flow that matched is either changed or counted in the report's `skipped`, by reason. Flows that begin to
    match while the operation runs may be missed, as in `query_flows`.

    If an error occurs or the process dies, the flows that were already changed stay changed. Run the
    operation again: these flows no longer match, or are skipped. To continue after the flows that were
    already checked, pass the `cursor` of the last report that `progress` received.

    All operations take these options:

    - `dry_run=True` changes nothing and counts the flows that would be changed
    - `limit` is the maximum number of flows to check
    - `cursor` continues where an earlier report ended
    - `per_second` limits the rate (default: 1,000 changes per second; `None`: no limit)
    - `progress` is a function that is called with the current report after each page of up to 100 flows

    Each page costs two round trips, and each change costs one. A dry run costs one round trip per page, or
    two with `ids`. With `findings`, a page costs as much as `diagnose_all`.

    >>> from catga_store import MemoryStore, FlowSnapshot
    >>> store = MemoryStore()
    >>> for number in range(3):
    ...     store.create(FlowSnapshot(f"order-{number}", state={}))
    >>> order = store.claim("order-2", owner="worker-1")
    >>> report = store.bulk(id_prefix="order-").purge(live=True)
    >>> print(report.changed, report.skipped, report.first_skipped)
    2 {'is claimed': 1} {'is claimed': ('order-2',)}
    """

    def __init__(self, run: Runner, context: Context, selection: bulk.Selection) -> None:
        self._run = run
        self._context = context
        self._selection = selection

    def cancel(self, reason: str, **options: Unpack[BulkOptions]) -> BulkReport:
        """End live flows as `CANCELLED`, with `reason` as their error; see `Store.cancel_flow`."""
        action = actions.CancelFlow(actions.check_reason(reason))
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def retry(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Run failed or cancelled flows again; see `Store.retry_flow`."""
        action = actions.RetryFlow()
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def wake(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Make live flows due now, whatever they are waiting for; see `Store.wake_flow`."""
        action = actions.WakeFlow()
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def release(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Take claims away from their owners; see `Store.release_flow`."""
        action = actions.ReleaseFlow()
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def tag(
        self,
        tags: Mapping[str, str] = NO_TAGS,
        *,
        remove: Iterable[str] = (),
        **options: Unpack[BulkOptions],
    ) -> BulkReport:
        """Add or replace these tags, and remove the tags whose keys are in `remove`.

        Other tags are kept. Flows that have ended are tagged, too. A flow is skipped if a worker has claimed
        it or if it would have more than 16 tags. Raises `UsageError`, before anything is read, if a tag is
        invalid, if there is nothing to set or remove, or if a tag is both set and removed.
        """
        action = actions.TagFlow(*tag_changes(tags, remove))
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def purge(self, *, live: bool = False, **options: Unpack[BulkOptions]) -> BulkReport:
        """Delete flows that have ended, with their progress and parts; with `live`, also delete live flows.

        A wait condition that has the finding `parent_gone` is cleared.
        """
        writes.check_flag(live, "live")
        action = actions.PurgeFlow(live)
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))


Bulk.__module__ = "catga_store"
