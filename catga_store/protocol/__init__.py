"""For authors of stores: the requests to a store, its replies, and the rules that stores share.

A store implements `StoreProtocol`: `converse(request)` returns a conversation, which is a generator that
yields requests to the store's transport. This package exports everything that a store needs:

- `requests`: the requests to a store (`Read`, `Commit`, `Due`, …) and its replies
- `conversation`: generators of requests, the requests that every driver performs, and the two failures that a
  transport raises
- `keys`: the names of records, and the two forms that an id has outside this process
- `failures`: the errors and warnings that every store raises in the same words

A store in this process implements `rules.Tables` instead; `catga_store.stores.embedded` does the rest.
`catga_store.protocol.rules` is also useful for stores on servers that decide in Python about rows that they
have read.
"""

from __future__ import annotations

from catga_store.protocol.conversation import Call
from catga_store.protocol.conversation import Conversation
from catga_store.protocol.conversation import NotSentError
from catga_store.protocol.conversation import Pause
from catga_store.protocol.conversation import ReplyLostError
from catga_store.protocol.conversation import Request
from catga_store.protocol.conversation import arun
from catga_store.protocol.conversation import ask
from catga_store.protocol.conversation import run
from catga_store.protocol.conversation import through
from catga_store.protocol.failures import check_layout
from catga_store.protocol.failures import given_up
from catga_store.protocol.failures import uncertain
from catga_store.protocol.failures import warn_passed_over
from catga_store.protocol.keys import FLOW
from catga_store.protocol.keys import MAX_ID_BYTES
from catga_store.protocol.keys import PART
from catga_store.protocol.keys import PROGRESS
from catga_store.protocol.keys import WAIT
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import counter_key
from catga_store.protocol.keys import decode_token
from catga_store.protocol.keys import encode_token
from catga_store.protocol.keys import entry_key
from catga_store.protocol.keys import flow_key
from catga_store.protocol.keys import is_entry
from catga_store.protocol.keys import is_hidden
from catga_store.protocol.keys import is_version
from catga_store.protocol.keys import log_of
from catga_store.protocol.keys import new_commit_id
from catga_store.protocol.keys import part_key
from catga_store.protocol.keys import partition_of
from catga_store.protocol.keys import progress_key
from catga_store.protocol.keys import version_key
from catga_store.protocol.keys import wait_key
from catga_store.protocol.requests import ANY
from catga_store.protocol.requests import CANCELLED
from catga_store.protocol.requests import CLAIMED
from catga_store.protocol.requests import ENDED
from catga_store.protocol.requests import EXISTS
from catga_store.protocol.requests import IF_ABSENT
from catga_store.protocol.requests import MAX_CHANGES
from catga_store.protocol.requests import MISSING
from catga_store.protocol.requests import PENDING
from catga_store.protocol.requests import REMEMBERED_COMMITS
from catga_store.protocol.requests import REPORTS
from catga_store.protocol.requests import SATISFIED
from catga_store.protocol.requests import STALE
from catga_store.protocol.requests import SWEEP_EVERY
from catga_store.protocol.requests import SWEPT_AT_ONCE
from catga_store.protocol.requests import TIMED_OUT
from catga_store.protocol.requests import Append
from catga_store.protocol.requests import Applied
from catga_store.protocol.requests import Change
from catga_store.protocol.requests import Check
from catga_store.protocol.requests import Clear
from catga_store.protocol.requests import Commit
from catga_store.protocol.requests import Complete
from catga_store.protocol.requests import Conflict
from catga_store.protocol.requests import Count
from catga_store.protocol.requests import CountDue
from catga_store.protocol.requests import Delete
from catga_store.protocol.requests import Due
from catga_store.protocol.requests import DueFilter
from catga_store.protocol.requests import DueWaits
from catga_store.protocol.requests import Extend
from catga_store.protocol.requests import Filter
from catga_store.protocol.requests import Find
from catga_store.protocol.requests import Found
from catga_store.protocol.requests import Head
from catga_store.protocol.requests import Identify
from catga_store.protocol.requests import Item
from catga_store.protocol.requests import ListDue
from catga_store.protocol.requests import ListedPart
from catga_store.protocol.requests import Outcome
from catga_store.protocol.requests import Overdue
from catga_store.protocol.requests import Parts
from catga_store.protocol.requests import Ping
from catga_store.protocol.requests import Put
from catga_store.protocol.requests import Read
from catga_store.protocol.requests import Record
from catga_store.protocol.requests import Refused
from catga_store.protocol.requests import RemoveParts
from catga_store.protocol.requests import Reply
from catga_store.protocol.requests import Resolve
from catga_store.protocol.requests import Scan
from catga_store.protocol.requests import Scanned
from catga_store.protocol.requests import SetWait
from catga_store.protocol.requests import Stats
from catga_store.protocol.requests import Steps
from catga_store.protocol.requests import Sweep
from catga_store.protocol.requests import Terms
from catga_store.protocol.requests import Totals
from catga_store.protocol.requests import has_tags
from catga_store.protocol.store_protocol import StoreProtocol

__all__ = [
    "ANY",
    "CANCELLED",
    "CLAIMED",
    "ENDED",
    "EXISTS",
    "FLOW",
    "IF_ABSENT",
    "MAX_CHANGES",
    "MAX_ID_BYTES",
    "MISSING",
    "PART",
    "PENDING",
    "PROGRESS",
    "REMEMBERED_COMMITS",
    "REPORTS",
    "SATISFIED",
    "STALE",
    "SWEEP_EVERY",
    "SWEPT_AT_ONCE",
    "TIMED_OUT",
    "WAIT",
    "Append",
    "Applied",
    "Call",
    "Change",
    "Check",
    "Clear",
    "Commit",
    "Complete",
    "Conflict",
    "Conversation",
    "Count",
    "CountDue",
    "Delete",
    "Due",
    "DueFilter",
    "DueWaits",
    "Extend",
    "Filter",
    "Find",
    "Found",
    "Head",
    "Identify",
    "Item",
    "Key",
    "ListDue",
    "ListedPart",
    "NotSentError",
    "Outcome",
    "Overdue",
    "Parts",
    "Pause",
    "Ping",
    "Put",
    "Read",
    "Record",
    "Refused",
    "RemoveParts",
    "Reply",
    "ReplyLostError",
    "Request",
    "Resolve",
    "Scan",
    "Scanned",
    "SetWait",
    "Stats",
    "Steps",
    "StoreProtocol",
    "Sweep",
    "Terms",
    "Totals",
    "arun",
    "ask",
    "check_layout",
    "counter_key",
    "decode_token",
    "encode_token",
    "entry_key",
    "flow_key",
    "given_up",
    "has_tags",
    "is_entry",
    "is_hidden",
    "is_version",
    "log_of",
    "new_commit_id",
    "part_key",
    "partition_of",
    "progress_key",
    "run",
    "through",
    "uncertain",
    "version_key",
    "wait_key",
    "warn_passed_over",
]
