"""The command `rewrap`."""

from __future__ import annotations

import typer
from attrs import asdict

import catga_store as cs
from catga_store.cli.bars import bar
from catga_store.cli.exit_codes import CONFLICT
from catga_store.cli.exit_codes import INTERRUPTED
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import UNAVAILABLE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import counted
from catga_store.cli.output import print_json
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreArgument
from catga_store.cli.store_options import open_existing
from catga_store.rewrapping import count_bodies

__all__ = ["rewrap"]

_CONTINUES = "run the same command again to continue"


@guarded
def rewrap(store: StoreArgument = None, *, as_json: AsJson = False) -> None:
    """Rewrite every body that is not stored with the URL's codecs and current key.

    Use this command to rotate a key, or to compress or encrypt bodies that were stored before (for that, add
    `accept_plain=true`). The URL names the codecs and the source of the keys, the current key first. The
    command can run beside workers once all of them have the new key. Bodies that are current are only read, so
    you can continue an interrupted run by running the command again. At the end, the store is read once more;
    the command exits with status 1 if a body remains to be rewritten.

    `--json`: `{"rewritten", "current", "unreadable", "claimed", "pending", "conflicts", "left": numbers,
    "bodies": {codecs and keys: number}}`.
    """
    with open_existing(store) as opened:
        try:
            report = _rewrapped(opened, quiet=as_json)
            counts, _ = count_bodies(opened)
        except KeyboardInterrupt:
            leave(f"interrupted; {_CONTINUES}", INTERRUPTED)
        except cs.StoreUnavailableError as error:
            leave(f"{error}; earlier pages were written; {_CONTINUES}", UNAVAILABLE)
        except cs.CommitUncertainError as error:
            leave(f"{error}; {_CONTINUES}", CONFLICT)

    if as_json:
        bodies = {trail or "none": number for trail, number in counts.items()}
        print_json({**asdict(report), "left": report.left, "bodies": bodies})
    else:
        _print_report(report)

    if report.left:
        raise typer.Exit(NO)


def _rewrapped(store: cs.Store, *, quiet: bool) -> cs.RewrapReport:
    with bar(quiet=quiet) as progress:
        total = 0 if progress.disable else store.count_flows()
        task = progress.add_task("rewriting", total=total)

        def advance(report: cs.RewrapReport) -> None:
            # The second pass, which verifies, begins again; parts and progress are not in the total.
            done = report.current + report.rewritten + report.left
            progress.update(task, completed=min(done, total))

        return cs.rewrap(store, on_progress=advance)


def _print_report(report: cs.RewrapReport) -> None:
    say(f"Rewritten: {counted(report.rewritten, 'record')}; already current: {report.current:,}.")
    if not report.left:
        say("Verified: every body is stored with these codecs and the current key.")
        return

    for number, what in (
        (
            report.unreadable,
            (
                "could not be decoded, because a key is missing, or because the stored data has "
                "been altered"
            ),
        ),
        (
            report.claimed,
            (
                "are claimed, so only their workers may write them; run this command again "
                "when the leases have ended"
            ),
        ),
        (
            report.pending,
            (
                "are results of wait conditions that have not been set yet; run this command "
                "again when the conditions have been set"
            ),
        ),
        (
            report.conflicts,
            "were written by other programs during this run; run this command again",
        ),
    ):
        if number:
            say(f"Left: {number:,} {what}.")
