"""Attacks on the console: each must fail, and each is tried on the application without a browser."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pages import TOKEN
from pages import Parsed
from pages import client_of
from pages import page_of
from pages import submit
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

import catga_store as cs
from catga_store import console

HOSTILE = [
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "</title></script><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}{% raw %}",
    "../../../etc/passwd",
    "..",
    "?id=other&status=FAILED#top",
    "%2e%2e%2f%00",
    "a\x00b",
    "a\r\nSet-Cookie: x=1\r\n\r\nb",
    "\u202egnp.exe",
    "\x1b]0;title\x07\x1b[2J",
    "//evil.test/",
    " ",
    "ü" * 256,
]
WRITES = [
    "/bulk?status=CREATED",
    "/bulk/run?status=CREATED",
    "/flow/cancel?id=f",
    "/flow/release?id=f",
    "/flow/retry?id=f",
    "/flow/wake?id=f",
    "/flow/edit?id=f",
    "/flow/tags?id=f",
    "/flow/fork?id=f",
    "/wait/complete?wait=w&child=c",
]


@pytest.fixture
def flows() -> cs.Store:
    """Return a store with one flow."""
    store = cs.MemoryStore(history=5)
    store.create(cs.FlowSnapshot("f", state={"n": 1}))
    return store


def safe(page: Parsed) -> None:
    """Check that a page has no script, handler or style but the console's own files, and no other host."""
    for tag, attributes in page.elements:
        assert tag not in ("style", "iframe", "object", "embed", "base", "img")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("href", "src", "action", "data-events"):
                assert value is not None
                assert value.startswith(("/", "#"))
                assert not value.startswith("//")

    assert [one["src"] for one in page.all("script")] == [
        "/static/htmx.min.js",
        "/static/console.js",
    ]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_ids(hostile: str) -> None:
    """Any id is listed, opened by its link, edited and forked, and is text everywhere."""
    store = cs.MemoryStore(history=5)
    store.create(cs.FlowSnapshot(hostile, state={hostile: [hostile]}, error=hostile))
    store.append(hostile, {hostile: hostile}, key=hostile)
    store.put_part(cs.Part(hostile, "p" + hostile[:100] + "p", hostile.encode(), tag=hostile[:100]))
    with client_of(store, write=True) as client:
        listing = page_of(client, "/flows")
        safe(listing)
        links = [one["href"] or "" for one in listing.all("a") if one.get("class") == "id"]
        assert len(links) == 1
        page = page_of(client, links[0])
        safe(page)
        assert client.get(links[0].replace("/flow?", "/flow.json?")).json()["flow_id"] == hostile
        parts = [one["href"] or "" for one in page.all("a") if "/part?" in (one["href"] or "")]
        safe(page_of(client, parts[0]))
        forms = [one["action"] or "" for one in page.all("form") if one.get("method") == "post"]
        assert {quote(hostile, safe="") in one.replace("+", "%20") for one in forms} == {True}
        edit = links[0].replace("/flow?", "/flow/edit?")
        safe(page_of(client, edit))
        form = submit(client, edit, edit, version="1", state='{"n": 2}')
        assert form.status_code == 303
        assert form.headers["location"].startswith("/flow?id=")
        assert "set-cookie" not in form.headers

    assert store.get_one(hostile).state == {"n": 2}


def test_hostile_state_and_messages(flows: cs.Store) -> None:
    """What ends a script, a comment or a page inside a state is text; so is what a request says."""
    text = "</script><script>alert(1)</script><!--<svg/onload=alert(1)>]]>"
    flows.create(cs.FlowSnapshot("g", state={text: text, "deep": [{text: [text]}]}, error=text))
    with client_of(flows, write=True) as client:
        for address in ("/flow?id=g", "/flow/edit?id=g", "/flows"):
            page = page_of(client, address)
            safe(page)

        for query in (
            f"status={quote(text)}",
            f"type={quote(text)}",
            f"created_after={quote(text)}",
        ):
            response = client.get(f"/flows?{query}")
            safe(Parsed(response.text))

        safe(page_of(client, f"/flow?id={quote(text)}", 404))
        safe(page_of(client, f"/{quote(text)}", 404))
        assert client.get("/flow.json?id=g").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "address",
    [
        "/",
        "/flows",
        "/flows.json",
        "/flow?id=f",
        "/part?id=f&name=p",
        "/events",
        "/static/console.js",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer "},
        {"Cookie": "catga_console_00000000=a.b"},
    ],
)
def test_no_page_without_the_token(flows: cs.Store, address: str, headers: dict[str, str]) -> None:
    """A missing or wrong token, a forged cookie: 401, and nothing of the store."""
    with TestClient(console.app(flows, token=TOKEN)) as client:
        response = client.get(address, headers=headers, follow_redirects=False)
        assert response.status_code == 401
        assert "set-cookie" not in response.headers
        wrong = client.get(f"{address.partition('?')[0]}?token=wrong", follow_redirects=False)
        assert wrong.status_code == 401


