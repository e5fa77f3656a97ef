"""The page "Doctor": what is wrong with flows, and with the server or file that keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anyio import to_thread
from attrs import asdict
from starlette.requests import Request
from starlette.responses import Response

from catga_store.console.context import Doctors
from catga_store.console.context import context_of
from catga_store.console.forms import FlowQuery
from catga_store.console.rendering import reply
from catga_store.model.documents import diagnosis_document
from catga_store.stores.findings import Finding

__all__ = ["show"]

_SHOWN = 50
_LOOKED_AT = 1000
"""How many flows one page looks at."""
_LEVELS = ("problem", "warning", "unknown", "info", "ok")


async def show(request: Request) -> Response:
    """Diagnose a page of live flows, and look at the store from the outside."""
    context = context_of(request)
    query = request.query_params
    asked = FlowQuery.of(query)
    cursor = query.get("cursor") or None
    found = await context.store.diagnose_all(
        limit=_SHOWN, most=_LOOKED_AT, cursor=cursor, **asked.filters()
    )
    checks: list[Finding] = []
    if cursor is None and not asked.texts and context.doctors is not None:
        checks = await to_thread.run_sync(_examined, context.doctors)

    document: dict[str, Any] = {
        "flows": [diagnosis_document(one) for one in found],
        "cursor": found.cursor,
        "store": [asdict(one) for one in checks],
    }
    return reply(
        request,
        "doctor.html",
        document,
        asked=asked,
        checks=checks,
        found=found.items,
        is_first=cursor is None,
    )


def _examined(doctors: Doctors) -> list[Finding]:
    findings: Iterable[Finding] = doctors()
    return sorted(findings, key=lambda one: _LEVELS.index(one.level))
