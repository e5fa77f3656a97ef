"""Documents as pages and as JSON."""

from __future__ import annotations

import json
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from jinja2 import PackageLoader
from jinja2 import StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.responses import Response

from catga_store.console.context import context_of
from catga_store.model.documents import json_value
from catga_store.protocol.masking import escaped

__all__ = ["address", "is_json", "page", "reply"]

_PAGES = (
    ("overview", "/", "Overview"),
    ("flows", "/flows", "Flows"),
    ("waits", "/waits", "Waits"),
    ("doctor", "/doctor", "Doctor"),
)
"""The navigation: the template of a page, its path, its title."""
_MOST_LINE = 200
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def is_json(request: Request) -> bool:
    """Whether a request asks for the JSON twin of a page."""
    return request.url.path.endswith(".json")


def reply(request: Request, template: str, document: dict[str, Any], **more: Any) -> Response:
    """Return a document as JSON, or as a page; `more` is for the page only."""
    if is_json(request):
        return data(document)

    return page(request, template, has_twin=True, **document, **more)


def data(document: object, status: int = 200) -> Response:
    """Return a document as JSON."""
    text = json.dumps(document, indent=2, default=json_value)
    return Response(text + "\n", status, media_type="application/json")


def page(
    request: Request, template: str, *, code: int = 200, has_twin: bool = False, **values: Any
) -> HTMLResponse:
    """Return a page."""
    context = context_of(request)
    base = request.scope.get("root_path", "")
    values |= {
        "base": base,
        "csrf": context.guard.csrf_of(request),
        "now": context.store.now(),
        "place": context.place,
        "section": template.partition(".")[0],
        "twin": f"{base}{_twin(request)}" if has_twin else "",
        "write": context.write,
    }
    return HTMLResponse(_environment().get_template(template).render(values), code)


def _twin(request: Request) -> str:
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    query = f"?{request.url.query}" if request.url.query else ""
    return f"{path.rstrip('/') or '/overview'}.json{query}"


def address(path: str, **query: object) -> str:
    """Return an address with a query, without what is empty."""
    pairs = {name: value for name, value in query.items() if value not in (None, "", [])}
    return f"{path}?{urlencode(pairs, doseq=True)}" if pairs else path


def compile_templates() -> None:
    """Compile every template, so that no request waits for that."""
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("catga_store.console"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    filters: dict[str, Any] = environment.filters
    filters |= {
        "age": _age,
        "plain": escaped,
        "when": _when,
        "size": _size,
        "span": _span,
        "tojson_text": _json_text,
    }
    names: dict[str, Any] = environment.globals
    names |= {"address": address, "pages": _PAGES}
    return environment


def _when(moment: datetime | None) -> Markup:
    """Show a time in UTC, to the second; nothing for `None`."""
    if moment is None:
        return Markup("&ndash;")

    utc = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S}Z"
    )


def _age(moment: datetime | None, now: datetime) -> str:
    """Say how long ago a time is, or in how long it comes."""
    if moment is None:
        return "-"

    length = now - moment
    if abs(length) < timedelta(seconds=1):
        return "now"

    return f"{_span(length)} ago" if length > timedelta(0) else f"in {_span(-length)}"


def _span(length: timedelta) -> str:
    """Show a length of time in its largest unit."""
    seconds = length // timedelta(seconds=1)
    unit, name = next((one for one in _SPANS if seconds >= one[0]), _SPANS[-1])
    return f"{seconds // unit} {name}"


def _json_text(value: Any) -> str:
    """Show a small value as JSON in one line, cut at 200 characters."""
    text = json.dumps(value, default=json_value, ensure_ascii=False)
    return escaped(text if len(text) <= _MOST_LINE else f"{text[:_MOST_LINE]}…")


def _size(number: int) -> str:
    """Show a number of bytes."""
    return f"{number:,} B" if number < 10_240 else f"{number / 1024:,.0f} KiB"  # noqa: PLR2004  10 KiB
