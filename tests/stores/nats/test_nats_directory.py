"""The directory of the parts of a flow on NATS: a tree of nodes, compared with a sorted dict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from catga_store.errors import CorruptRecordError
from catga_store.protocol.keys import Key
from catga_store.stores.nats.part_directory import Directory
from catga_store.stores.nats.part_text import Child
from catga_store.stores.nats.part_text import Node
from catga_store.stores.nats.part_text import Row
from catga_store.stores.nats.part_text import decode_node
from catga_store.stores.nats.part_text import encode_node
from catga_store.stores.nats.part_text import size_of

MOST = 16 * 1024
K = Key("directory", "f")


def row(name: str, version: int = 1, size: int = 0) -> Row:
    """Make a row."""
    return Row(name, version, 0, 0, 0, "bytes", 1, "", 0, "commit", size)


class GoneError(Exception):
    """A node is not there any more."""


class Tree:
    """A directory that is stored after each change, and read again for the next one."""

    def __init__(self) -> None:
        self.texts = {"": encode_node(Node())}
        self.removed: set[str] = set()
        self.loaded: list[str] = []
        self._names = map(str, count())

    def open(self) -> Directory:
        """Read the root; the other nodes are read as they are needed."""
        return Directory(decode_node(K, self.texts[""]), self._load, lambda: next(self._names))

    def _load(self, path: Sequence[str], wanted: Sequence[str]) -> Node:
        assert path[0] == ""
        self.loaded.append(wanted[0])
        if wanted[0] not in self.texts:
            raise GoneError

        return decode_node(K, self.texts[wanted[0]])

    def keep(self, directory: Directory) -> None:
        """Store what was changed."""
        for name in directory.removed:
            self.texts.pop(name, None)
            self.removed.add(name)

        for name in directory.changed:
            assert name not in self.removed
            node = directory.node(name)
            assert size_of(node) <= MOST or len(node.rows or node.children) == 1
            assert node.rows or node.children or not name
            self.texts[name] = encode_node(node)

    def change(
        self, changes: list[tuple[bool, str]], model: dict[str, Row], version: int = 1
    ) -> None:
        """Make changes in one commit, here and in a dict."""
        directory = self.open()
        for is_put, name in changes:
            if is_put:
                directory.put(row(name, version))
                model[name] = row(name, version)
            else:
                assert directory.remove(name) == model.pop(name, None)

        self.keep(directory)

    def listed(
        self, first: str = "", last: str | None = None, *, reverse: bool = False
    ) -> list[Row]:
        """Read rows."""
        return list(self.open().rows(first, last, 100, reverse=reverse))


NAMES = st.builds(
    lambda text, length: text + "x" * length,
    st.text("ab\x00\U0001f98a", min_size=1, max_size=4),
    st.sampled_from([0, 1, 2000, 4000]),
)
CHANGES = st.lists(st.tuples(st.booleans(), NAMES), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, max_size=12), NAMES, NAMES)
def test_directory_is_a_sorted_dict(
    commits: list[list[tuple[bool, str]]], low: str, high: str
) -> None:
    """Whatever is inserted, replaced and removed; every range, both ways, after each commit."""
    tree, model = Tree(), dict[str, Row]()
    for number, changes in enumerate(commits):
        tree.change(changes, model, number)
        ordered = [model[name] for name in sorted(model)]
        assert tree.listed() == ordered
        assert tree.listed(reverse=True) == ordered[::-1]
        some = [one for one in ordered if low <= one.name < high]
        assert tree.listed(low, max(low, high)) == some
        assert tree.listed(low, high, reverse=True) == some[::-1]

    directory = tree.open()
    for name in list(model):
        assert directory.remove(name) is not None

    tree.keep(directory)
    assert tree.texts == {"": encode_node(Node())}


def test_names_in_order_fill_the_nodes() -> None:
    """An appended log leaves full nodes, and a page of it is read from two of them at any depth."""
    tree = Tree()
    directory = tree.open()
    for number in range(1, 30_001):
        directory.put(row(f"log/{number:012d}"))

    tree.keep(directory)
    leaves = [text for name, text in tree.texts.items() if name and b'"children":[]' in text]
    assert min(map(len, leaves[:-1])) > MOST * 0.9
    tree.loaded.clear()
    page = list(islice(tree.open().rows("log/000000020000", None, 100, reverse=False), 100))
    assert page[0].name == "log/000000020000"
    assert len(tree.loaded) <= 4
    tree.loaded.clear()
    last = list(islice(tree.open().rows("log/", "log0", 100, reverse=True), 100))
    assert last[0].name == "log/000000030000"
    assert len(tree.loaded) <= 4


def test_a_trimmed_directory_has_no_empty_nodes() -> None:
    """What is removed at the front costs the next listing nothing."""
    tree = Tree()
    directory = tree.open()
    for number in range(5000):
        directory.put(row(f"log/{number:012d}"))

    tree.keep(directory)
    directory = tree.open()
    for number in range(4990):
        directory.remove(f"log/{number:012d}")

    tree.keep(directory)
    tree.loaded.clear()
    assert len(tree.listed()) == 10
    assert len(tree.loaded) <= 3


def test_a_kept_body_keeps_its_size() -> None:
    """A change of the head alone does not say how large the body is."""
    directory = Tree().open()
    directory.put(row("a", size=7))
    directory.put(row("a", 2, size=-1))
    assert directory.remove("a") == row("a", 2, size=7)
    assert directory.remove("a") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=8), CHANGES)
def test_a_root_that_was_read_before_other_nodes(
    commits: list[list[tuple[bool, str]]], meanwhile: list[tuple[bool, str]]
) -> None:
    """Either a node is gone, and the root must be read again, or no row that stays is missed or doubled."""
    tree, model = Tree(), dict[str, Row]()
    for changes in commits:
        tree.change(changes, model)

    early, before = tree.open(), set(model)
    tree.change(meanwhile, model)
    try:
        found = [one.name for one in early.rows("", None, 100, reverse=False)]
    except GoneError:
        return

    assert found == sorted(set(found))
    assert before & set(model) <= set(found) <= before | set(model)


def test_an_inner_node_that_is_decoded_again() -> None:
    """It is what was written, whatever was done with it the first time, and under any name."""
    children = [Child("", "a"), Child("m", "b")]
    text = encode_node(Node([], list(children)))
    node = decode_node(K, text)
    node.children.append(Child("z", "c"))
    node.rows.append(row("x"))
    assert decode_node(K, text) == decode_node(K._replace(name="other"), text) == Node([], children)
    assert decode_node(K, encode_node(node)) == node
    with pytest.raises(CorruptRecordError):
        decode_node(K, text.replace(b"children", b"others"))
