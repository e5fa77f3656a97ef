"""Operations on many flows: a dry run first, then as many flows as it has counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.console.forms import FlowQuery
from catga_store.console.forms import lines_of
from catga_store.console.forms import number
from catga_store.console.forms import tags_of
from catga_store.console.rendering import data
from catga_store.console.rendering import is_json
from catga_store.console.rendering import page
from catga_store.errors import UsageError
from catga_store.model.bulk import BulkReport
from catga_store.model.documents import bulk_document
from catga_store.protocol.masking import shown

__all__ = ["OPERATIONS", "plan", "run"]

OPERATIONS = {
    "retry": (
        "Retry: run failed and cancelled flows again, and reset the error and attempts of live "
        "flows"
    ),
    "wake": "Wake: make live flows due now",
    "release": "Release: end the claims of other owners",
    "tag": "Tag: set and remove tags",
    "cancel": "Cancel: end live flows",
    "purge": "Purge: delete flows that have ended",
}
_COUNTED = 10_000
"""How many flows a dry run looks at; a larger operation is several."""
_AT_ONCE = 1000
"""How many flows one request looks at, so that it ends in about a second."""


@frozen
class _Order:
    """What a form has ordered."""

    operation: str
    reason: str
    query: FlowQuery
    findings: tuple[str, ...]
    tags: Mapping[str, str]
    """What the operation "tag" sets, and the keys of what it removes."""
    remove: tuple[str, ...]

    @classmethod
    def of(cls, request: Request, fields: dict[str, Any]) -> _Order:
        operation = str(fields.get("operation", ""))
        if operation not in OPERATIONS:
            message = f"operation: expected one of {', '.join(OPERATIONS)}, got {shown(operation)}"
            raise UsageError(message)

        reason = str(fields.get("reason") or "").strip()
        if operation == "cancel" and not reason:
            message = (
                "reason: expected text, got nothing; the reason is stored as each flow's error"
            )
            raise UsageError(message)

        known = sorted({*FlowQuery.NAMES, "finding", "tag"})
        unknown = request.query_params.keys() - set(known)
        if unknown:  # a filter that is misspelt must not be one that is left out
            message = f"unknown filter {shown(min(unknown))}: expected one of {', '.join(known)}"
            raise UsageError(message)

        findings = tuple(filter(None, request.query_params.getlist("finding")))
        query = FlowQuery.of(request.query_params)
        tags, remove = tags_of(fields.get("tags")), lines_of(fields.get("remove"), "remove")
        return cls(operation, reason, query, findings, tags, tuple(remove))

    @property
    def query_text(self) -> dict[str, Any]:
        """The selection, for the addresses of the forms that follow."""
        return {**self.query.query, "finding": list(self.findings)}

    async def perform(
        self, request: Request, *, dry_run: bool, limit: int, cursor: str | None
    ) -> BulkReport:
        """Call the operation of the store. A selection without a filter is refused there."""
        bulk = context_of(request).store.bulk(findings=self.findings, **self.query.filters())
        options: dict[str, Any] = {"dry_run": dry_run, "limit": limit, "cursor": cursor}
        if self.operation == "cancel":
            return await bulk.cancel(self.reason, **options)

        if self.operation == "tag":
            return await bulk.tag(self.tags, remove=self.remove, **options)

        operation: Any = getattr(bulk, self.operation)
        report: BulkReport = await operation(**options)
        return report


async def plan(request: Request, fields: dict[str, Any]) -> Response:
    """Count what an operation would change: filters in the query; `operation` and what it needs are sent.

    That is `reason`, or `tags` and `remove`: as JSON an object and a list, in a form lines of `KEY=VALUE` and of
    keys.
    """
    order = _Order.of(request, fields)
    report = await order.perform(request, dry_run=True, limit=_COUNTED, cursor=None)
    if is_json(request):
        return data(bulk_document(report))

    return page(
        request,
        "bulk.html",
        order=order,
        report=report,
        title=OPERATIONS[order.operation],
        left=report.matched,
        totals={"changed": 0, "skipped": 0},
    )


async def run(request: Request, fields: dict[str, Any]) -> Response:
    """Perform an operation on at most `left` flows, the number that its dry run has looked at.

    A request takes up to 1,000 of them; the page has the button that continues.
    """
    order = _Order.of(request, fields)
    left = number(str(fields.get("left") or ""), "left", default=0)
    if left < 1:
        message = (
            f"left: expected the number of flows that the dry run matched (at least 1), got {left}"
        )
        raise UsageError(message)

    cursor = str(fields.get("cursor") or "") or None
    report = await order.perform(request, dry_run=False, limit=min(left, _AT_ONCE), cursor=cursor)
    if is_json(request):
        return data(bulk_document(report))

    totals = {
        "changed": report.changed + number(str(fields.get("changed") or ""), "changed", default=0),
        "skipped": sum(report.skipped.values())
        + number(str(fields.get("skipped") or ""), "skipped", default=0),
    }
    return page(
        request,
        "bulk.html",
        order=order,
        report=report,
        title=OPERATIONS[order.operation],
        left=0 if report.cursor is None else left - report.matched,
        totals=totals,
    )
