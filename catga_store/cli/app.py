"""The command line: its list of commands, at the end of this file.

A new command is a function in a module of its own, and is added to that list. How commands end is
documented in `exit_codes`.
"""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import NoReturn
from urllib.parse import quote

import typer
from typer.core import TyperGroup

import catga_store as cs
from catga_store.cli.acting import cancel
from catga_store.cli.acting import purge
from catga_store.cli.acting import release
from catga_store.cli.acting import retry
from catga_store.cli.acting import tag
from catga_store.cli.acting import wake
from catga_store.cli.bench import bench
from catga_store.cli.console import console
from catga_store.cli.copy import copy
from catga_store.cli.demo_report import Report
from catga_store.cli.doctor import doctor
from catga_store.cli.due import due
from catga_store.cli.edit import edit
from catga_store.cli.exit_codes import EXIT_CODES
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import TERMINATED
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.flows import count
from catga_store.cli.flows import ls
from catga_store.cli.flows import show
from catga_store.cli.history import history
from catga_store.cli.history import watch
from catga_store.cli.output import escape_what_cannot_be_shown
from catga_store.cli.output import replace_closed_streams
from catga_store.cli.output import say
from catga_store.cli.output import stdout
from catga_store.cli.rewrap import rewrap
from catga_store.cli.rm import rm
from catga_store.cli.stats import stats
from catga_store.cli.stuck import stuck
from catga_store.cli.stuck import why
from catga_store.cli.verify import verify
from catga_store.cli.waits import complete
from catga_store.cli.waits import waits
from catga_store.cli.worker import worker
from catga_store.demo.story import DemoError
from catga_store.demo.story import Story
from catga_store.demo.verdict import judge
from catga_store.protocol.masking import mask_url

__all__ = ["app", "run"]


class _Group(TyperGroup):
    """The group of commands; its errors about arguments show no password of a URL."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        with _masked(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> object:
        with _masked(ctx):
            return super().invoke(ctx)


_ARGUMENTS = "catga_store.arguments"
_UsageError: Any = typer.BadParameter.__mro__[1]  # of click, which newer versions of typer hide


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _hex(control: re.Match[str]) -> str:
    """Write a control character as typer does in its messages since 0.29."""
    return f"\\x{ord(control[0]):02x}"


@contextmanager
def _masked(ctx: Any) -> Generator[None]:
    """Mask the URLs among the arguments where an error quotes them."""
    try:
        yield
    except _UsageError as error:
        for argument in ctx.meta[_ARGUMENTS]:
            _, equals, value = argument.partition("=")
            for text in (argument, value) if equals and argument.startswith("-") else (argument,):
                if re.search("://|@", text):
                    for quoted in (text, repr(text)[1:-1], _CONTROL.sub(_hex, text)):
                        error.message = error.message.replace(quoted, mask_url(text))

        raise


app = typer.Typer(
    name="catga-store",
    cls=_Group,
    help="Inspect and repair stores of workflow state from the command line.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    replace_closed_streams()
    escape_what_cannot_be_shown()
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="catga-store")
    raise SystemExit  # typer has done so already


def _terminate(_number: int, _frame: object) -> None:
    raise SystemExit(TERMINATED)  # so that open stores and processes are closed


def _print_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the option's value
    if wanted:
        try:
            number = installed_version("catga_store")
        except PackageNotFoundError:
            number = "(not installed)"

        say(f"catga-store {number}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Inspect and repair stores of workflow state from the command line."""


@app.command(
    epilog="Examples: `catga-store demo` or `catga-store demo --store sqlite:///flows.db`",
)
@guarded
def demo(
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=(
                "Run on this store instead of a temporary SQLite file, and keep the finished "
                "order there. The demo's processes claim due flows like any other "
                "worker, so do not use a production store."
            ),
            show_default=False,
        ),
    ] = None,
) -> None:
    """Kill a worker in the middle of an order, and watch another process finish the order.

    A real flow on a real store: a payment, a ForEach with saved progress, a wait that times out, a wait for
    shipments, and two workers that race. The demo checks its own result and exits with status 1 if a check
    fails.
    """
    with ExitStack() as stack:
        url = store if store is not None else _temporary_store(stack)
        _check_shared(url)
        code = _play(url)

    if code:
        raise typer.Exit(code)


