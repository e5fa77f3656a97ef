"""Redis commands as they are sent: packed by hiredis if it is installed, else by redis-py in Python."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["pack"]

_pack_command: Any = import_module("hiredis").pack_command if find_spec("hiredis") else None

_COPIED_BYTES = 64 * 1024


def pack(connection: Any, commands: Sequence[Sequence[bytes | str | int]]) -> list[bytes]:
    """Return the commands as they are sent: few pieces, without copying large bodies together."""
    if _pack_command is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed

    pieces = [_pack_command(tuple(args)) for args in commands]
    return pieces if sum(map(len, pieces)) > _COPIED_BYTES else [b"".join(pieces)]
