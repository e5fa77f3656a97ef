"""What the command line knows of each kind of store, one module a kind.

A module here has the three functions of `Kind`, and a line in `_MODULES` for each of its URL
schemes. Commands that only read and write records work on every store, with a module or without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Literal
from typing import Protocol
from typing import TypeAlias
from typing import cast
from urllib.parse import urlsplit

from attrs import frozen

__all__ = ["Finding", "Kind", "Level", "Scratch", "kind_of"]

Level: TypeAlias = Literal["ok", "info", "unknown", "warning", "problem"]
"""`warning` and `problem` are findings: the doctor exits with 1."""

_MODULES = {
    "memory": "memory",
    "nats": "nats",
    "redis": "redis",
    "redis+cluster": "redis",
    "rediss": "redis",
    "rediss+cluster": "redis",
    "sqlite": "sqlite",
    "tls": "nats",
    "unix": "redis",
}


@frozen
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    means: str
    """What it means for flows."""
    change: str = ""
    """How to change it, if that is called for."""


@frozen
class Scratch:
    """A place for a benchmark: like the one the URL names, empty, and nobody else's."""

    url: str
    place: str
    """Where it is, in words."""


class Kind(Protocol):
    """What a module here has."""

    def absent(self, url: str) -> str | None:
        """Say why there is no store at this URL, `None` if there is one. Creates nothing.

        A store on a server, which is created on first use, is there if the server is: `None`.
        """
        ...

    def examine(self, url: str) -> Iterator[Finding]:
        """Look at everything that bears on flows. Creates and changes nothing.

        What cannot be seen is `unknown`, and never `ok`.
        """
        ...

    def scratch(self, url: str) -> AbstractContextManager[Scratch]:
        """A scratch place beside the store, removed at the end with all that was put there."""
        ...


def kind_of(url: str) -> Kind | None:
    """Answer what is known of the stores of a URL's scheme, `None` if nothing is."""
    name = _MODULES.get(urlsplit(url).scheme)
    return None if name is None else cast("Kind", import_module(f"{__name__}.{name}"))
