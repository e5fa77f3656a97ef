"""What the answers of a NATS server mean: acknowledgements, refusals, and stored messages."""

from __future__ import annotations

import base64
import time
from typing import Any
from typing import NamedTuple

from msgspec import json

from catga_store.errors import StoreConfigError
from catga_store.errors import StoreUnavailableError
from catga_store.protocol.chance import jittered
from catga_store.protocol.chance import uniform
from catga_store.protocol.conversation import Pause
from catga_store.stores.nats.record_text import Stored
from catga_store.stores.nats.transport import MOVED
from catga_store.stores.nats.transport import Answer

__all__ = [
    "AFTER_FULL_DISK",
    "BUSY",
    "END",
    "NOT_FOUND",
    "NO_MESSAGE",
    "NO_RESPONDERS",
    "TOO_MANY",
    "Ack",
    "Deadline",
    "ack_of",
    "api_error",
    "refusal_of",
    "stored_by_leader",
    "stored_of",
]

_PAUSES = (0.002, 0.25)
_TURN = 0.016
"""Seconds at most between two tries of one that another writer was faster than. Always the same: of eight
writers, one that waits longer after each try does not get its turn for minutes."""

END, NOT_FOUND, TOO_MANY, NO_RESPONDERS = 204, 404, 413, 503
STREAM_GONE, NO_MESSAGE = 10059, 10037
_RACED = {10071, 10164, 10201, 10158, 10060}
BUSY = {10176, 10210, 10008, 10009, 10199, 10118, 10101}
_FULL = {10077, 10047, 10023, 10028, 10110, 10054}
_IN_PART = 10023
"""A server that has run out of storage says so, also in the middle of a batch."""

AFTER_FULL_DISK = (
    "after a full disk, restart the server: JetStream stays off until then, even if space "
    "has been freed"
)


class Deadline:
    """When an operation must be certain, and the pauses until then: growing, and not in step."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._pause = _PAUSES[0]
        self.reason = ""
        """Why it was not done yet, as far as the server has said."""
        self.raced = False
        """Whether that is that another writer was faster."""

    def has_passed(self) -> bool:
        return time.monotonic() >= self._until

    def says(self, ack: Ack) -> None:
        """Take over what became of a publish."""
        self.reason, self.raced = ack.text, ack.raced and not ack.moved

    def pause(self) -> Pause:
        if self.raced:
            self.raced = False
            return Pause(uniform(0, _TURN))

        seconds = jittered(self._pause)
        self._pause = min(self._pause * 2, _PAUSES[1])
        return Pause(seconds)


class Ack(NamedTuple):
    """What became of a publish: its sequence; or 0, and whether it raced or was not possible yet."""

    sequence: int
    duplicate: bool = False
    raced: bool = False
    text: str = ""
    refusal: StoreUnavailableError | StoreConfigError | None = None
    """Why it will not be stored."""
    in_part: bool = False
    """Of a batch the first messages may be stored all the same."""
    moved: bool = False
    """It was not sent, because the connection was made again."""


def api_error(answer: Answer) -> tuple[int, str]:
    """The error in an answer of JetStream, as its code and text; `(0, "")` if there is none."""
    if answer.status:
        return answer.status, answer.headers.get("Description", "")

    error: dict[str, Any] = json.decode(answer.data).get("error") or {}
    return int(error.get("err_code", error.get("code", 0))), str(error.get("description", ""))


def refusal_of(stream: str, code: int, text: str) -> StoreUnavailableError | StoreConfigError:
    """Return the error for something that JetStream refused."""
    if code == STREAM_GONE:
        message = (
            f"the stream {stream!r} no longer exists; opening the store again creates an empty "
            "stream"
        )
        return StoreConfigError(message)

    if code in _FULL:
        message = (
            f"NATS is out of space, so nothing was written: {text} ({code}); free up space, or "
            f"raise the limits of the account or the server ({AFTER_FULL_DISK})"
        )
        return StoreUnavailableError(message)

    return StoreUnavailableError(
        f"NATS refused the request, so nothing was written: {text} ({code})"
    )


def ack_of(stream: str, answer: Answer) -> Ack:
    """Return what a server says of a publish that it did not acknowledge."""
    if answer.status == NO_RESPONDERS:
        text = (
            "JetStream does not respond, because no server leads the stream; check the servers "
            f"({AFTER_FULL_DISK})"
        )
        return Ack(0, text=text)

    if answer.status == MOVED:
        return Ack(0, raced=True, moved=True, text=answer.headers["Description"])

    reply: dict[str, Any] = json.decode(answer.data)
    error = reply["error"]
    code = int(error.get("err_code", 0))
    text = f"{error.get('description', '')} ({code})"
    if code in _RACED:
        return Ack(0, raced=True, text=text)

    if code in BUSY:
        return Ack(0, text=text)

    refusal = refusal_of(stream, code, str(error.get("description", "")))
    return Ack(0, text=text, refusal=refusal, in_part=code == _IN_PART)


def stored_of(answer: Answer) -> Stored:
    """Return what a Direct Get answered."""
    headers = answer.headers
    sequence, stamp = int(headers["Nats-Sequence"]), headers.get("Nats-Time-Stamp", "")
    if headers.get("KV-Operation"):
        return Stored(sequence, None, answer.data.decode(), stamp)

    return Stored(sequence, answer.data, "", stamp)


def stored_by_leader(message: dict[str, Any]) -> Stored:
    """Return what MSG.GET answered."""
    data = base64.b64decode(message.get("data") or "")
    headers = base64.b64decode(message.get("hdrs") or "")
    sequence, stamp = int(message["seq"]), str(message.get("time", ""))
    if b"KV-Operation:" in headers:
        return Stored(sequence, None, data.decode(), stamp)

    return Stored(sequence, data, "", stamp)
