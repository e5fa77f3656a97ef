"""How commands end: an exit code, and one line on stderr for an error, never a traceback.

| code | means |
|---|---|
| 0 | done |
| 1 | a negative result: not found, a finding, a difference; the output could not be written |
| 2 | the command, the URL or the installation is wrong |
| 3 | the store cannot be reached, or cannot be used as it is set up |
| 4 | another writer was first, or the outcome of a write is not known |
| 5 | a stored record cannot be read |
| 130 | interrupted |
| 141 | the reader of the output has gone |
| 143 | terminated |
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn
from typing import ParamSpec
from typing import TypeVar

import typer
from rich.console import Console

import catga_store as cs
from catga_store.cli.output import escaped

__all__ = [
    "CONFLICT",
    "CORRUPT",
    "EXIT_CODES",
    "INTERRUPTED",
    "NO",
    "TERMINATED",
    "UNAVAILABLE",
    "USAGE",
    "complain",
    "guarded",
    "leave",
]

P = ParamSpec("P")
R = TypeVar("R")

NO, USAGE, UNAVAILABLE, CONFLICT, CORRUPT = 1, 2, 3, 4, 5
INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143

EXIT_CODES = (
    "Exit codes: 0 (done), 1 (a negative result: not found, a finding, or a difference), 2 (an error"
    " in the command, the URL or the installation), 3 (the store cannot be reached or used), 4"
    " (another client wrote first, or the outcome of a write is unknown), 5 (a stored record cannot"
    " be read), 130 (interrupted), 141 (the output pipe was closed), 143 (terminated)."
)

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (cs.UsageError, USAGE),
    (cs.StoreConfigError, UNAVAILABLE),
    (cs.StoreUnavailableError, UNAVAILABLE),
    (cs.FlowNotFoundError, NO),
    (cs.FlowStatusError, NO),
    (cs.ConflictError, CONFLICT),
    (cs.CommitUncertainError, CONFLICT),
    (cs.CorruptRecordError, CORRUPT),
)
_EXTRAS = {
    "redis": "redis",
    "hiredis": "redis",
    "nats": "nats",
    "hypothesis": "test",
    "prometheus_client": "worker",
    "jinja2": "console",
    "starlette": "console",
    "uvicorn": "console",
}

_NEEDED_BY = {
    "hypothesis": "verify",
    "jinja2": "the console",
    "starlette": "the console",
    "uvicorn": "the console",
}


def complain(message: str) -> None:
    """Print one line on stderr, after what was printed on stdout."""
    with contextlib.suppress(OSError, ValueError):  # a reader that has left, a closed stream
        sys.stdout.flush()

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(escaped(message), markup=False)


def leave(message: str, code: int) -> NoReturn:
    """Print why on stderr, and exit."""
    complain(message)
    raise typer.Exit(code)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command: what the library raises becomes one line and a documented exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            answer = command(*args, **kwargs)
            sys.stdout.flush()
        except cs.CatgaStoreError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), NO)
            # The message cannot say why a server is away; the doctor looks further.
            more = "; run `catga-store doctor URL`" if code == UNAVAILABLE else ""
            leave(f"{error}{more}", code)
        except ModuleNotFoundError as error:
            leave(_missing(error), USAGE)
        except KeyboardInterrupt:
            leave("interrupted", INTERRUPTED)
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(UNREAD) from None
        except OSError as error:  # those of stores have become errors of the library
            if error.filename is not None:
                raise

            _drop_output()
            leave(f"the output could not be written: {error.strerror}", NO)
        else:
            return answer

    return run


def _drop_output() -> None:
    """Forget what is still in the buffer: it would fail once more when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _missing(error: ModuleNotFoundError) -> str:
    library = (error.name or "").partition(".")[0]
    if library not in _EXTRAS:
        raise error

    who = _NEEDED_BY.get(library, "this store")
    return (
        f"{who} needs {library}, which is not installed; run pip install "
        f"'catga_store[{_EXTRAS[library]}]'"
    )
