"""Commands that change flows: `retry`, `cancel`, `wake`, `release`, `tag`, `purge`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import complain
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.filters import Finding
from catga_store.cli.filters import tag_pairs
from catga_store.cli.filters import with_filters
from catga_store.cli.filters import with_options
from catga_store.cli.output import counted
from catga_store.cli.output import escaped
from catga_store.cli.output import print_json
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.cli.stuck import THRESHOLDS
from catga_store.cli.stuck import thresholds_of
from catga_store.model.documents import bulk_document

__all__ = ["cancel", "purge", "release", "retry", "tag", "wake"]

Ids = Annotated[list[str] | None, typer.Argument(metavar="[FLOW_ID]...")]

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "findings": (Finding, None),
    "everything": (
        Annotated[bool, typer.Option("--everything", help="Select every flow in the store.")],
        False,
    ),
    "version": (
        Annotated[
            int | None,
            typer.Option("--version", help="Act only if the named flow has this version."),
        ],
        None,
    ),
    "dry_run": (
        Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Show what would be changed, without changing anything."
            ),
        ],
        False,
    ),
    "limit": (
        Annotated[int | None, typer.Option(min=1, help="Maximum number of flows to check.")],
        None,
    ),
    "cursor": (
        Annotated[
            str | None,
            typer.Option(help="Continue at the cursor of an earlier call with the same filters."),
        ],
        None,
    ),
    "per_second": (
        Annotated[
            float,
            typer.Option("--per-second", help="Maximum number of flows to change per second."),
        ],
        1000.0,
    ),
    "yes": (
        Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")],
        False,
    ),
    "as_json": (AsJson, False),
    **THRESHOLDS,
}

_HOW = """
    Name flows by their ids, or select them by filters or by a `stuck` finding; `--late`, `--idle` and
    `--tries` set the thresholds of the findings. With filters, the command shows how many flows match and asks
    for confirmation; without a terminal, `--yes` is required. Each flow is changed in a separate commit, which
    checks its version. The output lists the skipped flows and the reasons. Exits with status 1 if a named flow
    was not changed, or if nothing matched.

    `--json`: `{"matched", "changed", "skipped": {reason: number, …}, "first_changed": [id, …], "first_skipped":
    {reason: [id, …], …}, "cursor": text or null, "dry_run"}`; each list contains at most 100 ids.
    """


def _acting(
    command: Callable[..., None], options: dict[str, tuple[Any, Any]] = _OPTIONS
) -> Callable[..., None]:
    """Decorate a command of this module: with its options, and with what its help says of them."""
    command.__doc__ = f"{(command.__doc__ or '').rstrip()}\n{_HOW}"
    return guarded(with_filters(with_options("options", options, dict[str, Any])(command)))


@_acting
def retry(
    ids: Ids = None,
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Run failed or cancelled flows again; reset the attempts of live flows."""
    _run("retry", ids, store, filters, options)


