"""Codecs of bodies: the format of what is stored, keys, and what each codec refuses."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import catga_store as cs
from catga_store.codec.bodies import Chain
from catga_store.codec.bodies.encryption import unseal
from catga_store.codec.bodies.frames import NUMBERED
from catga_store.codec.bodies.frames import framed
from catga_store.codec.bodies.frames import parse
from catga_store.codec.bodies.frames import trail_of

KEY = bytes(range(32))
PLACE = cs.BodyPlace("memory:x", "flow", "order-1", version=3, commit_id="c3")


def encrypting(**options: Any) -> cs.Encrypt:
    """Encrypt under one key."""
    return cs.Encrypt({"2026-11": KEY}, **options)


def decoded(chain: Chain, stored: bytes, place: cs.BodyPlace = PLACE) -> bytes:
    """Read a body at a place."""
    return chain.decode(stored, lambda _kind: place)


# known answers ------------------------------------------------------------------------------------


def test_published_vectors_of_aes_256_gcm() -> None:
    """Test case 16 of the specification of GCM by McGrew and Viega, and 14 for a body of zeros."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    sealed = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert unseal(AESGCM(key), nonce + sealed, associated) == plain
    assert unseal(AESGCM(key), nonce + sealed, b"") is None
    zeros = bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
    assert unseal(AESGCM(bytes(32)), bytes(12) + zeros, b"") == bytes(16)


def test_a_body_of_the_first_release_is_read_forever() -> None:
    """These bytes are what a release wrote: neither the frame nor the associated data may change."""
    stored = bytes.fromhex(STORED)
    assert decoded(Chain([cs.Zstd(), encrypting()]), stored) == b'{"state":1}' * 200
    assert trail_of(stored) == "zstd,aes256gcm=2026-11"
    assert PLACE.after("zstd").associated_data() == (
        b"catga_store body 1\0\0\0\x08memory:x\0\0\0\x04flow\0\0\0\x07order-1\0\0\0\x010\0\0\0\0"
        b"\0\0\0\x013\0\0\0\x02c3\0\0\0\0\0\0\0\0\0\0\0\x04zstd"
    )


STORED = (
    "f563730100167a7374642c61657332353667636d3d323032362d31316bf1480f41b70f19b8f42e8c575c24b6"
    "4b717ad4bfca269e9725855a14e6fa4f7b40289e40d8a0149b17910027284db671e699c3bbbca57c"
)


# encryption ---------------------------------------------------------------------------------------


def test_no_nonce_comes_twice() -> None:
    """100,000 bodies under one key have as many nonces, and so differ although they are equal."""
    codec = encrypting()
    sealed = [codec.encode(b"same", PLACE)[1] for _ in range(100_000)]
    assert len({body[:12] for body in sealed}) == len(set(sealed)) == 100_000


