"""The command `rm`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing

__all__ = ["rm"]


@guarded
def rm(
    flow_ids: Annotated[list[str] | None, typer.Argument(metavar="[FLOW_ID]...")] = None,
    *,
    store: StoreOption = None,
    waits: Annotated[
        list[str] | None,
        typer.Option("--wait", metavar="ID", help="Clear this wait condition; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete flows with their progress, and clear wait conditions, whatever their status.

    Asks for confirmation; without a terminal, `--yes` is required. Exits with status 1 if one of the records
    was not found; the others are removed.

    `--json`: `{"removed": [id, …], "absent": [id, …]}`.
    """
    named = [*(flow_ids or ()), *(waits or ())]
    if not named:
        leave(
            "nothing to remove; pass the id of a flow, or pass a wait condition with --wait", USAGE
        )

    with open_existing(store) as opened:
        if not yes:
            _confirm(named)

        gone = [(one, opened.delete(one)) for one in flow_ids or ()]
        gone += [(one, opened.clear_wait_condition(one)) for one in waits or ()]

    absent = [one for one, was_there in gone if not was_there]
    if as_json:
        removed = [one for one, was_there in gone if was_there]
        print_json({"removed": removed, "absent": absent})
    else:
        for one, was_there in gone:
            say(f"{'removed' if was_there else 'not found'}: {escaped(one)}")

    if absent:
        raise typer.Exit(NO)


def _confirm(named: list[str]) -> None:
    if not sys.stdin.isatty():
        leave(
            (
                "nothing was removed, because the command cannot ask for confirmation without a "
                "terminal; pass --yes"
            ),
            USAGE,
        )

    typer.confirm(f"Remove {', '.join(map(escaped, named))}?", abort=True, err=True)
