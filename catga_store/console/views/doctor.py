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
from catga_store.console.views.bulk import OPERATIONS
from catga_store.core.diagnosis import CODES
from catga_store.model.diagnosis import Severity
from catga_store.model.documents import diagnosis_document
from catga_store.stores.findings import Finding

__all__ = ["show"]

_SHOWN = 50
_LOOKED_AT = 500
"""How many flows one page looks at."""
_LEVELS = ("problem", "warning", "unknown", "info", "ok")


async def show(request: Request) -> Response:
    """Diagnose a page of live flows, and look at the store from the outside."""
    context = context_of(request)
    query = request.query_params
    asked = FlowQuery.of(query)
    cursor = query.get("cursor") or None
    findings = {code for code in query.getlist("finding") if code}
    severity: Severity = "info" if findings else "warning"
    found = await context.store.diagnose_all(
        limit=_SHOWN, most=_LOOKED_AT, cursor=cursor, severity=severity, **asked.filters()
    )
    checks: list[Finding] = []
    if (
        cursor is None
        and not (asked.texts or asked.tags or findings)
        and context.doctors is not None
    ):
        checks = await to_thread.run_sync(_examined, context.doctors)

    listed = [one for one in found if not findings or findings & set(one.codes)]
    document: dict[str, Any] = {
        "flows": [diagnosis_document(one) for one in listed],
        "cursor": found.cursor,
        "store": [asdict(one) for one in checks],
    }
    return reply(
        request,
        "doctor.html",
        document,
        asked=asked,
        checks=checks,
        found=listed,
        is_first=cursor is None,
        codes=CODES,
        findings=sorted(findings),
        operations=OPERATIONS,
    )


def _examined(doctors: Doctors) -> list[Finding]:
    findings: Iterable[Finding] = doctors()
    return sorted(findings, key=lambda one: _LEVELS.index(one.level))
