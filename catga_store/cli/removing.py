"""The command `rm`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from catga_store.cli.guard import NO
from catga_store.cli.guard import USAGE
from catga_store.cli.guard import guarded
from catga_store.cli.guard import leave
from catga_store.cli.opening import AsJson
from catga_store.cli.opening import StoreOption
from catga_store.cli.opening import open_existing
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import say

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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete flows with their progress, and clear wait conditions, whatever state they are in.

    Asks first; without a terminal, `--yes` is needed. Exits with 1 if any of them was not there;
    the others are gone.

    `--json`: `{"removed": [id, …], "absent": [id, …]}`.
    """
    named = [*(flow_ids or ()), *(waits or ())]
    if not named:
        leave("nothing to remove: name a flow, or a wait condition with --wait", USAGE)

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
            say(f"{'removed' if was_there else 'was not there'}: {escaped(one)}")

    if absent:
        raise typer.Exit(NO)


def _confirm(named: list[str]) -> None:
    if not sys.stdin.isatty():
        leave("nothing was removed: without a terminal to ask on, --yes is needed", USAGE)

    typer.confirm(f"Remove {', '.join(map(escaped, named))}?", abort=True, err=True)