def test_a_forged_cookie(flows: cs.Store) -> None:
    """A cookie of this console with another number, or without its HMAC, opens nothing."""
    with client_of(flows) as client:
        (name, value) = next(iter(client.cookies.items()))
        client.cookies.clear()
        number, _, mac = value.partition(".")
        for forged in (f"x{number}.{mac}", number, f"{number}.", f".{mac}", f"{number}.{mac[:-1]}"):
            got = client.get("/flows", headers={"Cookie": f"{name}={forged}"})
            assert got.status_code == 401

        assert client.get("/flows", headers={"Cookie": f"{name}={value}"}).status_code == 200


def test_the_token_leaves_the_address(flows: cs.Store) -> None:
    """The right token in an address starts a session and redirects to the address without it."""
    with TestClient(console.app(flows, token=TOKEN), base_url="http://console.test") as client:
        first = client.get(f"/flow?id=f&token={TOKEN}", follow_redirects=False)
        assert first.status_code == 303
        assert first.headers["location"] == "/flow?id=f"
        cookie = first.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        elsewhere = client.get(
            f"http://console.test//evil.test/?token={TOKEN}", follow_redirects=False
        )
        assert elsewhere.headers["location"] == "/evil.test/"
        assert client.get("/flow?id=f").status_code == 200


def test_a_session_of_https_is_secure(flows: cs.Store) -> None:
    """Its cookie is sent by TLS only."""
    with TestClient(console.app(flows, token=TOKEN), base_url="https://c.test") as client:
        first = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert "; Secure" in first.headers["set-cookie"]


@pytest.mark.parametrize("address", WRITES)
def test_no_write_without_permission(flows: cs.Store, address: str) -> None:
    """A read-only console refuses every write, also with token and CSRF token, and shows no action."""
    with client_of(flows) as client:
        page = page_of(client, "/flow?id=f")
        assert not [one for one in page.all("form") if one.get("method") == "post"]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for path in (address, address.replace("?", ".json?")):
            response = client.post(path, json={"state": {}, "version": 1}, headers=headers)
            assert response.status_code == 403
            assert "read-only" in response.text

    assert flows.get_one("f").version == 1


