"""`app`: the routes of the console, and errors as pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import RedirectResponse
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Mount
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from catga_store.aio import AsyncStore
from catga_store.console.asking import awaitable
from catga_store.console.context import ConsoleContext
from catga_store.console.context import Doctors
from catga_store.console.context import Redact
from catga_store.console.context import context_of
from catga_store.console.context import types_by_name
from catga_store.console.forms import fields_of
from catga_store.console.rendering import compile_templates
from catga_store.console.rendering import data
from catga_store.console.rendering import is_json
from catga_store.console.rendering import page
from catga_store.console.safety import CSRF
from catga_store.console.safety import Guard
from catga_store.console.safety import SecureHeaders
from catga_store.console.safety import session_of
from catga_store.console.views import actions
from catga_store.console.views import bulk
from catga_store.console.views import doctor
from catga_store.console.views import events
from catga_store.console.views import flow
from catga_store.console.views import flows
from catga_store.console.views import overview
from catga_store.console.views import part
from catga_store.console.views import tags
from catga_store.console.views import waits
from catga_store.errors import CatgaStoreError
from catga_store.errors import CommitUncertainError
from catga_store.errors import ConflictError
from catga_store.errors import CorruptRecordError
from catga_store.errors import FlowNotFoundError
from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.errors import UsageError
from catga_store.errors import WaitConditionNotFoundError
from catga_store.store import Store

__all__ = ["Console", "app"]

Page: TypeAlias = Callable[[Request], Awaitable[Response]]
Action: TypeAlias = Callable[[Request, dict[str, Any]], Awaitable[Response]]

_STATIC = Path(__file__).parent / "static"
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (FlowNotFoundError, 404),
    (WaitConditionNotFoundError, 404),
    (UsageError, 400),
    (ConflictError, 409),
    (StoreConfigError, 503),
    (StoreUnavailableError, 503),
    (CommitUncertainError, 503),
    (CorruptRecordError, 500),
)
"""The status of the reply to each error of the library."""


class Console:
    """The ASGI application of a console, and the token that its callers must show."""

    def __init__(self, context: ConsoleContext) -> None:
        compile_templates()
        starlette = Starlette(
            routes=_routes(),
            exception_handlers={CatgaStoreError: _failed, HTTPException: _not_there},
            lifespan=_started,
        )
        starlette.state.console = context
        self._app = SecureHeaders(_Guarded(starlette, context))
        self.token = context.guard.token
        """What callers must show; empty with `behind_login`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        await self._app(scope, receive, send)


def app(
    store: Store | AsyncStore,
    *,
    write: bool = False,
    token: str | None = None,
    behind_login: bool = False,
    redact: Redact | None = None,
    doctors: Doctors | None = None,
    types: Iterable[Any] = (),
) -> Console:
    """Return the console of a store as an ASGI application, which you can serve by itself or mount in another one.

    An `AsyncStore` must belong to the event loop that serves the console; the operations of a `Store` run in
    threads. The store stays open when the application ends.

    Clients must present the `token`, which has at least 16 characters: either once in the address, as in
    `/?token=…`, which sets a cookie, or with each request, as `Authorization: Bearer`. If you do not pass a
    token, the application creates one; read it from the application's `token`. If several processes serve one
    console, pass the same token to all of them. With `behind_login`, the console does not ask for a token:
    the application that mounts the console must admit only users who may see the store.

    Without `write`, there are no actions, and requests that would change something are refused.

    `redact` is a function that receives a type name and JSON data, and returns the data to show instead. It
    is called for states, parts, log entries and the results of children. The type name is the one under which
    the data is stored; it is empty for plain JSON data. Data that `redact` changes cannot be edited. Ids,
    errors and tags are always shown as they are.

    `doctors` is a function that examines the server or file for the "Doctor" page; the `catga-store console`
    command passes a function for its URL. `types` are state classes, each with a name under which it is
    stored. If the class of an edited state does not accept the new state, the change is refused, and the page
    names the field. The states of other types are written as they were entered, and the page says so.

    Requires the `console` extra. Raises `UsageError` if `store` is not a store, if the token is too short, or
    if a type has no name.

    >>> import catga_store as cs
    >>> from catga_store import console
    >>> application = console.app(cs.MemoryStore(), token="a-long-enough-token")
    >>> application.token
    'a-long-enough-token'
    """
    return Console(
        ConsoleContext(
            awaitable(store),
            repr(store)[1:-1],
            write,
            Guard(token, behind_login=behind_login),
            redact,
            doctors,
            types_by_name(types),
        )
    )


