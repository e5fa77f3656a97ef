"""Records as JSON data, as the command line and the console show them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC
from datetime import datetime
from typing import Any

from catga_store.errors import CorruptRecordError
from catga_store.model.bulk import BulkReport
from catga_store.model.diagnosis import Diagnosis
from catga_store.model.flows import FlowSnapshot
from catga_store.model.flows import FlowSummary
from catga_store.model.flows import FlowVersion
from catga_store.model.parts import Part
from catga_store.model.progress import ForEachProgress
from catga_store.model.stats import StoreStats
from catga_store.model.waits import ChildResult
from catga_store.model.waits import Completion
from catga_store.model.waits import WaitCondition

__all__ = [
    "bulk_document",
    "children_documents",
    "completion_document",
    "diagnosis_document",
    "flow_document",
    "json_value",
    "part_document",
    "progress_document",
    "result_document",
    "stats_document",
    "summary_document",
    "unreadable_document",
    "version_document",
    "wait_document",
]


def json_value(value: object) -> object:
    """Return what a document holds besides JSON data as JSON data: times and bytes."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()

    if isinstance(value, bytes):  # as the state of a flow
        return {"base64": base64.b64encode(value).decode()}

    raise TypeError(value)


def summary_document(flow: FlowSummary | FlowSnapshot[Any]) -> dict[str, Any]:
    """Return a flow without its state; of one that cannot be read, only its id and why."""
    document = _summary_document(flow)
    if isinstance(flow, FlowSummary) and flow.unreadable is not None:
        return {**_known(document, "flow_id"), "tags": {}, "unreadable": flow.unreadable}

    return document


def _known(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The document of a record of which only this is known."""
    return {key: value if key == name else None for key, value in document.items()}


def _summary_document(flow: FlowSummary | FlowSnapshot[Any]) -> dict[str, Any]:
    return {
        "flow_id": flow.flow_id,
        "type": flow.type_name or None,
        "status": flow.status.name,
        "position": str(flow.position),
        "version": flow.version,
        "revision": flow.revision,
        "created_at": flow.created_at,
        "updated_at": flow.updated_at,
        "due_at": flow.due_at,
        "expires_at": flow.expires_at,
        "owner": flow.owner,
        "attempts": flow.attempts,
        "error": flow.error,
        "tags": dict(flow.tags),
    }


def flow_document(
    flow: FlowSnapshot[Any],
    wait: WaitCondition | None,
    progress: Mapping[int, ForEachProgress],
) -> dict[str, Any]:
    """Return a flow without its state, with what it waits for and its ForEach progress."""
    loaded = flow._loaded
    return {
        **summary_document(flow),
        "type_version": loaded.head.type_version if loaded is not None and flow.type_name else None,
        "reports_to": flow.reports_to,
        "wait_condition": None if wait is None else wait_document(wait),
        "progress": [progress_document(step, one) for step, one in progress.items()],
    }


def unreadable_document(step: int, error: CorruptRecordError) -> dict[str, Any]:
    """Return the ForEach progress of a step that cannot be read."""
    return {"step": step, "unreadable": str(error)}


def progress_document(step: int, progress: ForEachProgress) -> dict[str, Any]:
    """Return the numbers of the ForEach progress of a step."""
    return {
        "step": step,
        "version": progress.version,
        "processed": len(progress.processed_indices),
        "failed": len(progress.failed_indices),
        "last": progress.last_processed_index,
    }


def part_document(part: Part[Any]) -> dict[str, Any]:
    """Return a part without its body."""
    return {
        "name": part.name,
        "version": part.version,
        "type": part.type_name or None,
        "tag": part.tag or None,
        "updated_at": part.updated_at,
    }


def version_document(one: FlowVersion) -> dict[str, Any]:
    """Return a version of the history of a flow."""
    return {
        "version": one.version,
        "status": one.status.name,
        "position": str(one.position),
        "owner": one.owner,
        "error": one.error,
        "updated_at": one.updated_at,
        "size": one.size,
    }


def wait_document(wait: WaitCondition) -> dict[str, Any]:
    """Return a wait condition with the number of its children; of one that cannot be read, its id and why."""
    document = {
        "correlation_id": wait.correlation_id,
        "parent_flow_id": wait.parent_flow_id,
        "wait_type": wait.wait_type.name,
        "outcome": wait.outcome.name,
        "children": len(wait.flow_ids),
        "completed": wait.completed_count,
        "created_at": wait.created_at,
        "deadline": wait.deadline,
        "version": wait.version,
    }
    if wait.unreadable is not None:
        return {**_known(document, "correlation_id"), "unreadable": wait.unreadable}

    return document


def completion_document(completion: Completion) -> dict[str, Any]:
    """Return what the completion of a child has done."""
    return {
        "accepted": completion.accepted,
        "duplicate": completion.duplicate,
        "now_satisfied": completion.now_satisfied,
        "outcome": None if completion.outcome is None else completion.outcome.name,
    }


def children_documents(wait: WaitCondition, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the first children of a wait condition; one whose result cannot be read says so."""
    documents: list[dict[str, Any]] = []
    for child in wait.flow_ids[:limit]:
        try:
            documents.append(result_document(child, wait.results.get(child)))
        except CorruptRecordError as error:
            nothing = result_document(child, None)
            documents.append({**nothing, "completed": True, "unreadable": str(error)})

    return documents


def result_document(child: str, result: ChildResult | None) -> dict[str, Any]:
    """Return a child of a wait condition, with how it completed, if it has."""
    return {
        "child": child,
        "completed": result is not None,
        "success": None if result is None else result.success,
        "result": None if result is None else result.result,
        "error": None if result is None else result.error,
    }


def diagnosis_document(one: Diagnosis) -> dict[str, Any]:
    """Return what was found about a flow."""
    return {
        "flow_id": one.flow_id,
        "correlation_id": one.correlation_id,
        "severity": one.severity,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity,
                "text": finding.text,
                "advice": finding.advice,
            }
            for finding in one.findings
        ],
        "flow": None if one.flow is None else summary_document(one.flow),
    }


def bulk_document(report: BulkReport) -> dict[str, Any]:
    """Return what an operation on many flows has done."""
    return {
        "matched": report.matched,
        "changed": report.changed,
        "skipped": dict(report.skipped),
        "first_changed": list(report.first_changed),
        "first_skipped": {reason: list(ids) for reason, ids in report.first_skipped.items()},
        "cursor": report.cursor,
        "dry_run": report.dry_run,
    }


def stats_document(stats: StoreStats) -> dict[str, Any]:
    """Return the numbers of a store, by type and by the names of statuses."""
    age = stats.oldest_due_age
    return {
        "at": stats.at,
        "total": stats.total,
        "flows": {
            name: {status.name: number for status, number in by_status.items()}
            for name, by_status in stats.flows.items()
        },
        "due": stats.due,
        "oldest_due_seconds": None if age is None else age.total_seconds(),
        "claimed": stats.claimed,
        "expired_leases": stats.expired_leases,
        "waits_pending": stats.waits_pending,
        "waits_overdue": stats.waits_overdue,
        "waits_due": stats.waits_due,
        "unreadable": stats.unreadable,
    }
