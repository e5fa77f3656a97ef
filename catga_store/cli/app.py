"""The commands.

Exit codes: 0 all is well; 1 something is off; 2 the command or the store's URL cannot work as
written; 130 interrupted.
"""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated
from typing import NoReturn
from urllib.parse import quote

import typer
from rich.console import Console

import catga_store as cs
from catga_store.cli.report import Report
from catga_store.demo.story import DemoError
from catga_store.demo.story import Story
from catga_store.demo.verdict import judge

__all__ = ["app", "run"]

_OFF, _USAGE, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143

app = typer.Typer(
    name="catga-store",
    help="Durable state of workflows, from the command line.",
    epilog="Exit codes: 0 all is well, 1 something is off, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="catga-store")
    raise SystemExit  # typer has done so already


def _terminate(_number: int, _frame: object) -> None:
    raise SystemExit(_TERMINATED)  # so that everything that is open is closed


def _print_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the option's value
    if wanted:
        try:
            number = installed_version("catga_store")
        except PackageNotFoundError:
            number = "(not installed)"

        typer.echo(f"catga-store {number}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Durable state of workflows, from the command line."""


@app.command(
    epilog="Examples: `catga-store demo` or `catga-store demo --store sqlite:///flows.db`",
)
def demo(
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Run on this store instead of a temporary SQLite file, and leave the finished"
            " order there to look at. Its processes claim due flows as any worker does, so do"
            " not name a store that is in production.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Kill a worker in the middle of an order, and see another process finish it.

    A real flow on a real store: payment, a ForEach with its progress saved, a wait that times out,
    shipments awaited, two workers that race. It checks its own result: exit code 1 if anything is
    off.
    """
    with ExitStack() as stack:
        url = store if store is not None else _temporary_store(stack)
        try:
            _check_shared(url)
            code = _play(url)
        except KeyboardInterrupt:
            code = _fail("interrupted", _INTERRUPTED)

    raise typer.Exit(code)


def _temporary_store(stack: ExitStack) -> str:
    # A worker that was killed a moment ago may hold the file on Windows for another moment.
    folder = tempfile.TemporaryDirectory(prefix="catga-store-demo-", ignore_cleanup_errors=True)
    return f"sqlite:///{quote(str(Path(stack.enter_context(folder)) / 'demo.db'))}"


def _check_shared(url: str) -> None:
    """Exit with one line unless other processes can open this store too."""
    try:
        with cs.open_store(url) as store:
            if isinstance(store, cs.MemoryStore):
                message = f"{url} is of one process only, and the demo runs several; use sqlite:///"
                raise typer.Exit(_fail(message, _USAGE))

            store.ping()
    except cs.CatgaStoreError as error:
        raise typer.Exit(_fail(str(error), _USAGE)) from error


def _play(url: str) -> int:
    report = Report(Console(highlight=False))
    try:
        report.opening(url)
        verdicts = judge(Story(url, report).run())
    except (cs.CatgaStoreError, DemoError) as error:
        return _fail(f"the demo stopped: {error}", _OFF)

    report.verdicts(verdicts)
    return 0 if all(verdict.holds for verdict in verdicts) else _OFF


def _fail(message: str, code: int) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)
    return code
