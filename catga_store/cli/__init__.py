"""The command line, `catga-store`. Its libraries come with the extra: `catga_store[cli]`."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]

_LIBRARIES = ("typer", "rich")


def main() -> NoReturn:
    """Run the command line on `sys.argv` and exit with its code."""
    try:
        from catga_store.cli.app import run  # noqa: PLC0415  its libraries may be absent
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise

        message = (
            f"catga-store needs {library}, which is not installed; run pip install "
            "'catga_store[cli]'"
        )
        print(message, file=sys.stderr)  # noqa: T201  a command's only way to say so
        sys.exit(2)

    run()
