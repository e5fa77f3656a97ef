"""Commands on wait conditions: `waits`, `complete`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import print_json_list
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import one_of
from catga_store.cli.store_options import open_existing
from catga_store.model.documents import children_documents
from catga_store.model.documents import completion_document
from catga_store.model.documents import wait_document
from catga_store.protocol.masking import shown

__all__ = ["complete", "waits"]

_PAGE = 500


@guarded
def waits(
    correlation_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Show this wait condition and its children."),
    ] = None,
    *,
    store: StoreOption = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            metavar="OUTCOME",
            help="Only conditions with this outcome: pending, satisfied, timed_out or cancelled.",
            autocompletion=one_of(cs.WaitOutcome),
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="FLOW_ID", help="Only conditions whose parent is this flow."),
    ] = None,
    overdue: Annotated[
        bool,
        typer.Option(
            "--overdue", help="Only pending conditions whose deadline has passed, oldest first."
        ),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of conditions.")] = 50,
    cursor: Annotated[
        str | None,
        typer.Option(help="Continue at the cursor of an earlier listing with the same filters."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all conditions.")] = False,
    as_json: AsJson = False,
) -> None:
    """List wait conditions, newest first, or show one with the results of its children.

    `--json`: `{"wait_conditions": [{"correlation_id", "parent_flow_id", "wait_type", "outcome", "children",
    "completed", "created_at", "deadline", "version"}, …], "cursor": text or null}`; each condition also has
    `"unreadable"`: null, or the reason why the condition cannot be read; in that case, all other fields except
    `"correlation_id"` are null. For one condition: that object with `"results": [{"child", "completed",
    "success", "result", "error"}, …]`. Exits with status 1 if there is no such condition.
    """
    with open_existing(store) as opened:
        if correlation_id is not None:
            wait = opened.get_wait_condition(correlation_id)
            if wait is None:
                leave(
                    f"wait condition {shown(correlation_id)} not found: it was never set, was cleared, or has"
                    " expired",
                    NO,
                )

            _show(wait, as_json=as_json)
            return

        left: list[str | None] = [cursor]

        def listed() -> Iterator[cs.WaitCondition]:
            if overdue:
                yield from opened.get_timed_out_wait_conditions(limit=None if everything else limit)
                return

            while True:
                page = opened.query_wait_conditions(
                    outcome=None if outcome is None else _outcome(outcome),
                    parent_flow_id=parent,
                    limit=_PAGE if everything else limit,
                    cursor=left[0],
                )
                left[0] = page.cursor
                yield from page
                if left[0] is None or not everything:
                    return

        if as_json:
            documents = map(wait_document, listed())
            print_json_list("wait_conditions", documents, lambda: {"cursor": left[0]})
            return

        columns = (
            *("WAIT", "PARENT", "TYPE", "OUTCOME", "COMPLETED", "CREATED", "DEADLINE", "ERROR"),
        )
        print_rows(columns, map(_line, listed()))

    if left[0] is not None:
        complain(
            f"More conditions match the filters; to see them, pass --all or --cursor {left[0]}"
        )


def _line(wait: cs.WaitCondition) -> tuple[str, ...]:
    if wait.unreadable is not None:
        return (wait.correlation_id, "-", "-", "UNREADABLE", *("-",) * 3, wait.unreadable)

    return (
        wait.correlation_id,
        wait.parent_flow_id or "-",
        wait.wait_type.name,
        wait.outcome.name,
        f"{wait.completed_count}/{len(wait.flow_ids)}",
        when(wait.created_at),
        when(wait.deadline) or "-",
        "",
    )


def _outcome(text: str) -> cs.WaitOutcome:
    try:
        return cs.WaitOutcome[text.upper()]
    except KeyError:
        names = ", ".join(outcome.name.lower() for outcome in cs.WaitOutcome)
        message = f"unknown outcome {shown(text)}: expected one of {names}"
        raise cs.UsageError(message) from None


def _show(wait: cs.WaitCondition, *, as_json: bool) -> None:
    children = children_documents(wait)
    if as_json:
        print_json({**wait_document(wait), "results": children})
        return

    for name, value in wait_document(wait).items():
        if value is not None:
            shown = when(value) if hasattr(value, "tzinfo") else escaped(str(value))
            say(f"{name + ':':<16}{shown}")

    rows = [(child["child"], *_result(child)) for child in children]
    print_rows(("CHILD", "COMPLETED", "RESULT"), rows)


def _result(child: dict[str, Any]) -> tuple[str, str]:
    if "unreadable" in child:
        return "UNREADABLE", child["unreadable"]

    if not child["completed"]:
        return "-", ""

    return (
        ("ok", json.dumps(child["result"]))
        if child["success"]
        else ("FAILED", child["error"] or "")
    )


@guarded
def complete(
    correlation_id: Annotated[str, typer.Argument(metavar="WAIT_ID")],
    child: Annotated[str, typer.Argument(metavar="CHILD_ID")],
    *,
    store: StoreOption = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Record that the child has failed.")
    ] = False,
    result: Annotated[
        str | None, typer.Option(metavar="JSON", help="The result of the child, as JSON.")
    ] = None,
    error: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why the child has failed; implies --failed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record the completion of a wait condition's child, such as an approval by a person.

    A repeated call changes nothing. Exits with status 1 if the condition has ended or does not wait for this
    child.

    `--json`: `{"accepted", "duplicate", "now_satisfied", "outcome"}`; `outcome` is null if the condition has
    not been set yet; the store keeps the completion until it is.
    """
    try:
        answer = None if result is None else json.loads(result)
    except ValueError as wrong:
        message = (
            f"--result: expected JSON, got {shown(result)} ({wrong}); enclose a string in "
            "quotation marks: '\"text\"'"
        )
        raise cs.UsageError(message) from wrong

    with open_existing(store) as opened:
        done = opened.complete_child(
            correlation_id,
            child,
            success=not failed and error is None,
            result=answer,
            error=error,
        )

    outcome = None if done.outcome is None else done.outcome.name
    if as_json:
        print_json(completion_document(done))
    else:
        say(_said(done, outcome))

    if not (done.accepted or done.duplicate):
        raise typer.Exit(NO)


def _said(done: cs.Completion, outcome: str | None) -> str:
    if done.duplicate:
        return "already recorded"

    if not done.accepted:
        if outcome == cs.WaitOutcome.PENDING.name:
            return "not recorded: the wait condition is not waiting for this child"

        return f"not recorded: the wait condition has already ended ({outcome})"

    if outcome is None:
        return (
            "recorded: the wait condition has not been set yet, so the store keeps the completion "
            "until it is"
        )

    return (
        "recorded: the wait condition has ended"
        if done.now_satisfied
        else "recorded: the wait condition is still pending"
    )
