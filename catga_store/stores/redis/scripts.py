"""The scripts that the server runs: their sources, and calls of them."""

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
    "READ_WAIT",
    "RESOLVE",
    "SCRIPTS",
    "STEPS",
    "SWEEP",
    "Script",
    "call",
    "with_source",
]


class Script(NamedTuple):
    """A script and its digest."""

    sha: bytes
    source: bytes


def _script(*names: str) -> Script:
    """The parts of a script, in their order, as one."""
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

SCRIPTS = (COMMIT, EXTEND, SWEEP, CLEAR, RESOLVE, LAY_OUT, READ_WAIT, STEPS)
_SOURCES = {script.sha: script.source for script in SCRIPTS}


def call(script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Command:
    """The call of a script by its digest."""
    return Command((b"EVALSHA", script.sha, len(keys), *keys, *arguments), keys[0])


def with_source(command: Command) -> Command:
    """The same call of a script for a server that does not know it."""
    sha = command.args[1]
    assert isinstance(sha, bytes)  # noqa: S101  only scripts can be unknown
    return Command((b"EVAL", _SOURCES[sha], *command.args[2:]), command.key)
