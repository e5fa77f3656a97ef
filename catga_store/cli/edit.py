"""The command `edit`: change one flow in an editor."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import cast

import typer

import catga_store as cs
from catga_store.cli.exit_codes import CONFLICT
from catga_store.cli.exit_codes import NO
from catga_store.cli.exit_codes import USAGE
from catga_store.cli.exit_codes import guarded
from catga_store.cli.exit_codes import leave
from catga_store.cli.output import print_json
from catga_store.cli.output import say
from catga_store.cli.store_options import AsJson
from catga_store.cli.store_options import StoreOption
from catga_store.cli.store_options import open_existing
from catga_store.model.documents import summary_document
from catga_store.protocol.masking import shown

__all__ = ["edit"]

_FIELDS = ("status", "position", "error", "due_at", "state")


@guarded
def edit(
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    *,
    store: StoreOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Edit the flow even if a worker holds it; the worker then loses its claim.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Edit a flow's status, position, error, due time and state as JSON, in `$VISUAL` or `$EDITOR`.

    The flow is written only if no other client has written it since it was read; otherwise the command exits
    with status 4 and shows where your text was saved. The state is not checked against its class; if it does
    not fit, the worker that reads it fails.

    `--json`: the fields of `ls`, after the change.
    """
    with open_existing(store) as opened:
        flow = opened.get_one(flow_id)
        _check(opened, flow, force=force)
        before = _document(flow)
        file = _edited(flow_id, json.dumps(before, indent=2, ensure_ascii=False))
        try:
            after = _read(file)
            is_changed = after != before
            if is_changed:
                _change(flow, before, after)
                opened.update(flow)
        except cs.ConflictError as error:
            leave(f"{error}; your text is in {file}", CONFLICT)
        except (cs.UsageError, ValueError, TypeError, KeyError) as error:
            leave(
                f"the text is not a valid flow, so nothing was written: {error}; your text is "
                f"in {file}",
                USAGE,
            )

        file.unlink()

    if as_json:
        print_json(summary_document(flow))
    else:
        say(f"written as version {flow.version}" if is_changed else "not changed")


def _check(store: cs.Store, flow: cs.FlowSnapshot[Any], *, force: bool) -> None:
    if isinstance(flow.state, bytes):
        leave(
            f"the state of flow {shown(flow.flow_id)} is binary data, which cannot be edited as "
            "JSON",
            NO,
        )

    if flow.owner and flow.due_at is not None and flow.due_at > store.now() and not force:
        message = (
            f"flow {shown(flow.flow_id)} is claimed by {shown(flow.owner)}, so it was not edited; "
            "release the flow first, or pass --force"
        )
        leave(message, NO)


def _document(flow: cs.FlowSnapshot[Any]) -> dict[str, Any]:
    return {
        "status": flow.status.name,
        "position": str(flow.position),
        "error": flow.error,
        "due_at": None if flow.due_at is None else flow.due_at.astimezone(UTC).isoformat(),
        "state": flow.state,
    }


def _edited(flow_id: str, text: str) -> Path:
    """Let the user edit a text; returns the file."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        leave(
            "no editor is set; set the EDITOR environment variable, for example EDITOR=nano", USAGE
        )

    handle, name = tempfile.mkstemp(prefix="catga-store-", suffix=".json")
    file = Path(name)
    os.close(handle)
    file.write_text(text + "\n", encoding="utf-8")

    try:
        done = subprocess.run([*shlex.split(editor), name], check=False)  # noqa: S603  the user's own choice
    except OSError as error:
        file.unlink()
        leave(f"the editor {shown(editor)} cannot be started: {error.strerror}", USAGE)

    if done.returncode:
        leave(
            f"the editor exited with status {done.returncode}, so flow {shown(flow_id)} was not "
            f"changed; your text is in {file}",
            NO,
        )

    return file


def _read(file: Path) -> dict[str, Any]:
    document: Any = json.loads(file.read_text(encoding="utf-8"))
    if type(document) is not dict or set(cast("dict[str, Any]", document)) != set(_FIELDS):
        message = f"expected a JSON object with exactly these fields: {', '.join(_FIELDS)}"
        raise cs.UsageError(message)

    return cast("dict[str, Any]", document)


def _change(flow: cs.FlowSnapshot[Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """Set what differs."""
    if after["status"] != before["status"]:
        flow.status = cs.FlowStatus[after["status"]]

    if after["position"] != before["position"]:
        flow.position = cs.FlowPosition(tuple(map(int, after["position"].split("/"))))

    if after["due_at"] != before["due_at"]:
        due = after["due_at"]
        flow.due_at = None if due is None else datetime.fromisoformat(due)

    flow.error, flow.state = after["error"], after["state"]
