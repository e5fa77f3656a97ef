"""Who may read and write, and what every reply says to the browser.

A caller shows the token once, in the address that is printed (`?token=`) or as `Authorization: Bearer`.
The address sets a session cookie and redirects to itself without the token. The cookie is a random
number and its HMAC under a key that is derived from the token, so the console keeps no sessions, and
several processes with the same token accept the same cookies.

A write needs the token as `Bearer`, which no browser sends by itself, or a CSRF token that belongs to the
cookie; a request that comes from a page of another site is refused before that.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError
from http.cookies import SimpleCookie
from urllib.parse import parse_qsl
from urllib.parse import urlencode

from attrs import frozen
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from catga_store.errors import UsageError

__all__ = ["CSRF", "Guard", "Refusal", "SecureHeaders", "session_of"]

CSRF = "csrf"
"""The field of a form that holds the CSRF token."""

_SHORTEST = 16
_READING = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    "img-src 'self'; "
    "connect-src 'self'; "
    "form-action 'self'; "
    "base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: browsers would send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@frozen
class Refusal:
    """Why a request is refused."""

    status: int
    reason: str


@frozen
class _Session:
    """The caller of one request."""

    number: str
    is_new: bool
    has_token: bool


class Guard:
    """Checks callers; `token` is empty if the application that mounts the console has checked them."""

    def __init__(self, token: str | None, *, behind_login: bool) -> None:
        if behind_login and token:
            message = "token and behind_login=True cannot be combined; pass only one of them"
            raise UsageError(message)

        if token and len(token) < _SHORTEST:
            message = f"token: expected at least {_SHORTEST} characters, got {len(token)}"
            raise UsageError(message)

        self.token = "" if behind_login else token or secrets.token_urlsafe(32)
        self._key = hashlib.sha256(f"catga_store console {self.token}".encode()).digest()
        self.cookie = f"catga_console_{self._mac('name', '')[:8]}"

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose} {text}".encode(), "sha256").hexdigest()

    def check(self, request: Request) -> Refusal | None:
        """Recognise the caller of a request, whose session it sets; say why if it is refused."""
        number = self._number_of(request)
        bearer = self._is_bearer(request)
        allowed = not self.token or number is not None or bearer
        request.state.session = _Session(
            number or secrets.token_urlsafe(16), number is None and not bearer, bearer
        )
        if not allowed:
            return Refusal(
                401,
                "open the address that the console printed, which contains the token, or send the token as"
                " `Authorization: Bearer`",
            )

        if request.method not in _READING and _is_foreign(request):
            return Refusal(403, "the request comes from another site")

        return None

    def may_write(self, request: Request, sent: str | None) -> bool:
        """Whether a request that writes has the token itself, or the CSRF token of its session."""
        session = session_of(request)
        return session.has_token or (
            not session.is_new and _equal(sent or "", self.csrf_of(request))
        )

    def csrf_of(self, request: Request) -> str:
        """Return the CSRF token for the forms of a page."""
        return self._mac(CSRF, session_of(request).number)

    def address_without_token(self, request: Request) -> str | None:
        """Return where to redirect a caller that has shown the right token in the address."""
        pairs = parse_qsl(request.url.query, keep_blank_values=True)
        shown = [value for name, value in pairs if name == "token"]
        if not shown or not self.token or not _equal(shown[0], self.token):
            return None

        rest = urlencode([pair for pair in pairs if pair[0] != "token"])
        return f"/{request.url.path.lstrip('/')}{'?' if rest else ''}{rest}"

    def cookie_header(self, request: Request) -> str:
        """Return the header that starts the session of a request."""
        number = session_of(request).number
        path = request.scope.get("root_path", "") or "/"
        secure = "; Secure" if request.url.scheme == "https" else ""
        value = f"{number}.{self._mac('session', number)}"
        # Lax, so that a link to a flow works from elsewhere: reading changes nothing.
        return f"{self.cookie}={value}; Path={path}; HttpOnly; SameSite=Lax{secure}"

    def _number_of(self, request: Request) -> str | None:
        """The number of the session, if the cookie is one of ours."""
        try:
            cookies = SimpleCookie(request.headers.get("cookie", ""))
        except CookieError:
            return None

        number, _, mac = (
            cookies[self.cookie].value.partition(".") if self.cookie in cookies else ("", "", "")
        )
        return number if number and _equal(mac, self._mac("session", number)) else None

    def _is_bearer(self, request: Request) -> bool:
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        return bool(self.token) and kind.lower() == "bearer" and _equal(shown.strip(), self.token)


def session_of(request: Request) -> _Session:
    """Return the session that `Guard.check` has set."""
    session: _Session = request.state.session
    return session


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _is_foreign(request: Request) -> bool:
    """Whether the browser says that a page of another site has sent the request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")

    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host", "")


class SecureHeaders:
    """Adds the headers that confine a page to what the console serves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; every reply has the headers, errors included."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value

                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"

            await send(message)

        await self._app(scope, receive, send_with_headers)
