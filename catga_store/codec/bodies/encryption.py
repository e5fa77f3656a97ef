"""Encryption of bodies with AES-256-GCM, bound to the place of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from catga_store.codec.bodies.base import BodyCodec
from catga_store.codec.bodies.base import BodyPlace
from catga_store.codec.bodies.keys import Keys
from catga_store.errors import CatgaStoreError
from catga_store.errors import CodecMissingError
from catga_store.errors import CorruptRecordError
from catga_store.errors import NotSupportedError
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError
from catga_store.protocol.masking import shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Encrypt"]

NONCE_BYTES, TAG_BYTES = 12, 16

KeysOf: TypeAlias = Callable[[str], "Keys | Mapping[str, bytes] | None"]


class Encrypt(BodyCodec):
    """Encrypts bodies with AES-256-GCM, each with a new random nonce and bound to its place.

    Requires `pip install 'catga_store[encryption]'`. `keys` maps key ids to keys of 32 bytes: bodies are
    encrypted with the key that `current` names, and decrypted with any of the keys. A key must not encrypt
    more than 2**32 bodies; rotate it before it reaches this limit.

    Instead of `keys`, you can pass `key_for`, a function that returns the keys of one flow. It receives the
    flow's id, or the correlation id of a wait condition, and returns `Keys`, a mapping with one key, or
    `None` if the flow has no key any longer; a write then raises `StoreConfigError`. The function must not
    block, so it should cache the keys that it fetches. A body cannot be read without its key: to destroy the
    data of one tenant, destroy the tenant's key.

    Reading a body raises `CorruptRecordError` if the body was altered, is not encrypted, or was moved from
    another flow, part, version, commit, kind of record or store. With `accept_plain=True`, bodies that are
    not encrypted can be read; use this option until `rewrap` has encrypted them. Reading a body whose key is
    missing raises `CodecMissingError`. With `hide_error=True`, the error of a flow is encrypted like its
    body, and `error_contains` cannot search it.

    The size of a body and the head of a record are not encrypted. The head contains ids, names, type, status,
    position, times, owner, tags and, without `hide_error`, the error.
    """

    name = "aes256gcm"
    binds = True
    conceals = True

    def __init__(
        self,
        keys: Keys | Mapping[str, bytes] | None = None,
        *,
        current: str | None = None,
        key_for: KeysOf | None = None,
        accept_plain: bool = False,
        hide_error: bool = False,
    ) -> None:
        if (keys is None) == (key_for is None):
            message = "Encrypt: expected either keys or key_for, got " + (
                "neither" if keys is None else "both"
            )
            raise UsageError(message)

        given: object = key_for
        if given is not None and not callable(given):
            message = f"key_for: expected a function that returns Keys, got {type(given).__name__}"
            raise UsageError(message)

        if given is not None and current is not None:
            message = (
                "current cannot be combined with key_for, because the Keys that key_for returns "
                "name the current key; pass current to Keys instead"
            )
            raise UsageError(message)

        switches: dict[str, object] = {"accept_plain": accept_plain, "hide_error": hide_error}
        for name, switch in switches.items():
            if type(switch) is not bool:
                message = f"{name}: expected True or False, got {shown(switch)}"
                raise UsageError(message)

        self.hides_error = hide_error

        self.required = not accept_plain
        self._make = _cipher_class()
        self._keys = None if keys is None else Keys.of(keys, current)
        self._key_for = key_for
        self._ciphers: dict[str, AESGCM] = {}
        if self._keys is not None:
            self._ciphers = {key_id: self._make(key) for key_id, key in self._keys.items()}

    def __repr__(self) -> str:
        """Name the keys, and show none."""
        more = "" if self.required else ", accept_plain=True"
        return f"Encrypt({'key_for=…' if self._keys is None else self._keys!r}{more})"

    def encode(self, data: bytes, place: BodyPlace) -> tuple[str, bytes]:
        """See `BodyCodec.encode`. Raises `StoreConfigError` if there is no key for the flow."""
        keys = self._keys_of(place)
        if keys is None:
            message = (
                f"key_for returned no key for flow {place.flow_id!r}, so this flow's records "
                "cannot be encrypted"
            )
            raise StoreConfigError(message)

        cipher = self._ciphers.get(keys.current) or self._make(keys[keys.current])
        return keys.current, seal(cipher, data, place.associated_data())

    def decode(self, label: str, data: bytes, place: BodyPlace) -> bytes:
        """See `BodyCodec.decode`."""
        cipher = self._ciphers.get(label) or self._cipher_for(place, label)
        if cipher is None:
            message = (
                f"the body is encrypted with the key {label!r}, which was not passed to this "
                "store; if you still have the key, add it to the store's keys (it need not be the "
                "current key); if the key was destroyed, the body cannot be recovered"
            )
            raise CodecMissingError(message, key=None, codec=self.name, label=label)

        plain = unseal(cipher, data, place.associated_data())
        if plain is None:
            message = (
                f"the body cannot be decrypted with the key {label!r}: the body was altered, "
                "moved from another record, version or store, or encrypted with a different key "
                "that has the same id"
            )
            raise CorruptRecordError(message, key=None)

        return plain

    def is_current(self, label: str, place: BodyPlace) -> bool:
        """See `BodyCodec.is_current`."""
        try:
            keys = self._keys_of(place)
        except CodecMissingError:
            return False  # decoding it says so

        return keys is not None and label == keys.current

    def _keys_of(self, place: BodyPlace) -> Keys | None:
        if self._key_for is None:
            return self._keys

        try:
            found: Any = self._key_for(place.flow_id)
        except CatgaStoreError:
            raise
        except Exception as error:
            # Its text may show a key.
            message = f"key_for raised {type(error).__name__} for flow {place.flow_id!r}"
            raise CodecMissingError(message, key=None, codec=self.name, label="") from None

        return None if found is None else Keys.of(found, None)

    def _cipher_for(self, place: BodyPlace, key_id: str) -> AESGCM | None:
        """Return the cipher of a key of one flow, `None` if there is no such key."""
        # It is not kept: a key that is destroyed must not stay here.
        keys = self._keys_of(place)
        return self._make(keys[key_id]) if keys is not None and key_id in keys else None


def _cipher_class() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        message = (
            "Encrypt needs cryptography, which is not installed; run pip install "
            "'catga_store[encryption]'"
        )
        raise NotSupportedError(message) from None

    return AESGCM


def seal(cipher: AESGCM, data: bytes, associated: bytes) -> bytes:
    """Return a fresh nonce, and the data encrypted under it with its tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, associated)


def unseal(cipher: AESGCM, sealed: bytes, associated: bytes) -> bytes | None:
    """Return what was sealed; `None` if it is not that, or not with these associated data."""
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        return None

    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except _invalid_tag():
        return None


@cache
def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag
