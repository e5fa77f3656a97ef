"""Codecs of bodies: what compresses and encrypts what is stored.

They see the bytes that the rest of `catga_store.codec` makes, on their way to the store, and change
nothing else: a record is encoded, compared and planned as without them. `catga_store.core.bodies` applies
them to the requests of the store protocol.

| module | what it has |
|---|---|
| `base` | the protocol of a codec, and the place of a body |
| `chain` | the codecs of one store, in order |
| `frames` | the format of a stored body |
| `zstd`, `encryption`, `keys` | the codecs of the library |
"""

from __future__ import annotations

from catga_store.codec.bodies.base import BodyCodec
from catga_store.codec.bodies.base import BodyPlace
from catga_store.codec.bodies.chain import Chain
from catga_store.codec.bodies.encryption import Encrypt
from catga_store.codec.bodies.frames import ConcealedBody
from catga_store.codec.bodies.frames import UnreadableBody
from catga_store.codec.bodies.keys import Keys
from catga_store.codec.bodies.zstd import Zstd

__all__ = [
    "BodyCodec",
    "BodyPlace",
    "Chain",
    "ConcealedBody",
    "Encrypt",
    "Keys",
    "UnreadableBody",
    "Zstd",
]
