"""A namespace of one's own in any store, by URL, that is removed afterwards.

| URL | scratch |
|---|---|
| `memory://`, `memory://name` | another name |
| `sqlite:///flows.db` | another file in the same directory, and so on the same file system |
| `redis://host/0?prefix=x:` | another prefix in the same database |
| `nats://host?bucket=x` | another bucket on the same servers |
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl
from urllib.parse import quote
from urllib.parse import unquote
from urllib.parse import urlencode
from urllib.parse import urlsplit

from catga_store.errors import UsageError

__all__ = ["scratch_url"]


@contextmanager
def scratch_url(url: str, clear: Callable[[str], None] | None = None) -> Generator[str]:
    """The URL of an empty namespace beside that of `url`, which itself is not touched.

    At the end a scratch file is deleted; a scratch prefix or bucket is handed to `clear`, by default
    one that opens it and removes every record. `UsageError` for a URL of no store.
    """
    parts = urlsplit(url)
    name = f"scratch-{uuid.uuid4().hex}"
    if parts.scheme == "memory":
        yield f"memory://{name}"
    elif parts.scheme == "sqlite":
        path = Path(unquote(parts.path)[1:]).absolute().with_name(f"{name}.db")
        try:
            yield f"sqlite:///{quote(str(path))}"
        finally:
            for left in path.parent.glob(f"{name}.db*"):
                left.unlink()
    elif parts.scheme in ("redis", "rediss", "nats", "tls"):
        option = "prefix" if parts.scheme.startswith("redis") else "bucket"
        query = [pair for pair in parse_qsl(parts.query) if pair[0] != option]
        there = parts._replace(query=urlencode([*query, (option, name)])).geturl()
        try:
            yield there
        finally:
            (clear or _clear)(there)
    else:
        message = f"{url!r} names no store that this release knows"
        raise UsageError(message)


def _clear(url: str) -> None:
    from catga_store.urls import open_store  # noqa: PLC0415  the plugin loads this in every run

    with open_store(url) as store:
        store.clear()
