"""The options that select flows, which several commands share.

`with_filters` gives a command these options in the place of its parameter `filters`, which it gets as the
filters of `Store.query_flows`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated
from typing import Any

import typer

import catga_store as cs
from catga_store.cli.store_options import moment
from catga_store.cli.store_options import one_of
from catga_store.protocol.masking import shown

__all__ = ["Finding", "Type", "tag_pairs", "with_filters", "with_options"]


def _text(name: str, metavar: str, text: str, **given: Any) -> Any:
    return Annotated[str | None, typer.Option(name, metavar=metavar, help=text, **given)]


Type = Annotated[
    str | None,
    typer.Option(
        "--type", metavar="NAME", help="Only flows whose state is stored under this type name."
    ),
]
Finding = Annotated[
    list[str] | None,
    typer.Option(
        "--finding",
        metavar="CODE",
        help=(
            "Only flows for which `stuck` reports this finding, such as wait_gone; may be repeated."
        ),
    ),
]

_OPTIONS: dict[str, Any] = {
    "status": _text(
        "--status",
        "STATUS",
        "Only flows with this status, such as running.",
        autocompletion=one_of(cs.FlowStatus),
    ),
    "kind": Type,
    "created_after": _text(
        "--created-after",
        "TIME",
        (
            "Only flows created at or after this time, such as 2030-01-31T12:00Z, or 2h for two "
            "hours ago."
        ),
    ),
    "created_before": _text(
        "--created-before",
        "TIME",
        "Only flows created before this time, such as 2030-01-31T12:00Z or 2h.",
    ),
    "updated_after": _text(
        "--updated-after", "TIME", "Only flows last written at or after this time."
    ),
    "updated_before": _text(
        "--updated-before",
        "TIME",
        "Only flows last written before this time, such as 7d for seven days ago.",
    ),
    "id_prefix": _text(
        "--id-prefix", "TEXT", "Only flows whose id begins with this text, sorted by id."
    ),
    "owner": _text(
        "--owner", "NAME", "Only flows claimed by this owner, even if the lease has ended."
    ),
    "error_contains": _text("--error", "TEXT", "Only flows whose error contains this text."),
    "attempts": Annotated[
        int | None,
        typer.Option("--attempts", min=1, help="Only flows with at least this many attempts."),
    ],
    "tag": Annotated[
        list[str] | None,
        typer.Option(
            "--tag", metavar="KEY=VALUE", help="Only flows with this tag; may be repeated."
        ),
    ],
}


def with_options(
    parameter: str, options: dict[str, tuple[Any, Any]], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: options, each with its type and default, take the place of a parameter.

    The command is called with what `make` returns for them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            given = {name: kwargs.pop(name) for name in options}
            command(*args, **{parameter: make(given)}, **kwargs)

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for one in signature.parameters.values():
            parameters += (
                [
                    inspect.Parameter(name, one.KEYWORD_ONLY, default=default, annotation=kind)
                    for name, (kind, default) in options.items()
                ]
                if one.name == parameter
                else [one]
            )

        annotations = dict(command.__annotations__)
        del annotations[parameter]
        decorated: Any = run  # typer reads both of these
        decorated.__annotations__ = annotations | {
            name: kind for name, (kind, _) in options.items()
        }
        decorated.__signature__ = signature.replace(parameters=parameters)
        return run

    return decorate


def _filters(given: dict[str, Any]) -> dict[str, Any]:
    """The filters that were given, as the library takes them."""
    filters = {
        "status": None if given["status"] is None else _status(given["status"]),
        "state_type": given["kind"],
        "created_after": moment(given["created_after"]),
        "created_before": moment(given["created_before"]),
        "updated_after": moment(given["updated_after"]),
        "updated_before": moment(given["updated_before"]),
        "id_prefix": given["id_prefix"],
        "owner": given["owner"],
        "error_contains": given["error_contains"],
        "attempts_at_least": given["attempts"],
        "tags": tag_pairs(given["tag"], "--tag") or None,
    }
    return {name: value for name, value in filters.items() if value is not None}


def tag_pairs(texts: list[str] | None, taker: str) -> dict[str, str]:
    """Read tags as they are typed, `KEY=VALUE`, for what takes them."""
    tags: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals:
            message = f"{taker}: expected KEY=VALUE, such as tenant=acme, got {shown(text)}"
            raise cs.UsageError(message)

        tags[key] = value

    return tags


def _status(text: str) -> cs.FlowStatus:
    try:
        return cs.FlowStatus[text.upper()]
    except KeyError:
        names = ", ".join(status.name.lower() for status in cs.FlowStatus)
        message = f"unknown status {shown(text)}: expected one of {names}"
        raise cs.UsageError(message) from None


with_filters = with_options(
    "filters", {name: (kind, None) for name, kind in _OPTIONS.items()}, _filters
)
"""Decorate a command that takes `filters`."""
