"""The command `copy`."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from typing import Annotated
from typing import Any

import typer
from attrs import asdict
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn

import catga_store as cs
from catga_store.cli.guard import NO
from catga_store.cli.guard import USAGE
from catga_store.cli.guard import complain
from catga_store.cli.guard import guarded
from catga_store.cli.guard import leave
from catga_store.cli.opening import AsJson
from catga_store.cli.opening import open_existing
from catga_store.cli.opening import open_laid_out
from catga_store.cli.opening import without_password
from catga_store.cli.output import print_json
from catga_store.conversation import ask
from catga_store.copying import Difference
from catga_store.copying import compare
from catga_store.keys import WAIT
from catga_store.records import Count
from catga_store.records import Filter

__all__ = ["copy"]

_MOST_DIFFERENCES = 1000
_MOST_SHOWN = 20


@guarded
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store to read.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The store to write; it may be new.")],
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the target has already.")
    ] = False,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Of a new target; else what it has, or 1.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare every record at the end.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Copy every record to another store, with versions, times, waits and early completions.

    Stop the workers of both first: what is written meanwhile may be missed. What the target has
    already is skipped, so a copy that broke off is called again and goes on. Claims are not copied:
    what was claimed is due. At the end every record is read back and compared; exits with 1 if one
    differs.

    `--json`: `{"flows", "wait_conditions", "progress", "completions", "skipped": numbers, "verified":
    true, false or null, "differences": [{"kind", "id", "step", "what"}, …]}` (at most 1,000).
    """
    if source == target:
        leave("FROM and TO are the same store: nothing was copied", USAGE)

    options: dict[str, Any] = {} if partitions is None else {"partitions": partitions}
    with ExitStack() as stack:
        from_store = stack.enter_context(open_existing(source))
        to_store = stack.enter_context(open_laid_out(target, **options))
        report = _copied(from_store, to_store, overwrite=overwrite, quiet=as_json)
        found = compare(from_store, to_store) if verify else iter(())
        differences = list(islice(found, _MOST_DIFFERENCES))

    verified = not differences if verify else None
    if as_json:
        documents = [{**one.key._asdict(), "what": one.what} for one in differences]
        print_json({**asdict(report), "verified": verified, "differences": documents})
    else:
        _tell(report, differences, without_password(target), verified=verified)

    if differences:
        raise typer.Exit(NO)


def _copied(source: cs.Store, target: cs.Store, *, overwrite: bool, quiet: bool) -> cs.CopyReport:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return cs.copy(source, target, overwrite=overwrite)

    now_ms = source._operations.settings.now_ms()  # noqa: SLF001  nothing public counts conditions
    total = source.count_flows()
    total += source._run(ask(Count(Filter(WAIT), now_ms)))  # noqa: SLF001  as above
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("copying", total=total)

        def advance(report: cs.CopyReport) -> None:
            done = report.flows + report.wait_conditions + report.skipped
            # Skipped ForEach progress is in the sum and not in the total.
            progress.update(task, completed=min(done, total))

        return cs.copy(source, target, overwrite=overwrite, on_progress=advance)


def _tell(
    report: cs.CopyReport, differences: list[Difference], target: str, *, verified: bool | None
) -> None:
    typer.echo(
        f"Copied to {target}: {report.flows} flows, {report.wait_conditions} wait conditions,"
        f" {report.progress} ForEach progress records, {report.completions} early completions;"
        f" {report.skipped} were there already."
    )
    if verified:
        typer.echo("Verified: every record was read back and is as in the source.")

    for one in differences[:_MOST_SHOWN]:
        complain(f"{one.key} differs from the source: {one.what}")

    if len(differences) > _MOST_SHOWN:
        complain(f"… and {len(differences) - _MOST_SHOWN} more; --json lists up to 1,000")

    if differences:
        complain(
            "Was it there before, or written to meanwhile? --overwrite replaces what the target has."
        )
