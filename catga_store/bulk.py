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
    """Operations on many flows of a store, each by a commit of its own, checked by the flow's version.

    A flow that another writer has changed since it was listed is looked at again, and is changed only if
    it still matches; a flow that a worker holds is skipped by `retry`, `wake` and `purge`. Every flow that
    matched is either changed or counted in the report's `skipped`, by the reason. Flows that begin to match
    while the operation runs may be missed, as in `query_flows`.

    The flows that were changed before an error, or before the process died, stay changed: run the operation
    again. What is changed no longer matches, or is skipped. To pass over what was looked at, pass the
    `cursor` of the last report to `progress`.

    All operations take these options: `dry_run=True` changes nothing and counts what would be changed;
    `limit` is the most flows to look at; `cursor` continues where a report has ended; `per_second` bounds
    the pace (default 1,000 changes a second, `None`: no bound); `progress` is called with the report so
    far after each page of up to 100 flows. Each page costs two round trips and each change one; a dry
    run costs one for each page, two with `ids`; `findings` cost what `diagnose_all` does.

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
        """Let flows run on that have failed or were cancelled; see `Store.retry_flow`."""
        action = actions.RetryFlow()
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def wake(self, **options: Unpack[BulkOptions]) -> BulkReport:
        """Let live flows be due now, whatever they wait for; see `Store.wake_flow`."""
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
        """Add or replace these tags, and remove those whose keys are in `remove`.

        Other tags stay. Flows that have ended are tagged, too. A flow that a worker holds is skipped, and so
        is one that would have more than 16 tags. `UsageError`, before anything is read, for tags that no
        flow can have, for none, and for one that is to be set and removed.
        """
        action = actions.TagFlow(*tag_changes(tags, remove))
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))

    def purge(self, *, live: bool = False, **options: Unpack[BulkOptions]) -> BulkReport:
        """Delete flows that have ended, with their progress and parts; with `live`, live ones, too.

        A condition with the finding `parent_gone` is cleared.
        """
        writes.check_flag(live, "live")
        action = actions.PurgeFlow(live)
        return self._run(bulk.run_bulk(self._context, self._selection, action, options))


Bulk.__module__ = "catga_store"
