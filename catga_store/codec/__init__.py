"""Values to bytes and back: states, plain JSON data, versions of types.

The functions of `states` are the room's door; `evolution` names types and their versions,
`fingerprint` tells whether a type has changed, and `hooks` encode one kind of type each.
"""

from __future__ import annotations

from catga_store.codec.states import check_json_data
from catga_store.codec.states import check_state_type
from catga_store.codec.states import class_of
from catga_store.codec.states import decode_json
from catga_store.codec.states import decode_state
from catga_store.codec.states import encode_json
from catga_store.codec.states import encode_state
from catga_store.codec.states import fit
from catga_store.codec.states import is_state_type
from catga_store.codec.states import type_name
from catga_store.codec.states import type_of
from catga_store.codec.states import type_version

__all__ = [
    "check_json_data",
    "check_state_type",
    "class_of",
    "decode_json",
    "decode_state",
    "encode_json",
    "encode_state",
    "fit",
    "is_state_type",
    "type_name",
    "type_of",
    "type_version",
]