def _temporary_store(stack: ExitStack) -> str:
    # A worker that was killed a moment ago may hold the file on Windows for another moment.
    folder = tempfile.TemporaryDirectory(prefix="catga-store-demo-", ignore_cleanup_errors=True)
    return f"sqlite:///{quote(str(Path(stack.enter_context(folder)) / 'demo.db'))}"


def _check_shared(url: str) -> None:
    """Exit with one line unless other processes can open this store, too."""
    with cs.open_store(url) as store:
        if isinstance(store, cs.MemoryStore):
            leave(
                f"{mask_url(url)} exists in one process only, but the demo runs several "
                "processes; use a sqlite:/// URL",
                USAGE,
            )

        store.ping()


def _play(url: str) -> int:
    report = Report(stdout())
    try:
        report.opening(url)
        verdicts = judge(Story(url, report).run())
    except (cs.CatgaStoreError, DemoError) as error:
        leave(f"the demo stopped because of an error: {error}", NO)

    report.verdicts(verdicts)
    return 0 if all(verdict.holds for verdict in verdicts) else NO


for _command, _examples in (
    (ls, "`catga-store ls -s sqlite:///flows.db --status failed --updated-before 7d`"),
    (show, "`catga-store show order-42 -s sqlite:///flows.db`, or `… --json | jq .state`"),
    (count, "`catga-store count -s sqlite:///flows.db --type order --created-after 24h`"),
    (stats, "`catga-store stats -s sqlite:///flows.db`"),
    (stuck, "`catga-store stuck -s sqlite:///flows.db`, or `… --finding wait_gone --json`"),
    (why, "`catga-store why order-42 -s sqlite:///flows.db`"),
    (history, "`catga-store history order-42 -s sqlite:///flows.db`"),
    (watch, "`catga-store watch order-42 -s sqlite:///flows.db --timeout 15m`"),
    (waits, "`catga-store waits --outcome pending` or `catga-store waits '{order-42}/ship'`"),
    (due, "`catga-store due -s sqlite:///flows.db --within 15m`"),
    (complete, "`catga-store complete '{order-42}/approval' boss --result '{\"ok\": true}'`"),
    (retry, "`catga-store retry --status failed --error 'no route' --dry-run`"),
    (cancel, "`catga-store cancel order-42 --reason 'ordered twice' --version 7`"),
    (wake, "`catga-store wake --finding wait_gone --finding never_due`"),
    (release, "`catga-store release --owner worker-7 --yes`"),
    (tag, "`catga-store tag queue=slow --remove hold --tag tenant=acme --dry-run`"),
    (purge, "`catga-store purge --status completed --updated-before 7d --yes`"),
    (edit, "`EDITOR=nano catga-store edit order-42 -s sqlite:///flows.db`"),
    (rm, "`catga-store rm order-42 --wait '{order-42}/ship' --yes`"),
    (copy, "`catga-store copy sqlite:///flows.db sqlite:////backup/flows.db`"),
    (console, "`catga-store console sqlite:///flows.db --write`"),
    (rewrap, "`catga-store rewrap 'sqlite:///flows.db?codecs=zstd&keys=env:FLOW_KEYS'`"),
    (doctor, "`catga-store doctor sqlite:///flows.db`"),
    (verify, "`catga-store verify redis://localhost --examples 500`"),
    (bench, "`catga-store bench sqlite:///flows.db --calls 1000`"),
):
    _epilog = f"Example: {_examples}. You can also set the URL in CATGA_STORE_URL."
    app.command(epilog=_epilog)(_command)

app.command(
    epilog=(
        "Example: `catga-store worker myapp.flows:worker --processes 4 --health 8080`. The "
        "command uses the store that the worker was created with."
    )
)(worker)
