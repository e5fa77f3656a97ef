"""What the URL of a store may say, and what is wrong with one that says something else.

`parse_url` reads a URL without opening anything, and refuses what it does not understand: nothing in
a URL is passed over. Messages name the option or the part at fault and what was probably meant; they
never repeat a value, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from typing import TypeAlias
from urllib.parse import SplitResult
from urllib.parse import parse_qsl
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from attrs import field
from attrs import frozen

from catga_store.core.options import StoreOptions
from catga_store.errors import UsageError
from catga_store.opening.url_codecs import CODEC_OPTIONS
from catga_store.protocol.masking import mask_url
from catga_store.protocol.masking import shown

__all__ = [
    "MemoryURL",
    "NatsURL",
    "RedisURL",
    "SQLiteURL",
    "StoreURL",
    "check_nats_server",
    "parse_redis_url",
    "parse_url",
]

_REDIS = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")
_NATS = ("nats", "tls")
_SCHEMES = ("memory", "sqlite", *_REDIS, *_NATS)
_FORMS = (
    "memory://, memory://name, sqlite:///flows.db, sqlite:////var/lib/flows.db,"
    " redis://host:6379/0 or nats://host:4222"
)


@frozen
class MemoryURL:
    """`memory://name`; the name is empty for a store that does not share its records."""

    name: str


@frozen
class SQLiteURL:
    """`sqlite:///path`."""

    path: str


@frozen
class RedisURL:
    """A server, cluster or socket; `text` is the URL without the options of the store."""

    text: str = field(repr=mask_url)
    own: Mapping[str, Any]
    """Options of the store itself, as keywords of `RedisStore.from_url`."""


@frozen
class NatsURL:
    """Servers of one cluster."""

    servers: list[str]
    connect: Mapping[str, Any] = field(repr=False)
    """What `nats.connect` takes besides the servers."""
    own: Mapping[str, Any]
    """Options of the store itself, as keywords of `NatsStore`."""


StoreURL: TypeAlias = MemoryURL | SQLiteURL | RedisURL | NatsURL


# --- options: what each may hold ------------------------------------------------------------------


def _text(value: str) -> str:
    if not value:
        raise ValueError

    return value


def _number(least: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", value) or int(value) < least:
            raise ValueError

        return int(value)

    return read


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or not float(value):
        raise ValueError

    return float(value)


def _truth(value: str) -> bool:
    truths = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = truths.get(value.lower())
    if found is None:
        raise ValueError

    return found


def _one_of(*known: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in known:
            raise ValueError

        return value

    return read


@frozen
class _Option:
    read: Callable[[str], Any]
    """Returns the value, or raises `ValueError`."""
    meant: str
    own: bool = False
    """Whether it belongs to the store, not to the library that connects."""


def _texts(*names: str) -> dict[str, _Option]:
    return {name: _Option(_text, "a non-empty string") for name in names}


_SOME_SECONDS = _Option(_seconds, "a number of seconds above 0")
_TRUE_OR_FALSE = _Option(_truth, "true or false")

_REDIS_OPTIONS: dict[str, _Option] = {
    "acknowledged_by": _Option(_number(0), "an int of at least 0", own=True),
    "prefix": _Option(str, "a non-empty string", own=True),
    "db": _Option(_number(0), "a number of at least 0"),
    "health_check_interval": _Option(_number(0), "a number of seconds"),
    "max_connections": _Option(_number(1), "a number of at least 1"),
    "protocol": _Option(_one_of("2", "3"), "2 or 3"),
    "socket_connect_timeout": _SOME_SECONDS,
    "socket_keepalive": _TRUE_OR_FALSE,
    "socket_timeout": _SOME_SECONDS,
    **_texts("client_name", "password", "username"),
}
_REDIS_TLS_OPTIONS: dict[str, _Option] = {
    "ssl_cert_reqs": _Option(_one_of("required", "optional", "none"), "required, optional or none"),
    "ssl_check_hostname": _TRUE_OR_FALSE,
    **_texts("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_ciphers", "ssl_keyfile"),
    **_texts("ssl_password"),
}
_NATS_OPTIONS: dict[str, _Option] = {
    "bucket": _Option(str, "a non-empty string", own=True),
    "create": _Option(_truth, "true or false", own=True),
    "domain": _Option(_text, "a non-empty string", own=True),
    "max_bytes": _Option(_number(0), "a number of bytes, such as 10000000000", own=True),
    "replicas": _Option(_number(0), "a number", own=True),
    "stale_reads": _Option(_truth, "true or false", own=True),
    **_texts("name", "nkeys_seed", "token", "user_credentials"),
}


# --- the parts of a URL ---------------------------------------------------------------------------


def parse_url(url: object) -> StoreURL:
    """Read the URL of a store; `UsageError` for anything else, with what was probably meant."""
    text, parts = _split(url)
    if parts.scheme == "memory":
        return _memory(text, parts)

    if parts.scheme == "sqlite":
        return _sqlite(text, parts)

    if parts.scheme in _REDIS:
        return _redis(text, parts)

    if parts.scheme in _NATS:
        return _nats(text, parts)

    near = get_close_matches(parts.scheme, _SCHEMES, 1) if "://" in text else []
    guess = f" (did you mean {near[0]}://…?)" if near else ""
    raise _refusal(text, f"is not a store URL{guess}; write {_FORMS}")


def parse_redis_url(url: object) -> RedisURL:
    """Read a URL of Redis; `UsageError` for anything else."""
    if not isinstance(url, str):
        message = f"Redis URL: expected a str, got {shown(url)}"
        raise UsageError(message)

    place = parse_url(url)
    if isinstance(place, RedisURL):
        return place

    raise _refusal(url, "is not a Redis URL; write redis://host:6379/0, or use open_store")


def check_nats_server(url: str) -> None:
    """Refuse what nats-py would pass over in the URL of one server, as a query or a path."""
    text = url if "://" in url else f"nats://{url}"
    text, parts = _split(text)
    if parts.scheme not in _NATS:
        raise _refusal(text, "is not a NATS URL; write nats://host:4222 or tls://host:4222")

    if parts.query:
        raise _refusal(
            text,
            (
                "has options, which this store does not read from a URL; pass them in connect=, "
                "or use open_store"
            ),
        )

    _nats(text, parts)


def _split(url: object) -> tuple[str, SplitResult]:
    if not isinstance(url, str):
        message = f"store URL: expected a str, got {shown(url)}"
        raise UsageError(message)

    if re.search(r"[\x00-\x1f\x7f]", url):
        raise _refusal(url, "has a control character, such as a newline; remove it, or write %0A")

    if url != url.strip():
        raise _refusal(url, "begins or ends with a space; remove it")

    try:
        parts = urlsplit(url)
        _ = parts.username, parts.password, parts.hostname
    except ValueError:
        parts = None  # raised below: the error quotes the URL

    if parts is None:
        raise _refusal(url, "is not a URL: its host cannot be read")

    return url, parts


def _refusal(url: str, why: str) -> UsageError:
    return UsageError(f"{mask_url(url)!r} {why}")


def _unescaped(url: str, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass  # raised below: the error holds the text

    raise _refusal(
        url,
        (
            "has a percent escape that is not UTF-8, such as %FF; write UTF-8 bytes in percent "
            "escapes"
        ),
    )


def _memory(url: str, parts: SplitResult) -> MemoryURL:
    _no_options(url, parts, "MemoryStore")
    if not re.match("memory://[^@:]*$", url, re.IGNORECASE) or parts.path not in ("", "/"):
        raise _refusal(url, "is not a memory store URL; write memory:// or memory://name")

    return MemoryURL(_unescaped(url, parts.netloc))


def _sqlite(url: str, parts: SplitResult) -> SQLiteURL:
    _no_options(url, parts, "SQLiteStore")
    absolute = "or sqlite:////var/lib/flows.db for an absolute path"
    if not re.match("sqlite:///", url, re.IGNORECASE):
        path = "" if "@" in url else url.partition(":")[2].strip("/")
        raise _refusal(
            url,
            f"has the wrong number of slashes after 'sqlite:'; write sqlite:///{path} for a relative"
            f" path, or sqlite:////{path} for an absolute path"
            if path
            else f"has no file path; write sqlite:///flows.db for a relative path, {absolute}",
        )

    path = _unescaped(url, parts.path)[1:]
    if not path:
        raise _refusal(
            url, f"has no file path; write sqlite:///flows.db for a relative path, {absolute}"
        )

    if path.endswith("/"):
        raise _refusal(url, "specifies a directory; add a file name")

    return SQLiteURL(path)


def _no_options(url: str, parts: SplitResult, store: str) -> None:
    if parts.fragment or "#" in url:
        raise _refusal(
            url, "has a fragment (#…), which no store uses; to use # in a path, write %23"
        )

    if parts.query:
        names = _named(parts.query)
        known = [name for name in names if name in StoreOptions.__annotations__]
        how = f" (pass {known[0]} as a keyword of open_store or {store})" if known else ""
        raise _refusal(
            url,
            "has a query, but the URL of this store accepts only the options "
            f"{', '.join(CODEC_OPTIONS)}{how}; to use ? in a path, write %3F",
        )


def _named(query: str) -> list[str]:
    return [pair.partition("=")[0] for pair in query.split("&")]


def _check_userinfo(url: str, parts: SplitResult) -> None:
    """Refuse a URL in which a password that was not escaped may stand elsewhere."""
    if parts.fragment or "#" in url:
        raise _refusal(
            url, "has a fragment (#…), which no store uses; to use # in a password, write %23"
        )

    if "@" in parts.path or "@" in parts.query:
        raise _refusal(
            url,
            "has an @ after the host; in a user name or password, write / as %2F, ? as %3F "
            "and # as %23; in an option, write @ as %40",
        )

    _unescaped(url, parts.netloc.rpartition("@")[0])


def _check_host(url: str, host: str, meant: str) -> None:
    """Refuse a host and port that no server can have."""
    name: str | None = None
    try:
        parts = urlsplit(f"x://{host}")
        name = parts.hostname
        port = parts.port
    except ValueError:
        port = 0  # refused below, where the error quotes the text

    if not name or re.search(r"\s", name):
        raise _refusal(url, f"has no host name; write {meant}")

    if port == 0:
        raise _refusal(url, f"has a port that is not a number from 1 to 65535; write {meant}")


def _redis(url: str, parts: SplitResult) -> RedisURL:
    _check_userinfo(url, parts)
    scheme = parts.scheme
    if scheme == "unix":
        _check_socket(url, parts)
    else:
        _check_host(url, parts.netloc.rpartition("@")[2], f"{scheme}://host:6379/0")

    with_tls = scheme.startswith("rediss")
    known = {**_REDIS_OPTIONS, **(_REDIS_TLS_OPTIONS if with_tls else {})}
    elsewhere = {} if with_tls else dict.fromkeys(_REDIS_TLS_OPTIONS, "rediss://")
    options = _options(url, parts, "Redis", known, elsewhere)
    if scheme != "unix":
        _check_database(url, parts.path, options.get("db"), is_cluster="+cluster" in scheme)

    own = {name: value for name, value in options.items() if known[name].own}
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, value) for name, value in pairs if name not in own])
    place = url[len(scheme) :].partition("?")[0]  # geturl() would drop the // of unix:///
    return RedisURL(f"{scheme}{place}{f'?{query}' if query else ''}", own)


def _check_socket(url: str, parts: SplitResult) -> None:
    host = parts.netloc.rpartition("@")[2]
    if host or not url[len("unix") :].startswith("://") or len(parts.path) <= len("/"):
        raise _refusal(url, "has no socket path; write unix:///run/redis.sock?db=0")

    _unescaped(url, parts.path)


def _check_database(url: str, path: str, db: int | None, *, is_cluster: bool) -> None:
    found = re.fullmatch(r"/?([0-9]{0,9})", path)
    if found is None:
        raise _refusal(url, "has a database that is not a number; write redis://host:6379/0")

    numbers = {int(found[1])} if found[1] else set[int]()
    numbers |= set() if db is None else {db}
    if len(numbers) > 1:
        raise _refusal(url, "specifies the database twice, in its path and as db=; remove one")

    if is_cluster and numbers - {0}:
        raise _refusal(
            url,
            (
                "specifies a database, but a cluster has only database 0; to separate stores, "
                "use prefix="
            ),
        )


def _nats(url: str, parts: SplitResult) -> NatsURL:
    _check_userinfo(url, parts)
    scheme = parts.scheme
    who, _, hosts = parts.netloc.rpartition("@")
    meant = f"{scheme}://host:4222, or {scheme}://a:4222,b:4222"
    if parts.path not in ("", "/"):
        raise _refusal(
            url,
            f"has a path, which NATS does not use; write {meant}, and specify the bucket with "
            "?bucket=",
        )

    if "," in who:
        raise _refusal(
            url,
            "has a comma before the @; write the user name and the password once, before the "
            "first host, and a comma in a password as %2C",
        )

    for host in hosts.split(","):
        _check_host(url, host, meant)

    options = _options(url, parts, "NATS", _NATS_OPTIONS, {})
    own = {name: value for name, value in options.items() if _NATS_OPTIONS[name].own}
    connect = {name: value for name, value in options.items() if name not in own}
    user, colon, password = who.partition(":")
    if colon:
        connect |= {"user": unquote(user), "password": unquote(password)}
    elif user:
        connect["token"] = unquote(user)

    return NatsURL([f"{scheme}://{host}" for host in hosts.split(",")], connect, own)


# --- the query ------------------------------------------------------------------------------------


def _options(
    url: str,
    parts: SplitResult,
    store: str,
    known: Mapping[str, _Option],
    elsewhere: Mapping[str, str],
) -> dict[str, Any]:
    """The options of a query, each read; `elsewhere` maps options to the scheme they need."""
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, errors="strict")
    except ValueError:
        pairs = None  # raised below: the error holds the text

    if pairs is None:
        raise _refusal(
            url,
            (
                "has an option with a percent escape that is not UTF-8, such as %FF; write UTF-8 "
                "bytes in percent escapes"
            ),
        )

    found: dict[str, Any] = {}
    for name, value in pairs:
        option = known.get(name)
        if option is None:
            raise _unknown_option(url, name, store, known, elsewhere)

        if name in found:
            raise _refusal(url, f"has the option {name} twice; remove one")

        try:
            found[name] = option.read(value)
        except ValueError:
            wrong = True  # raised below: the error holds the value
        else:
            wrong = False

        if wrong:
            raise _refusal(url, f"has an invalid value for {name}: expected {option.meant}")

    return found


def _unknown_option(
    url: str, name: str, store: str, known: Mapping[str, _Option], elsewhere: Mapping[str, str]
) -> UsageError:
    """Name an unknown option, if it looks like one: what is not the name of an option may be secret."""
    if name in elsewhere:
        return _refusal(url, f"has the option {name}, which requires {elsewhere[name]}")

    named = name if re.fullmatch("[a-z][a-z_]{0,39}", name) and f"{name}=" in url else None
    if named in StoreOptions.__annotations__:
        return _refusal(
            url, f"has the option {named}; pass it as a keyword instead: open_store(url, {named}=…)"
        )

    near = get_close_matches(name, [*known, *CODEC_OPTIONS], 1)
    which = "an option without a name" if named is None else f"the unknown option {named}"
    guess = f" (did you mean {near[0]}?)" if near else ""
    return _refusal(
        url,
        f"has {which}{guess}; the URL of a {store} store accepts the options "
        f"{', '.join(sorted([*known, *CODEC_OPTIONS]))}",
    )
