"""The command line, `catga-store`. Its libraries come with the extra: `catga_store[cli]`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_LIBRARIES = ("typer", "rich")


def main() -> int:
    """Run the command line on `sys.argv`; answers the exit code."""
    try:
        from catga_store.cli.app import run  # noqa: PLC0415  its libraries may be absent
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise

        message = f"catga-store needs {error.name}: pip install 'catga_store[cli]'"
        print(message, file=sys.stderr)  # noqa: T201  a command's only way to say so
        return 2

    return run()
