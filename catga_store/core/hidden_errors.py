"""The error of a flow in its head, where a store keeps it encrypted: `Encrypt(keys, hide_error=True)`.

It stays text, and goes through the codecs as a body does, bound to the same place. What cannot be decoded, and what
was written before, is shown as it is: an error is there to be read by people, and decides nothing.
"""

from __future__ import annotations

import base64
import binascii

from catga_store.codec.bodies import BodyPlace
from catga_store.codec.bodies import Chain
from catga_store.codec.bodies.frames import NUMBERED
from catga_store.errors import CorruptRecordError

__all__ = ["hidden", "is_current", "shown_error"]

_MARK = "encrypted error: "
_UNREADABLE = "an encrypted error that cannot be read"
_CHILD = "error"
"""In the place of an error, so that it is not that of the body beside it."""


def hidden(chain: Chain, text: str, place: BodyPlace) -> str:
    """Return what is stored of an error."""
    stored = chain.encode(text.encode(), place._replace(child=_CHILD), NUMBERED)
    return _MARK + base64.b64encode(stored).decode("ascii")


def shown_error(chain: Chain, text: str, place: BodyPlace) -> str:
    """Return the error that was stored as this text."""
    stored = _stored(text)
    if stored is None:
        return text

    def placed(kind: int) -> BodyPlace:
        if kind != NUMBERED:  # the place does not depend on it, so no codec would notice
            raise CorruptRecordError(_UNREADABLE, key=None)

        return place._replace(child=_CHILD)

    try:
        return chain.decode(stored, placed).decode()
    except (CorruptRecordError, UnicodeDecodeError):
        return _UNREADABLE


def is_current(chain: Chain, text: str, place: BodyPlace) -> bool:
    """Return whether an error would be stored through the same codecs and keys now."""
    stored = _stored(text)
    return stored is not None and chain.is_current(
        stored, lambda _kind: place._replace(child=_CHILD)
    )


def _stored(text: str) -> bytes | None:
    if not text.startswith(_MARK):
        return None

    try:
        return base64.b64decode(text[len(_MARK) :], validate=True)
    except (binascii.Error, ValueError):
        return None
