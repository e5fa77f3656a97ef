"""Codecs by URL: `?codecs=zstd&keys=env:CATGA_KEYS`. The names of codecs and the place of keys, never a key.

`parted` takes these options out of the URL of any store; `codecs_of` makes the codecs, and only then reads
the environment variable or the file that has the keys. Messages repeat no value.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from typing import cast
from urllib.parse import unquote

from attrs import frozen

from catga_store.codec.bodies import BodyCodec
from catga_store.codec.bodies import Encrypt
from catga_store.codec.bodies import Keys
from catga_store.codec.bodies import Zstd
from catga_store.core.options import StoreOptions
from catga_store.errors import StoreConfigError
from catga_store.errors import UsageError
from catga_store.protocol.masking import mask_url

__all__ = ["CODEC_OPTIONS", "URLCodecs", "bare", "parted", "with_codecs"]

CODEC_OPTIONS = ("accept_plain", "codecs", "keys")
_MEANT = {
    "accept_plain": "true or false",
    "codecs": "zstd",
    "keys": "env:NAME for an environment variable, or file:PATH; a URL must not contain a key itself",
}


@frozen
class URLCodecs:
    """What a URL says of codecs."""

    zstd: bool = False
    keys: tuple[str, str] | None = None
    """`env` and the name of a variable, or `file` and a path."""
    accept_plain: bool = False


def bare(url: str) -> str:
    """Return a URL without the options of codecs."""
    return parted(url)[0]


def parted(url: str) -> tuple[str, URLCodecs | None]:
    """Return a URL without the options of codecs, and what these say; `UsageError` for a wrong one."""
    given: object = url
    if not isinstance(given, str) or "?" not in given:
        return url, None

    place, _, query = given.partition("?")
    if "@" in query or "#" in query:
        return url, None  # the grammar of the URL says what is wrong with it

    others: list[str] = []
    found: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name not in CODEC_OPTIONS:
            others.append(pair)
        elif name in found:
            raise _refusal(url, f"has the option {name} twice; remove one")
        else:
            found[name] = value

    if not found:
        return url, None

    return f"{place}?{'&'.join(others)}" if others else place, _read(url, found)


def _read(url: str, found: dict[str, str]) -> URLCodecs:
    for name, pattern in (
        ("codecs", "zstd"),
        ("keys", "(env|file):.+"),
        ("accept_plain", "true|false"),
    ):
        if name in found and not re.fullmatch(pattern, found[name]):
            raise _refusal(url, f"has an invalid value for {name}: expected {_MEANT[name]}")

    if "accept_plain" in found and "keys" not in found:
        raise _refusal(url, "has accept_plain, which has no effect without keys=; add keys=")

    keys = None
    if "keys" in found:
        scheme, _, where = found["keys"].partition(":")
        keys = scheme, unquote(where)

    return URLCodecs("codecs" in found, keys, found.get("accept_plain") == "true")


def with_codecs(url: str, options: StoreOptions) -> tuple[str, StoreOptions]:
    """Return a URL without the options of codecs, and the options of the store with those codecs."""
    rest, said = parted(url)
    if said is None:
        return url, options

    if options.get("codecs") is not None:
        raise _refusal(
            url, "has options for codecs, but codecs= was passed as well; remove one of the two"
        )

    more: dict[str, Any] = {**options, "codecs": _codecs_of(said)}
    return rest, cast("StoreOptions", more)


def _codecs_of(said: URLCodecs) -> list[BodyCodec]:
    codecs: list[BodyCodec] = [Zstd()] if said.zstd else []
    if said.keys is not None:
        codecs.append(Encrypt(_keys_at(*said.keys), accept_plain=said.accept_plain))

    return codecs


def _keys_at(scheme: str, where: str) -> Keys:
    if scheme == "env":
        text, place = os.environ.get(where), f"the environment variable {where!r}"
        if text is None:
            message = f"keys: {place} is not set, so nothing was opened"
            raise StoreConfigError(message)
    else:
        place = f"the file {where!r}"
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            message = f"keys: {place} cannot be read ({reason}), so nothing was opened"
            raise StoreConfigError(message) from None

    try:
        return Keys.parse(text)
    except UsageError as error:
        message = f"{error}; the keys were read from {place}, and nothing was opened"
        raise StoreConfigError(message) from None


def _refusal(url: str, why: str) -> UsageError:
    return UsageError(f"{mask_url(url)!r} {why}")
