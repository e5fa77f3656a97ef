"""The errors of this package: which value, where, what was expected and what was found.

The functions that encode and decode are fast and do not know where they are. When one fails, the
same work is done again by functions that track the path, and what those say becomes the error.
"""

from __future__ import annotations

from collections.abc import Callable

from catga_store.codec.hooks import MAX_LEVELS
from catga_store.codec.hooks import Misfit
from catga_store.errors import EncodingError

__all__ = ["encoding_error", "explained", "sentence"]


def explained(call: Callable[[], object], error: Exception) -> Misfit:
    """Do the work again with the functions that track the path, and return what they raise.

    `error` is what the fast functions raised: it counts if the second run raises nothing.
    """
    try:
        call()
    except Exception as second:
        return _misfit(second)

    return _misfit(error)


def _misfit(error: Exception) -> Misfit:
    if isinstance(error, Misfit):
        return error

    if isinstance(error, RecursionError):
        return Misfit(
            f"at most {MAX_LEVELS} levels of nesting",
            "more levels, or a call stack that is too deep",
        )

    return Misfit("a value that its type accepts", f"{type(error).__name__}: {error}")


def encoding_error(subject: str, misfit: Misfit) -> EncodingError:
    """Return the error for a value that cannot be encoded."""
    error = EncodingError(sentence(subject, misfit, "encoded"), path=misfit.path)
    error.__cause__ = misfit.__cause__
    return error


def sentence(subject: str, misfit: Misfit, verb: str) -> str:
    """Say what a misfit is, and that nothing was encoded or decoded."""
    why = f" ({misfit.why})" if misfit.why else ""
    place = "" if misfit.path == "$" else f"at {misfit.path} "
    return (
        f"{subject}: {place}expected {misfit.expected}, "
        f"found {misfit.found}{why}; nothing was {verb}"
    )
