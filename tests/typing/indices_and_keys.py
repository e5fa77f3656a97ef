"""What type checkers say of `IndexSet` and keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

from catga_store.model.index_set import IndexSet
from catga_store.protocol.keys import Key
from catga_store.protocol.keys import check_id
from catga_store.protocol.keys import flow_key


def operators_answer_index_sets(ours: IndexSet, others: frozenset[int]) -> None:
    assert_type(ours | others, IndexSet)
    assert_type(ours & others, IndexSet)
    assert_type(ours - others, IndexSet)
    assert_type(ours.missing(10, ours), Iterator[int])

    ours |= others
    assert_type(ours, IndexSet)


def keys_are_typed(value: object) -> None:
    assert_type(flow_key(check_id(value, "flow id")), Key)