@pytest.mark.parametrize(
    "other",
    [
        {"store": "memory:y"},
        {"kind": "part"},
        {"flow_id": "order-2"},
        {"step": 1},
        {"name": "p"},
        {"version": 4},
        {"version": None},
        {"commit_id": "c4"},
        {"child": "c"},
        {"success": True},
        {"inner": ("zstd",)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_field_of_the_place_is_bound(other: dict[str, Any]) -> None:
    """A body is read where it was written, and nowhere else."""
    codec = encrypting()
    label, sealed = codec.encode(b"body", PLACE)
    moved = PLACE._replace(**other)
    assert codec.decode(label, sealed, PLACE) == b"body"
    with pytest.raises(cs.CorruptRecordError, match="cannot be decrypted with the key"):
        codec.decode(label, sealed, moved)


def test_places_that_look_alike_have_different_associated_data() -> None:
    """Text does not flow from one field into the next."""
    places = [
        cs.BodyPlace("s", "part", "ab", name="c"),
        cs.BodyPlace("s", "part", "a", name="bc"),
        cs.BodyPlace("s", "part", "a", name="b", inner=("c",)),
        cs.BodyPlace("s", "part", "a", name="b", commit_id="c"),
        cs.BodyPlace("s", "part", "a", name="b", child="c"),
        cs.BodyPlace("s", "part", "ü", name="b"),
        cs.BodyPlace("s", "part", "ü", name="", inner=("b",)),
    ]
    assert len({place.associated_data() for place in places}) == len(places)


def test_every_changed_byte_and_every_cut_is_refused() -> None:
    """Whatever byte of a stored body is changed, and wherever it ends too early, nothing is returned."""
    chain = Chain([cs.Zstd(min_bytes=0), encrypting()])
    stored = chain.encode(b"some body " * 20, PLACE, NUMBERED)
    for at in range(len(stored)):
        for bit in (1, 128):
            changed = stored[:at] + bytes([stored[at] ^ bit]) + stored[at + 1 :]
            with pytest.raises(cs.CorruptRecordError):
                decoded(chain, changed)

        with pytest.raises(cs.CorruptRecordError):
            decoded(chain, stored[:at])

    with pytest.raises(cs.CorruptRecordError):
        decoded(chain, stored + b"\0")


def test_forged_headers_are_not_kept_without_bound() -> None:
    """A store keeps how bodies of one header are read, and whoever can write to it can make many headers."""
    chain = Chain([cs.Zstd(), encrypting()])
    stored = chain.encode(b"body", PLACE, NUMBERED)
    for number in range(600):
        with pytest.raises(cs.CorruptRecordError):
            decoded(chain, stored.replace(b"2026-11", f"{number:07}".encode()))

    with pytest.raises(cs.CodecMissingError):
        decoded(chain, framed(NUMBERED, f"aes256gcm={'x' * 60_000}", stored[-60:]))

    assert len(chain._plans) <= 256
    assert max(map(len, chain._plans)) <= 1024
    assert decoded(chain, stored) == b"body"


def test_a_body_without_encryption_is_refused_unless_it_is_accepted() -> None:
    """Neither a plain body nor one that was only compressed passes for an encrypted one."""
    plain, pressed = b"plain", Chain([cs.Zstd(min_bytes=0)]).encode(b"p" * 99, PLACE, NUMBERED)
    strict = Chain([cs.Zstd(min_bytes=0), encrypting()])
    for stored in (plain, pressed):
        with pytest.raises(
            cs.CorruptRecordError, match=r"stored without the codec 'aes256gcm'.*accept_plain"
        ):
            decoded(strict, stored)

    lenient = Chain([cs.Zstd(min_bytes=0), encrypting(accept_plain=True)])
    assert decoded(lenient, plain) == plain
    assert decoded(lenient, pressed) == b"p" * 99
    assert trail_of(lenient.encode(plain, PLACE, NUMBERED)) == "aes256gcm=2026-11"


def test_old_keys_decrypt_and_only_the_current_one_encrypts() -> None:
    """A body names its key; without that it is a `CodecMissingError` with the id, not a wrong result."""
    old = Chain([encrypting()])
    stored = old.encode(b"body", PLACE, NUMBERED)
    rotated = Chain([cs.Encrypt({"2026-11": KEY, "2027-05": b"n" * 32}, current="2027-05")])
    assert decoded(rotated, stored) == b"body"
    again = rotated.encode(b"body", PLACE, NUMBERED)
    assert trail_of(again) == "aes256gcm=2027-05"
    assert not rotated.is_current(stored, lambda _kind: PLACE)
    assert rotated.is_current(again, lambda _kind: PLACE)
    with pytest.raises(cs.CodecMissingError, match="'2027-05'") as caught:
        decoded(old, again)

    assert (caught.value.codec, caught.value.label) == ("aes256gcm", "2027-05")
    other = Chain([cs.Encrypt({"2026-11": b"o" * 32})])
    with pytest.raises(cs.CorruptRecordError, match="different key that has the same id"):
        decoded(other, stored)


def test_a_key_for_each_flow() -> None:
    """`key_for` is asked with the flow's id; where it returns nothing, or fails, nothing is read or written."""
    kept = {"order-1": cs.Keys({"a": KEY})}

    def key_for(flow_id: str) -> cs.Keys | None:
        if flow_id == "broken":
            raise ValueError(KEY)

        return kept.get(flow_id)

    chain = Chain([cs.Encrypt(key_for=key_for)])
    stored = chain.encode(b"body", PLACE, NUMBERED)
    assert decoded(chain, stored) == b"body"
    del kept["order-1"]
    with pytest.raises(cs.CodecMissingError, match="destroyed"):
        decoded(chain, stored)

    with pytest.raises(cs.StoreConfigError, match="no key for flow 'order-1'"):
        chain.encode(b"body", PLACE, NUMBERED)

    broken = cs.BodyPlace("s", "flow", "broken")
    with pytest.raises(cs.CodecMissingError, match="key_for raised ValueError") as caught:
        chain.encode(b"body", broken, NUMBERED)

    assert caught.value.__cause__ is None
    assert repr(KEY) not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (cs.Encrypt, "neither"),
        (lambda: cs.Encrypt({"a": KEY}, key_for=lambda _id: None), "both"),
        (lambda: cs.Encrypt(key_for=KEY), "function"),
        (lambda: cs.Encrypt(key_for=lambda _id: None, current="a"), "Keys"),
        (lambda: cs.Encrypt({"a": KEY}, accept_plain=1), "accept_plain"),
        (lambda: cs.Encrypt({}), "got an empty one"),
        (lambda: cs.Encrypt(KEY), "bytes"),
        (lambda: cs.Encrypt({"a": KEY[1:]}), "31 bytes"),
        (lambda: cs.Encrypt({"a": "k" * 32}), "str"),
        (lambda: cs.Encrypt({"a": KEY, "b": KEY}), "current"),
        (lambda: cs.Encrypt({"a": KEY}, current="b"), "current"),
        (lambda: cs.Encrypt({KEY.decode("latin-1"): KEY}), "a key id must be"),
        (lambda: cs.Encrypt({"a,b": KEY}), "a key id must be"),
        (lambda: cs.Zstd(23), "level"),
        (lambda: cs.Zstd(min_bytes=-1), "min_bytes"),
        (lambda: cs.MemoryStore(codecs="zstd"), "list of codecs"),
        (lambda: cs.MemoryStore(codecs=[cs.Zstd]), "BodyCodec"),
        (lambda: cs.MemoryStore(codecs=[cs.Zstd(), cs.Zstd()]), "a different name"),
    ],
)
def test_wrong_options_are_refused(make: Any, found: str) -> None:
    """Each says what is wrong, and none shows a key."""
    with pytest.raises(cs.UsageError, match=found) as caught:
        make()

    assert "kkkk" not in str(caught.value)
    assert repr(KEY)[2:-1] not in str(caught.value)


def test_keys_as_text() -> None:
    """Base64 of both alphabets or hexadecimal, commas or white space, comments; the first is current."""
    text = f"""
    new={base64.urlsafe_b64encode(b"?" * 32).decode()}  # since May
    old={KEY.hex()},older={base64.b64encode(KEY).decode()}
    """
    keys = cs.Keys.parse(text)
    assert keys == {"new": b"?" * 32, "old": KEY, "older": KEY}
    assert (keys.current, repr(keys)) == ("new", "Keys('new' (current), 'old', 'older')")
    assert "current" in repr(cs.Encrypt(keys))
    for wrong in (
        "",
        KEY.hex(),
        f"a={KEY.hex()[1:]}",
        f"a={KEY.hex()} a={KEY.hex()}",
        f"={KEY.hex()}",
    ):
        with pytest.raises(cs.UsageError) as caught:
            cs.Keys.parse(wrong)

        assert KEY.hex()[4:] not in str(caught.value)


# compression --------------------------------------------------------------------------------------


def test_only_what_gets_smaller_is_compressed() -> None:
    """Short bodies and random ones are stored as they are, in a frame that says so."""
    chain = Chain([cs.Zstd(min_bytes=100)])
    for body, trail in ((b"a" * 99, ""), (b"a" * 100, "zstd"), (os.urandom(5000), "")):
        stored = chain.encode(body, PLACE, NUMBERED)
        assert trail_of(stored) == trail
        assert decoded(chain, stored) == body

    assert len(chain.encode(b"a" * 5000, PLACE, NUMBERED)) < 100


@pytest.mark.parametrize("level", [-7, 1, 3, 4, 5, 22])
def test_sizes_of_compressed_bodies(level: int) -> None:
    """On both sides of the size up to which smaller tables are used, bodies are read again, by any level."""
    for size in (1024, 64 * 1024, 64 * 1024 + 1, 200_000):
        body = b"".join(b'{"step":%d}' % number for number in range(size))[:size]
        stored = Chain([cs.Zstd(level)]).encode(body, PLACE, NUMBERED)
        assert len(stored) < size
        assert decoded(Chain([cs.Zstd()]), stored) == body


def test_what_says_it_is_too_large_is_not_decompressed() -> None:
    """A few bytes that claim to be a gigabyte are refused before memory is taken for them."""
    stored = Chain([cs.Zstd()]).encode(bytes(10_000), PLACE, NUMBERED)
    with pytest.raises(cs.CorruptRecordError, match="more than 9999 bytes"):
        decoded(Chain([cs.Zstd(max_bytes=9999)]), stored)

    frame = parse(stored)
    assert frame is not None
    for wrong in (frame.data[:-1], frame.data + b"\0", b"", frame.data[:4] + frame.data[5:]):
        with pytest.raises(cs.CorruptRecordError):
            decoded(Chain([cs.Zstd()]), stored[: -len(frame.data)] + wrong)


# codecs of one's own ------------------------------------------------------------------------------


class Upside(cs.BodyCodec):
    """Writes bodies backwards."""

    name = "upside"

    def encode(self, data: bytes, place: cs.BodyPlace) -> tuple[str, bytes] | None:
        """See `BodyCodec`."""
        del place
        return "v1", data[::-1]

    def decode(self, label: str, data: bytes, place: cs.BodyPlace) -> bytes:
        """See `BodyCodec`."""
        del place
        if label != "v1":
            raise ValueError(data)

        return data[::-1]


def test_codecs_are_applied_in_order_and_undone_in_reverse() -> None:
    """The stored body names them all, with their labels."""
    chain = Chain([Upside(), cs.Zstd(min_bytes=0), encrypting()])
    stored = chain.encode(b"body " * 50, PLACE, NUMBERED)
    assert trail_of(stored) == "upside=v1,zstd,aes256gcm=2026-11"
    assert decoded(chain, stored) == b"body " * 50
    assert decoded(Chain([encrypting(), cs.Zstd(), Upside()]), stored) == b"body " * 50
    with pytest.raises(cs.CodecMissingError, match="'upside'"):
        decoded(Chain([cs.Zstd(), encrypting()]), stored)


def test_a_codec_that_fails_is_named_and_shows_nothing() -> None:
    """Its error is the cause when a body is written, and is not shown when one is read."""

    class Broken(Upside):
        def encode(self, data: bytes, place: cs.BodyPlace) -> Any:
            del place
            if data == b"1":
                raise ValueError(data)

            return {b"2": data, b"3": ("a,b", data), b"4": ("a", "b")}[data]

    chain = Chain([Broken()])
    with pytest.raises(cs.StoreConfigError, match="'upside' raised ValueError") as caught:
        chain.encode(b"1", PLACE, NUMBERED)

    assert isinstance(caught.value.__cause__, ValueError)
    for body in (b"2", b"3", b"4"):
        with pytest.raises(cs.UsageError, match="label"):
            chain.encode(body, PLACE, NUMBERED)

    stored = Chain([Upside()]).encode(b"secret", PLACE, NUMBERED).replace(b"=v1", b"=v2")
    with pytest.raises(cs.CorruptRecordError, match="'upside' raised ValueError") as read:
        decoded(Chain([Upside()]), stored)

    assert read.value.__cause__ is None
    assert "terces" not in str(read.value)