@pytest.mark.parametrize("address", WRITES)
def test_no_write_without_csrf_token(flows: cs.Store, address: str) -> None:
    """A form without the CSRF token, or with that of another session, changes nothing."""
    fields = {"state": "{}", "version": "1", "new_id": "g", "reason": "r"}
    fields |= {"operation": "cancel", "left": "1"}
    with client_of(flows, write=True) as client, client_of(flows, write=True) as other:
        strange = page_of(other, "/flow/edit?id=f").field("csrf")
        for csrf in (None, "", "wrong", strange):
            sent = fields if csrf is None else {**fields, "csrf": csrf}
            response = client.post(address, data=sent, follow_redirects=False)
            assert response.status_code == 403
            assert "CSRF" in response.text

        assert client.get(address, follow_redirects=False).status_code in (200, 405)

    assert flows.get_one("f").version == 1
    assert flows.count_flows() == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://console.test.evil.test"},
    ],
)
def test_no_write_from_another_site(flows: cs.Store, headers: dict[str, str]) -> None:
    """What a browser sends for a page of another site is refused even with the right CSRF token."""
    with client_of(flows, write=True) as client:
        fields = {
            "csrf": page_of(client, "/flow/edit?id=f").field("csrf"),
            "state": "{}",
            "version": "1",
        }
        response = client.post("/flow/edit?id=f", data=fields, headers=headers)
        assert response.status_code == 403
        same = {"Origin": "http://console.test", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/flow/edit?id=f", data=fields, headers=same).status_code == 200


@pytest.mark.parametrize(
    "address",
    ["/flows", "/flows.json", "/flow?id=f", "/nothing", "/static/console.js", "/flow?id=x"],
)
def test_headers_of_every_reply(flows: cs.Store, address: str) -> None:
    """No inline script, no other host, no frame, no sniffing; pages are not kept."""
    with client_of(flows) as client:
        headers = client.get(address).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        is_file = address.startswith("/static")
        assert headers["cache-control"] == ("private, max-age=3600" if is_file else "no-store")


def test_no_secret_in_a_page() -> None:
    """Neither the token nor what a URL holds is in a page, its JSON, its headers, or an error."""
    store = cs.open_store("redis://user:hunter2@localhost:1/0?prefix=a:&password=hunter3")
    with client_of_closed(store) as client:
        for address in ("/flows", "/flows.json", "/flow?id=f", "/nothing", "/?token=hunter2"):
            response = client.get(address)
            shown = response.text + str(response.headers)
            assert not any(one in shown for one in ("hunter", TOKEN))

        assert client.get("/flows").status_code == 503


def client_of_closed(store: cs.Store) -> Any:
    """Return a client of a console whose store cannot be reached."""
    client = TestClient(console.app(store, token=TOKEN))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    return client


def test_static_files_only() -> None:
    """The folder of static files cannot be left."""
    with client_of(cs.MemoryStore()) as client:
        for path in ("/static/../application.py", "/static/%2e%2e/application.py", "/static/"):
            assert client.get(path).status_code == 404


def test_htmx_is_as_it_was_published() -> None:
    """The file of the npm package htmx.org 4.0.1, unchanged, with its licence beside it."""
    static = Path(console.__file__).parent / "static"
    published = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
    assert hashlib.sha256((static / "htmx.min.js").read_bytes()).hexdigest() == published
    assert "Permission to use" in (static / "htmx.LICENSE.txt").read_text("utf-8")


def test_requests_that_are_too_large_or_no_form(flows: cs.Store) -> None:
    """They are refused before anything is read from the store."""
    with client_of(flows, write=True) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        kinds = ("application/json", "application/x-www-form-urlencoded", "text/plain")
        for kind in kinds:
            for body in (b"x" * (5 * 1024 * 1024), b"\xff\xfe", b"[1]"):
                response = client.post(
                    "/flow/edit?id=f", content=body, headers={**headers, "Content-Type": kind}
                )
                assert response.status_code == 400

    assert flows.get_one("f").version == 1


def test_a_short_token_is_refused() -> None:
    """So is a token beside `behind_login`, and what is not a store."""
    with pytest.raises(cs.UsageError, match="expected at least 16"):
        console.app(cs.MemoryStore(), token="short")

    with pytest.raises(cs.UsageError, match="pass only one of them"):
        console.app(cs.MemoryStore(), token=TOKEN, behind_login=True)

    with pytest.raises(cs.UsageError, match="got <object object>"):
        console.app(object())  # type: ignore[arg-type]

    assert len(console.app(cs.MemoryStore(), token="").token) > 40


def test_behind_a_login(flows: cs.Store) -> None:
    """No token is asked for; writes still need the CSRF token of the session."""
    inside = console.app(flows, behind_login=True, write=True)
    outside = Starlette(routes=[Mount("/ops/console", inside)])
    with TestClient(outside, base_url="http://console.test") as client:
        response = client.post("/ops/console/flow/fork?id=f", data={"new_id": "g"})
        assert response.status_code == 403
        page = page_of(client, "/ops/console/flow?id=f")
        fields = {"csrf": page.field("csrf"), "new_id": "g"}
        done = client.post("/ops/console/flow/fork?id=f", data=fields)
        assert done.status_code == 200
        assert str(done.url) == "http://console.test/ops/console/flow?id=g&note=forked"
        assert next(iter(client.cookies.jar)).path == "/ops/console"

    assert flows.get_one("g").state == {"n": 1}