@_acting
def cancel(
    ids: Ids = None,
    *,
    store: StoreOption = None,
    reason: Annotated[
        str, typer.Option(help="The reason, which is stored as each flow's error.")
    ] = "by hand",
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """End live flows as CANCELLED, whether a worker holds them or not."""
    _run("cancel", ids, store, filters, options, reason)


@_acting
def wake(
    ids: Ids = None,
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Make live flows due now, whatever they are waiting for."""
    _run("wake", ids, store, filters, options)


@_acting
def release(
    ids: Ids = None,
    *,
    store: StoreOption = None,
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Take claimed flows away from workers that have died or hung; the flows are then due."""
    _run("release", ids, store, filters, options)


@partial(_acting, options={name: how for name, how in _OPTIONS.items() if name != "version"})
def tag(
    tags: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    store: StoreOption = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove", metavar="KEY", help="The key of a tag to remove; may be repeated."
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="FLOW_ID", help="The id of a flow to tag; may be repeated."),
    ] = None,
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Add, replace and remove tags of flows, whether or not the flows have ended.

    The arguments are tags; name flows with `--id`. Flows that a worker holds, and flows that would have more
    than 16 tags, are skipped.
    """
    given = {**options, "version": None}
    _run("tag", ids, store, filters, given, tag_pairs(tags, "tag"), remove=remove or ())


@_acting
def purge(
    ids: Ids = None,
    *,
    store: StoreOption = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also delete flows that have not ended.")
    ] = False,
    filters: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Delete flows that have ended, with their progress and parts.

    With `--finding parent_gone`, clears the wait conditions whose parent does not exist.
    """
    _run("purge", ids, store, filters, options, live=live)


def _run(
    action: str,
    ids: list[str] | None,
    url: str | None,
    filters: dict[str, Any],
    options: dict[str, Any],
    *arguments: Any,
    **given: Any,
) -> None:
    """Do it, and print what came of it."""
    findings: list[str] = options["findings"] or []
    version: int | None = options["version"]
    if ids and (filters or findings or options["everything"]):
        leave("name flows by their ids or select them by filters, but not both", USAGE)

    if version is not None and (not ids or len(ids) > 1):
        leave("--version requires the id of exactly one flow", USAGE)

    selected: dict[str, Any] = {"ids": ids}
    if not ids:
        selected = {**filters, "findings": findings, "everything": options["everything"]}
        selected["diagnosis"] = thresholds_of(options)

    with open_existing(url) as store:
        if ids and version is not None and not options["dry_run"]:
            report = _one(store, action, ids[0], version, arguments)
        else:
            bulk = getattr(store.bulk(**selected), action)
            given |= {name: options[name] for name in ("dry_run", "limit", "cursor", "per_second")}
            if not options["dry_run"] and not options["yes"] and (not ids or action == "purge"):
                _confirm(bulk(*arguments, **{**given, "dry_run": True}), action)

            report = bulk(*arguments, **given, progress=_progress)

    _print(report, as_json=options["as_json"])
    if not report.matched or (ids and report.skipped):
        raise typer.Exit(NO)


def _one(
    store: cs.Store, action: str, flow_id: str, version: int, arguments: tuple[Any, ...]
) -> cs.BulkReport:
    """Act on one version of one flow."""
    if action == "purge":
        changed = store.delete(flow_id, version=version)
    else:
        done = getattr(store, f"{action}_flow")(flow_id, *arguments, version=version)
        changed = done.version != version

    skipped = {} if changed else {"needs no change": (flow_id,)}
    return cs.BulkReport(
        matched=1,
        changed=int(changed),
        skipped=dict.fromkeys(skipped, 1),
        first_changed=(flow_id,) if changed else (),
        first_skipped=skipped,
        cursor=None,
        dry_run=False,
    )


def _confirm(planned: cs.BulkReport, action: str) -> None:
    """Ask, unless there is nothing to do."""
    if not planned.changed:
        return

    if not sys.stdin.isatty():
        flows = counted(planned.changed, "flow")
        leave(
            f"nothing was changed: the command would change {flows}, but it cannot ask for "
            "confirmation without a terminal; pass --yes",
            USAGE,
        )

    question = f"{action.capitalize()} {counted(planned.changed, 'flow')}?"
    typer.confirm(question, abort=True, err=True)


def _print(report: cs.BulkReport, *, as_json: bool) -> None:
    if as_json:
        print_json(bulk_document(report))
    else:
        verb = "would change" if report.dry_run else "changed"
        ids = _listed(report.first_changed, report.changed)
        say(f"{verb} {counted(report.changed, 'flow')}{ids}")
        for reason, number in report.skipped.items():
            ids = _listed(report.first_skipped[reason], number)
            say(f"skipped {counted(number, 'flow')}: {reason}{ids}")

    if report.cursor is not None:
        complain(f"More flows match the filters; to continue, pass --cursor {report.cursor}")


_SHOWN = 5


def _listed(ids: tuple[str, ...], number: int) -> str:
    if not ids:
        return ""

    return f": {', '.join(map(escaped, ids[:_SHOWN]))}{', …' if number > _SHOWN else ''}"


def _progress(report: cs.BulkReport) -> None:
    """Say on a terminal how far it is, and where to continue."""
    if sys.stderr.isatty() and report.cursor is not None:
        done = f"{report.changed:,} of {report.matched:,} flows have been changed so far"
        complain(f"{done}; if this command is interrupted, continue with --cursor {report.cursor}")
