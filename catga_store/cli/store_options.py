"""The options that commands share: the store by its URL, times, `--json`."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.doctor_by_scheme import doctor_of
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import leave
from catga_store.model.time_texts import moment
from catga_store.model.time_texts import span
from catga_store.opening.url_codecs import bare
from catga_store.protocol.masking import shown

__all__ = [
    "AsJson",
    "StoreArgument",
    "StoreOption",
    "checked",
    "moment",
    "one_of",
    "open_existing",
    "open_laid_out",
    "span",
    "span_of",
]

_URL_HELP = "The URL of the store, such as sqlite:///flows.db"

StoreOption = Annotated[
    str | None,
    typer.Option("--store", "-s", metavar="URL", envvar="CATGA_STORE_URL", help=_URL_HELP),
]
StoreArgument = Annotated[
    str | None, typer.Argument(metavar="URL", envvar="CATGA_STORE_URL", help=_URL_HELP)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def open_laid_out(url: str, **options: Any) -> cs.Store:
    """Open a store with the number of partitions that it has."""
    store = cs.open_store(url, **options)
    try:
        store.ping()
    except cs.PartitionCountError as error:
        store.close()
        if "partitions" in options:
            raise

        return cs.open_store(url, partitions=error.expected, **options)
    except BaseException:
        store.close()
        raise

    return store


def checked(url: str | None, example: str) -> str:
    """Return the URL of a store; `UsageError` for a wrong one, or none."""
    if not url:
        message = f"no store given; pass the store's URL, such as {example}, or set CATGA_STORE_URL"
        raise cs.UsageError(message)

    cs.open_store(url).close()  # raises for a wrong URL; connects to nothing
    return url


@contextmanager
def open_existing(named: str | None) -> Generator[cs.Store]:
    """Open a store that must exist; exits with 1 if it does not. Creates nothing."""
    url = checked(named, "--store sqlite:///flows.db")
    store_doctor = doctor_of(url)
    absent = None if store_doctor is None else store_doctor.absent(bare(url))
    if absent is not None:
        leave(f"{absent}; nothing was created", NO)

    with open_laid_out(url) as store:
        yield store


def span_of(option: str, text: str) -> timedelta:
    """Return the length of time that an option says; `UsageError` if it is not one."""
    found = span(text)
    if found is None:
        message = f"{option}: expected a duration such as 30s, 15m, 2h or 7d, got {shown(text)}"
        raise cs.UsageError(message)

    return found


def one_of(names: type[Enum]) -> Callable[[str], list[str]]:
    """Return a completion for the shell: the names of the members."""
    known = [one.name.lower() for one in names]
    # typer knows the argument by its name.
    return lambda incomplete: [one for one in known if one.startswith(incomplete.lower())]