@asynccontextmanager
async def _started(starlette: Starlette) -> AsyncGenerator[None, None]:
    """Look at the store before there are readers: on NATS the first look reads the names of all flows."""
    await overview.prepare(starlette.state.console)
    yield


def _routes() -> list[BaseRoute]:
    pages: dict[str, Page] = {
        "/doctor": doctor.show,
        "/flows": flows.show,
        "/flow": flow.show,
        "/part": part.show,
        "/wait": waits.show_one,
        "/waits": waits.show,
    }
    twins = {f"{path}.json": one for path, one in pages.items()}
    return [
        Route("/", overview.show),
        Route("/overview.json", overview.show),
        *(Route(path, one) for path, one in (pages | twins).items()),
        Route("/flow/edit", actions.show_editor, methods=["GET"]),
        Route("/flow/tags", tags.show, methods=["GET"]),
        *_actions(),
        Route("/events", events.stream),
        Mount("/static", _Static(directory=_STATIC)),
    ]


def _actions() -> Iterator[Route]:
    named: dict[str, Action] = {
        "/bulk": bulk.plan,
        "/bulk/run": bulk.run,
        "/flow/cancel": actions.cancel,
        "/flow/release": actions.release,
        "/flow/retry": actions.retry,
        "/flow/wake": actions.wake,
        "/flow/edit": actions.edit,
        "/flow/fork": actions.fork,
        "/flow/tags": tags.edit,
        "/wait/complete": actions.complete,
    }
    for path, action in named.items():
        for one in (path, f"{path}.json"):
            yield Route(one, _changing(action), methods=["POST"])


class _Static(StaticFiles):
    """The files of the console, which a browser may keep for an hour."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """Return a file."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response


class _Guarded:
    """Lets a request through to the pages if its caller may see them."""

    def __init__(self, starlette: Starlette, context: ConsoleContext) -> None:
        self._starlette = starlette
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._starlette(scope, receive, send)
            return

        scope["app"] = self._starlette  # the pages below know their console by it
        request = Request(scope, receive)
        guard = self._context.guard
        refusal = guard.check(request)
        address = guard.address_without_token(request)
        if address is not None and request.method == "GET":
            response: Response = RedirectResponse(address, 303)
            response.headers["Set-Cookie"] = guard.cookie_header(request)
            await response(scope, receive, send)
        elif refusal is not None:
            await _refused(request, refusal.status, refusal.reason)(scope, receive, send)
        else:
            await self._starlette(scope, receive, self._with_session(request, send))

    def _with_session(self, request: Request, send: Send) -> Send:
        """Behind a login no caller shows a token, so that the first page starts the session."""
        if not session_of(request).is_new:
            return send

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = self._context.guard.cookie_header(request)
                MutableHeaders(scope=message)["Set-Cookie"] = header

            await send(message)

        return send_with_cookie


def _changing(action: Action) -> Page:
    """Let an action through if this console may write and its caller has sent the CSRF token."""

    async def change(request: Request) -> Response:
        context = context_of(request)
        if not context.write:
            return _refused(
                request, 403, "this console is read-only; to make changes, start it with --write"
            )

        fields = await fields_of(request)
        sent = fields.pop(CSRF, None)
        if not context.guard.may_write(request, sent if isinstance(sent, str) else None):
            return _refused(request, 403, "the CSRF token is missing or wrong; reload the page")

        return await action(request, fields)

    return change


def _refused(request: Request, status: int, reason: str) -> Response:
    if is_json(request):
        return data({"error": {"kind": "Refused", "message": reason}}, status)

    return PlainTextResponse(f"{reason}\n", status)


async def _failed(request: Request, error: Exception) -> Response:
    """Return an error of the library as a page."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    kind = type(error).__name__
    if is_json(request):
        return data({"error": {"kind": kind, "message": str(error)}}, status)

    return page(request, "error.html", code=status, kind=kind, message=str(error))


async def _not_there(request: Request, error: Exception) -> Response:
    """Return an error of HTTP, as for an address that there is not."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = error.detail if isinstance(error, HTTPException) else "error"
    if is_json(request):
        return data({"error": {"kind": "HTTP", "message": message}}, status)

    return page(request, "error.html", code=status, kind=f"HTTP {status}", message=message)
