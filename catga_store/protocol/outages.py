"""Errors of an outage without the frames of the library, which say nothing about an outage."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError

__all__ = ["OUTAGES", "without_internal_frames"]

OUTAGES = StoreUnavailableError, StoreConfigError, CommitUncertainError
"""What is raised far below an operation because of a server, a network or a file."""

_INTERNAL = (
    str(Path(__file__).parents[1]),
    os.path.dirname(os.__file__),  # noqa: PTH120  a prefix of frames, as Python writes it
    "<frozen ",
    "<attrs ",
)
_PACKAGES = f"{os.sep}site-packages{os.sep}"


def without_internal_frames(error: CatgaStoreError) -> CatgaStoreError:
    """The same error from here on; its cause keeps its message, and loses what was before it.

    If a function of the user's is among the frames, as in a transaction, they all stay.
    """
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_INTERNAL) and _PACKAGES not in file:
            return error

        traceback = traceback.tb_next

    cause = error.__cause__
    if cause is not None:
        cause.__cause__ = None
        cause.__suppress_context__ = True
        cause.__traceback__ = None

    error.__suppress_context__ = True
    return error.with_traceback(None)
