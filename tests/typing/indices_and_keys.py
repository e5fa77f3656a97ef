"""What type checkers say of `IndexSet` and keys."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import assert_type

import catga_store as cs
from catga_store.model.index_set import IndexSet
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key


def operators_return_index_sets(ours: IndexSet, others: frozenset[int]) -> None:
    assert_type(ours | others, IndexSet)
    assert_type(ours & others, IndexSet)
    assert_type(ours - others, IndexSet)


def sets_of_a_progress_are_read_and_assigned(progress: cs.ForEachProgress) -> None:
    assert_type(progress.failed_indices, AbstractSet[int])
    progress.failed_indices = [1, 2]
    progress.failed_indices.add(3)  # type: ignore[attr-defined]


def keys_are_typed(value: object) -> None:
    assert_type(flow_key(check_id(value, "flow id")), Key)
