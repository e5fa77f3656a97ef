"""The Lua scripts: their sources, and the commands that call them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

from catga_store.stores.redis.transport import Command

__all__ = [
    "CLEAR",
    "COMMIT",
    "EXTEND",
    "LAY_OUT",
    "PARTS",
    "READ_WAIT",
    "REMOVE_PARTS",
    "RESOLVE",
    "SCRIPTS",
    "STEPS",
    "SWEEP",
    "TOTALS",
    "Script",
    "call",
    "with_source",
]


class Script(NamedTuple):
    """A script, and its SHA-1 digest in hexadecimal."""

    sha: bytes
    source: bytes


def _script(*names: str) -> Script:
    """Return files joined into one script, in this order."""
    here = files("catga_store.stores.redis")  # the package may be in a zip file
    source = b"".join([(here / f"{name}.lua").read_bytes() for name in names])
    return Script(sha1(source, usedforsecurity=False).hexdigest().encode(), source)


COMMIT = _script("put", "records", "commit")
EXTEND = _script("records", "extend")
SWEEP = _script("records", "sweep")
CLEAR = _script("records", "clear")
RESOLVE = _script("resolve")
LAY_OUT = _script("layout")
READ_WAIT = _script("read_wait")
STEPS = _script("steps")
PARTS = _script("records", "parts")
REMOVE_PARTS = _script("records", "remove_parts")
TOTALS = _script("totals")

SCRIPTS = (
    *(COMMIT, EXTEND, SWEEP, CLEAR, RESOLVE, LAY_OUT, READ_WAIT, STEPS, PARTS, REMOVE_PARTS),
    TOTALS,
)
_SOURCES = {script.sha: script.source for script in SCRIPTS}


def call(script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Command:
    """Return the command that calls a script by its digest."""
    return Command((b"EVALSHA", script.sha, len(keys), *keys, *arguments), keys[0])


def with_source(command: Command) -> Command:
    """Return the same call with the source, for a server that does not know the script."""
    sha = command.args[1]
    assert isinstance(sha, bytes)  # noqa: S101  only scripts are unknown
    return Command((b"EVAL", _SOURCES[sha], *command.args[2:]), command.key)
