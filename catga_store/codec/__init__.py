"""Values to bytes and back: states of declared types, and plain JSON data.

Users of this package call the functions below. Inside it:

| module | what it does |
|---|---|
| `states` | states to bytes and back; its docstring says how each type is kept |
| `json_data` | plain JSON data to bytes and back |
| `naming`, `fingerprint` | what is stored about the type of a state |
| `evolution` | `flow_state`: names and versions of types, and upcasters between versions |
| `bitmaps` | sets of indices to bytes and back |
| `hooks/` | how each kind of type is encoded |
| `refusals` | the errors, with the place of the value in the state |
"""

from __future__ import annotations

from catga_store.codec.json_data import check_json_data
from catga_store.codec.json_data import decode_json
from catga_store.codec.json_data import encode_json
from catga_store.codec.naming import Naming
from catga_store.codec.naming import type_name
from catga_store.codec.naming import type_version
from catga_store.codec.states import check_state_type
from catga_store.codec.states import class_of
from catga_store.codec.states import decode_state
from catga_store.codec.states import encode_state
from catga_store.codec.states import fit
from catga_store.codec.states import is_state_type
from catga_store.codec.states import naming
from catga_store.codec.states import type_of

__all__ = [
    "Naming",
    "check_json_data",
    "check_state_type",
    "class_of",
    "decode_json",
    "decode_state",
    "encode_json",
    "encode_state",
    "fit",
    "is_state_type",
    "naming",
    "type_name",
    "type_of",
    "type_version",
]
