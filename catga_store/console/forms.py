"""What a request says: filters, ids, versions, the fields of a form.

Ids are in the query of an address, never in a path or a form: they may hold any character, and browsers
change dots in paths and line breaks in forms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from typing import TypeVar
from typing import cast
from urllib.parse import parse_qsl

from attrs import frozen
from starlette.datastructures import QueryParams
from starlette.requests import Request

from catga_store.core.options import FlowFilters
from catga_store.errors import UsageError
from catga_store.model.flows import FlowStatus
from catga_store.model.time_texts import moment
from catga_store.model.waits import WaitOutcome
from catga_store.protocol.masking import shown

__all__ = ["FlowQuery", "fields_of", "lines_of", "member", "number", "tags_of"]

_MOST_BYTES = 4 * 1024 * 1024
"""The most that a form may take: a state that is edited, twice as long in its encoding."""

E = TypeVar("E", FlowStatus, WaitOutcome)


def member(kind: type[E], text: str, name: str) -> E | None:
    """Return the member of a name, `None` for an empty one; `UsageError` for another."""
    if not text:
        return None

    try:
        return kind[text.upper()]
    except KeyError:
        names = ", ".join(one.name for one in kind)
        message = f"{name}: expected one of {names}, got {shown(text)}"
        raise UsageError(message) from None


def number(text: str | None, name: str, *, default: int | None = None) -> int:
    """Return a whole number that a request says; `UsageError` if it is not one."""
    if not text and default is not None:
        return default

    if text is None or not text.isdecimal() or len(text) > 18:  # noqa: PLR2004  fits into 64 bits
        message = f"{name}: expected a whole number, got {shown(text)}"
        raise UsageError(message)

    return int(text)


@frozen
class FlowQuery:
    """The filters of a listing of flows, as texts, so that a form shows them again as they were typed."""

    texts: Mapping[str, str]
    tags: tuple[str, ...] = ()
    """Each as `key=value`."""

    NAMES = (
        "status",
        "type",
        "id_prefix",
        "created_after",
        "created_before",
        "updated_after",
        "updated_before",
        "owner",
        "error_contains",
        "attempts_at_least",
    )

    @classmethod
    def of(cls, query: QueryParams) -> FlowQuery:
        """Read the filters of a query. What stands in ids and texts counts, spaces included."""
        texts = {name: query[name] for name in cls.NAMES if query.get(name)}
        return cls(texts, tuple(filter(None, query.getlist("tag"))))

    @property
    def query(self) -> dict[str, Any]:
        """The same filters, for an address."""
        return {**self.texts, "tag": list(self.tags)}

    def filters(self) -> FlowFilters:
        """Return the filters for the store; `UsageError` for what is not understood."""
        texts = self.texts
        found: FlowFilters = {}
        if "status" in texts:
            found["status"] = member(FlowStatus, texts["status"].strip(), "status")

        if "type" in texts:
            found["state_type"] = texts["type"]

        if "id_prefix" in texts:
            found["id_prefix"] = texts["id_prefix"]

        for name in ("created_after", "created_before", "updated_after", "updated_before"):
            if name in texts:
                found[name] = moment(texts[name].strip())

        if "owner" in texts:
            found["owner"] = texts["owner"]

        if "error_contains" in texts:
            found["error_contains"] = texts["error_contains"]

        if "attempts_at_least" in texts:
            found["attempts_at_least"] = number(
                texts["attempts_at_least"].strip(), "attempts_at_least"
            )

        if self.tags:
            found["tags"] = dict(map(_tag, self.tags))

        return found


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        message = f"tag: expected KEY=VALUE, such as tenant=acme, got {shown(text)}"
        raise UsageError(message)

    return key, value


def lines_of(value: object, name: str) -> list[str]:
    """Return the lines of a field that are not empty, or the texts of a JSON list."""
    if value is None:
        return []

    if isinstance(value, str):
        return [line.strip("\r") for line in value.split("\n") if line.strip()]

    message = f"{name}: expected a list of strings, got {shown(value)}"
    texts = cast("list[object]", value) if isinstance(value, list) else [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in texts):
        raise UsageError(message)

    return cast("list[str]", texts)


def tags_of(value: object) -> dict[str, str]:
    """Return the tags of a field with lines of `KEY=VALUE`, or of a JSON object."""
    if isinstance(value, dict):
        return cast("dict[str, str]", value)  # the store checks them

    return dict(map(_tag, lines_of(value, "tags")))


async def fields_of(request: Request) -> dict[str, Any]:
    """Return the fields of a form or of a JSON object that was sent; `UsageError` if it is neither."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            message = f"the request is larger than {_MOST_BYTES:,} bytes"
            raise UsageError(message)

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        text = body.decode()
        if kind == "application/json":
            read: object = json.loads(text)
            if isinstance(read, dict):
                return cast("dict[str, Any]", read)
        elif kind == "application/x-www-form-urlencoded" or not text:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=1000)
            return dict(pairs)
    except ValueError as error:
        message = f"the request body cannot be read: {error}"
        raise UsageError(message) from error

    message = "the request body must consist of form fields or a JSON object"
    raise UsageError(message)
