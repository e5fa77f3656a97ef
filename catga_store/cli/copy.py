"""The command `copy`."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from typing import Annotated
from typing import Any

import typer
from attrs import asdict

import catga_store as cs
from catga_store.cli.bars import bar
from catga_store.cli.exit_codes import CONFLICT
from catga_store.cli.exit_codes import INTERRUPTED
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import UNAVAILABLE
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import counted
from catga_store.cli.output import print_json
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import open_existing
from catga_store.cli.store_options import open_laid_out
from catga_store.copying import CopyDifference
from catga_store.copying import compare
from catga_store.protocol.conversation import ask
from catga_store.protocol.keys import WAIT
from catga_store.protocol.masking import mask_url
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import Filter

__all__ = ["copy"]

_MOST_DIFFERENCES = 1000
_MOST_SHOWN = 20
_CONTINUES = "run the same command again to continue"


@guarded
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store to read from.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TO", help="The store to write to, which is created if it does not exist."
        ),
    ],
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the records that the target already has.")
    ] = False,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of partitions in a target that does not exist yet; the default is 1.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="After the copy, read back every record and compare it with the source.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Copy every record to another store: flows, wait conditions, progress and pending completions.

    Versions and times are preserved. Each URL may name its own codecs and keys. Stop the workers of both stores
    first: records written during the copy may be missed. Records that the target already has are skipped, so
    you can continue an interrupted copy by running the command again. Claims are not copied: a claimed flow is
    due in the target. At the end, every record is read back and compared; the command exits with status 1 if a
    record differs or could not be decoded.

    `--json`: `{"flows", "wait_conditions", "progress", "completions", "skipped", "unreadable": numbers,
    "verified": true, false or null, "differences": [{"kind", "id", "step", "name", "what"}, …]}` (at most 1,000).
    """
    if source == target:
        leave("FROM and TO are the same store; nothing was copied", USAGE)

    if target.startswith("memory:"):
        leave(
            f"{mask_url(target)} is a memory store, which is lost when this command ends; "
            "copy to another kind of store",
            USAGE,
        )

    options: dict[str, Any] = {} if partitions is None else {"partitions": partitions}
    with ExitStack() as stack:
        from_store = stack.enter_context(open_existing(source))
        to_store = stack.enter_context(open_laid_out(target, **options))
        try:
            report, differences = _copied(
                from_store, to_store, overwrite=overwrite, verify=verify, quiet=as_json
            )
        except KeyboardInterrupt:
            leave(f"interrupted; {_CONTINUES}", INTERRUPTED)
        except cs.StoreUnavailableError as error:
            leave(f"{error}; earlier pages were copied; {_CONTINUES}", UNAVAILABLE)
        except cs.CommitUncertainError as error:
            leave(f"{error}; {_CONTINUES}", CONFLICT)

    verified = not differences if verify else None
    if as_json:
        documents = [{**one.key._asdict(), "what": one.what} for one in differences]
        print_json({**asdict(report), "verified": verified, "differences": documents})
    else:
        _print_report(report, differences, mask_url(target), verified=verified)

    if differences or report.unreadable:
        raise typer.Exit(NO)


def _copied(
    source: cs.Store, target: cs.Store, *, overwrite: bool, verify: bool, quiet: bool
) -> tuple[cs.CopyReport, list[CopyDifference]]:
    with bar(quiet=quiet) as progress:
        total = 0 if progress.disable else _size(source)
        task = progress.add_task("copying", total=total)

        def advance(report: cs.CopyReport) -> None:
            done = report.flows + report.wait_conditions + report.skipped
            # Skipped ForEach progress and parts are in the sum and not in the total.
            progress.update(task, completed=min(done, total))

        report = cs.copy(source, target, overwrite=overwrite, on_progress=advance)
        if not verify:
            return report, []

        read = report.flows + report.wait_conditions + report.progress + report.parts
        total = max(total, read + report.skipped)
        task = progress.add_task("verifying", total=total)
        found = compare(source, target, on_page=lambda count: progress.advance(task, count))
        return report, list(islice(found, _MOST_DIFFERENCES))


def _size(store: cs.Store) -> int:
    now_ms = store._context.settings.now_ms()  # noqa: SLF001  nothing public counts conditions
    waits: int = store._run(ask(Count(Filter(WAIT), now_ms)))  # noqa: SLF001  as above
    return store.count_flows() + waits


def _print_report(
    report: cs.CopyReport, differences: list[CopyDifference], target: str, *, verified: bool | None
) -> None:
    say(
        f"Copied to {target}: {counted(report.flows, 'flow')},"
        f" {counted(report.wait_conditions, 'wait condition')},"
        f" {counted(report.progress, 'ForEach progress record')},"
        f" {counted(report.completions, 'pending completion')};"
        f" {counted(report.skipped, 'record')} skipped."
    )
    if report.unreadable:
        complain(
            f"{counted(report.unreadable, 'record')} could not be decoded and were not "
            "copied: the source URL lacks a key or a codec, or the stored data has "
            "been altered"
        )

    if verified:
        say("Verified: every record was read back and is identical to the source.")

    for one in differences[:_MOST_SHOWN]:
        complain(f"{one.key} differs from the source: {one.what}")

    if len(differences) > _MOST_SHOWN:
        complain(f"… and {len(differences) - _MOST_SHOWN} more; --json lists up to 1,000")

    if differences:
        complain(
            "The target already had these records, or a worker wrote to one of the stores "
            "during the copy; to replace the records, pass --overwrite."
        )
