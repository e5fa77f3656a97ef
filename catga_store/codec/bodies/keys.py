"""The keys of an encryption, by id."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import cast

from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

__all__ = ["Keys"]

KEY_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9._:/@-]{1,64}", re.ASCII)
_HEX = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)


class Keys(Mapping[str, bytes]):
    """Keys of 32 bytes, by key id. The current key encrypts; all keys decrypt.

    You can omit `current` if there is only one key. A key id has 1 to 64 characters from letters, digits and
    `._:/@-`; it is stored in readable form with each body. Neither `repr` nor error messages show a key.

    >>> Keys({"2026-11": bytes(32), "2026-05": bytes(range(32))}, current="2026-11")
    Keys('2026-11' (current), '2026-05')
    """

    def __init__(self, keys: Mapping[str, bytes], current: str | None = None) -> None:
        given: object = keys
        if not isinstance(given, Mapping) or not given:
            message = "keys: expected a non-empty mapping from key ids to keys, got " + (
                "an empty one" if isinstance(given, Mapping) else f"<{type(given).__name__} object>"
            )
            raise UsageError(message)

        self._keys = {_checked_id(key_id): key for key_id, key in keys.items()}
        for key_id, key in cast("dict[str, object]", self._keys).items():
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
                message = f"key {key_id!r}: expected {KEY_BYTES} bytes, got {found}"
                raise UsageError(message)

        if current is None and len(self._keys) == 1:
            (current,) = self._keys

        if current not in self._keys:
            message = (
                "current: expected the id of the key to encrypt with "
                f"({' or '.join(map(repr, self._keys)) or 'but there are no keys'}), got "
                f"{shown(current)}"
            )
            raise UsageError(message)

        self.current: str = current
        """The id of the key that encrypts."""

    @classmethod
    def of(cls, keys: Keys | Mapping[str, bytes], current: str | None) -> Keys:
        """Return `keys` as a `Keys` object."""
        return keys if isinstance(keys, Keys) and current is None else cls(keys, current)

    @classmethod
    def parse(cls, text: str) -> Keys:
        """Parse the keys in the text of a file or an environment variable; the first key is current.

        Each entry has the form `id=key`, in which the key is in base64 or consists of 64 hexadecimal digits.
        Entries are separated by white space or commas. The rest of a line after `#` is a comment. If an entry
        is invalid, the call raises `UsageError`, which gives the position of the entry but does not show a
        key.

        >>> Keys.parse("2026-11=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        Keys('2026-11' (current))
        """
        lines = [line.partition("#")[0] for line in text.splitlines()]
        entries = re.split(r"[\s,]+", " ".join(lines).strip())
        keys: dict[str, bytes] = {}
        for place, entry in enumerate(entries, 1):
            key_id, equals, encoded = entry.partition("=")
            key = _decoded(encoded) if equals else None
            if key is None or not _ID.fullmatch(key_id) or key_id in keys:
                message = (
                    f"keys: entry {place} of {len(entries)}: expected id=key, with a unique id "
                    f"and a base64-encoded key of {KEY_BYTES} bytes; the entry is not shown "
                    "because it may contain a key"
                )
                raise UsageError(message)

            keys[key_id] = key

        return cls(keys, next(iter(keys)))

    def __getitem__(self, key_id: str) -> bytes:
        """Return a key."""
        return self._keys[key_id]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._keys)

    def __repr__(self) -> str:
        """Show the ids."""
        names = [f"{key_id!r}{' (current)' * (key_id == self.current)}" for key_id in self._keys]
        return f"Keys({', '.join(names)})"


def _checked_id(key_id: object) -> str:
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        # It may be a key, passed in place of its id.
        message = (
            "keys: a key id must be 1 to 64 characters long and consist of letters, digits and "
            "._:/@-; the id that was passed is not shown because it may be a key"
        )
        raise UsageError(message)

    return key_id


def _decoded(text: str) -> bytes | None:
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)

    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None

    return key if len(key) == KEY_BYTES else None
