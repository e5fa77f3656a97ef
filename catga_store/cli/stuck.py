"""Commands that say what is wrong with flows: `stuck`, `why`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from typing import Any

import typer
from rich.text import Text

import catga_store as cs
from catga_store import codec
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.filters import Finding
from catga_store.cli.filters import with_filters
from catga_store.cli.filters import with_options
from catga_store.cli.output import counted
from catga_store.cli.output import escaped
from catga_store.cli.output import print_hanging
from catga_store.cli.output import print_json
from catga_store.cli.output import print_json_list
from catga_store.cli.output import print_rows
from catga_store.cli.output import say
from catga_store.cli.output import stdout
from catga_store.cli.output import when
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.cli.store_options import span_of
from catga_store.model.documents import diagnosis_document

__all__ = ["THRESHOLDS", "stuck", "thresholds_of", "types_in", "why"]

_STYLES = {"problem": "bold red", "warning": "yellow", "info": "dim"}

THRESHOLDS: dict[str, tuple[Any, Any]] = {
    "late": (
        Annotated[
            str,
            typer.Option(
                metavar="SPAN",
                help=(
                    "Report flows that have been due, or whose lease has been expired, for "
                    "at least this long."
                ),
            ),
        ],
        "5m",
    ),
    "idle": (
        Annotated[
            str,
            typer.Option(
                metavar="SPAN",
                help="Report flows that have waited without a deadline for at least this long.",
            ),
        ],
        "1d",
    ),
    "tries": (
        Annotated[
            int,
            typer.Option(
                "--tries",
                min=1,
                help="Report flows with at least this many attempts at one step.",
            ),
        ],
        5,
    ),
    "types": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--types",
                metavar="MODULE",
                help=(
                    "Also find flows whose type version is later than the version of the "
                    "type in this module, such as myapp.flows."
                ),
            ),
        ],
        None,
    ),
}


def thresholds_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options of `Store.diagnose`."""
    types = [kind for name in given["types"] or () for kind in types_in(name)]
    return {
        "late": span_of("--late", given["late"]),
        "idle": span_of("--idle", given["idle"]),
        "attempts": given["tries"],
        "types": types,
    }


def types_in(name: str) -> list[type]:
    """The classes of a module that are states with a name."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise

        leave(
            (
                f"module {name!r} was found neither in the current directory, {Path.cwd()}, nor "
                "on Python's module search path"
            ),
            USAGE,
        )

    return [
        one
        for one in vars(module).values()
        if isinstance(one, type) and codec.is_state_type(one) and codec.type_name(one)
    ]


with_thresholds = with_options("thresholds", THRESHOLDS, thresholds_of)


@guarded
@with_filters
@with_thresholds
def stuck(
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    finding: Finding = None,
    thresholds: dict[str, Any],
    info: Annotated[
        bool, typer.Option("--info", help="Also show findings that may be intentional.")
    ] = False,
    ids: Annotated[
        bool,
        typer.Option("--ids", help="Print only the ids, one per line, for use by other commands."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the flows that will not continue without help, each with the reason; changes nothing.

    Reads all live flows and pending wait conditions, and exits with status 1 if any is stuck. Records that
    cannot be read are listed, too; a wait condition is listed under its own id. You can pass the code of a
    finding to the `--finding` option of `retry`, `cancel`, `wake`, `release` and `purge`.

    `--json`: `{"stuck": [{"flow_id", "correlation_id", "severity", "findings": [{"code", "severity",
    "text", "advice"}, …], "flow": the fields of `ls`, or null if there is no such flow}, …], "count":
    number}`.
    """
    number = 0

    def found(opened: cs.Store) -> Iterator[cs.Diagnosis]:
        nonlocal number
        for one in _all(opened, {**filters, **thresholds}, info=info):
            if not finding or set(finding) & set(one.codes):
                number += 1
                yield one

    with open_existing(store) as opened:
        _check_codes(opened, finding or [])
        if as_json:
            documents = map(diagnosis_document, found(opened))
            print_json_list("stuck", documents, lambda: {"count": number})
        elif ids:
            for one in found(opened):
                say(escaped(one.flow_id))
        else:
            rows = [row for one in found(opened) for row in _rows(one)]
            if rows:
                print_rows(("FLOW", "SEVERITY", "FINDING", "REASON"), rows)

            complain(f"{counted(number, 'flow')} stuck" if number else "No flow is stuck.")

    if number:
        raise typer.Exit(NO)


def _check_codes(opened: cs.Store, codes: list[str]) -> None:
    if codes:
        opened.bulk(findings=codes)  # raises for one that is not known


def _all(opened: cs.Store, arguments: dict[str, Any], *, info: bool) -> Iterator[cs.Diagnosis]:
    cursor: str | None = None
    while True:
        page = opened.diagnose_all(
            cursor=cursor, severity="info" if info else "warning", **arguments
        )
        yield from page
        cursor = page.cursor
        if cursor is None:
            return


def _rows(one: cs.Diagnosis) -> Iterator[tuple[str, ...]]:
    for finding in one.findings:
        yield one.flow_id, finding.severity, finding.code, finding.text


@guarded
@with_thresholds
def why(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    thresholds: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Show why a flow does not continue, and what can be done about it; changes nothing.

    Exits with status 1 if there is a warning, a problem, or no such flow.

    `--json`: one object, as in the list of `stuck`.
    """
    with open_existing(store) as opened:
        try:
            found = opened.diagnose(flow_id, **thresholds)
        except cs.FlowNotFoundError as error:
            leave(str(error), NO)

    if as_json:
        print_json(diagnosis_document(found))
    else:
        _print(found)

    if found.severity in ("warning", "problem"):
        raise typer.Exit(NO)


def _print(found: cs.Diagnosis) -> None:
    say(_state_of(found))
    console = stdout()
    for finding in found.findings:
        style = _STYLES[finding.severity]
        text = Text(escaped(f"it {finding.text}"), style=style)
        lines = [text, Text(f"→ {finding.advice}"), Text(finding.code, "dim")]
        print_hanging(console, Text(finding.severity, style), lines, 9)

    if not found.findings:
        say("The command found no problem with this flow.")


def _state_of(found: cs.Diagnosis) -> str:
    """Say in a line what the flow is."""
    flow = found.flow
    name = f"flow {found.flow_id!r}"
    if "unreadable" in found.codes and (flow is None or flow.unreadable):
        return f"{name} cannot be read"

    if flow is None:
        return f"{name} does not exist"

    words = [f"{name} is {flow.status.name} at {flow.position}, version {flow.version}"]
    if flow.owner:
        words.append(f"claimed by {flow.owner!r}")

    words.append(f"due {when(flow.due_at)}" if flow.due_at else "not due")
    if found.correlation_id:
        words.append(f"suspended on {found.correlation_id!r}")

    if flow.attempts:
        words.append(counted(flow.attempts, "attempt"))

    return ", ".join(words)
