"""The files that this process has open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["needs_proc", "open_files"]

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def open_files(folder: Path) -> list[str]:
    """Name the open files of this process that lie in a folder."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)  # noqa: PTH115  the link may lead to no path
        except FileNotFoundError:
            continue

        if target.startswith(str(folder)):
            found.append(target)

    return sorted(found)
