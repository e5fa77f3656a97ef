"""Pages of the console as a test reads them, and clients that are let in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from starlette.testclient import TestClient

import catga_store as cs
from catga_store import console

TOKEN = "a-token-of-the-tests"


class Parsed(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def field(self, name: str) -> str:
        """Return the value of a hidden field."""
        return next(one["value"] or "" for one in self.all("input") if one.get("name") == name)


@contextmanager
def client_of(
    store: cs.Store, *, token: str | None = TOKEN, **options: Any
) -> Iterator[TestClient]:
    """Yield a client of a console that has shown the token, as a browser does."""
    application = console.app(store, token=token, **options)
    with TestClient(application, base_url="http://console.test") as client:
        if token:
            assert client.get(f"/flows?token={token}").status_code == 200

        yield client


def page_of(client: TestClient, address: str, status: int = 200) -> Parsed:
    """Load a page."""
    response = client.get(address)
    assert response.status_code == status, response.text
    return Parsed(response.text)


def submit(client: TestClient, form_on: str, action: str, **fields: str) -> Any:
    """Send a form of a page, with its CSRF token; redirects are not followed."""
    fields = {"csrf": page_of(client, form_on).field("csrf"), **fields}
    return client.post(action, data=fields, follow_redirects=False)
