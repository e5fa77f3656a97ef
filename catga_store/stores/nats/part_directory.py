"""The names of the parts of a flow in order, with what listings show of each: a tree of nodes.

A flow with few parts has all of them in the root. A node that becomes larger than `_MOST_BYTES` is
split into two new ones, and one that becomes empty goes. A node is therefore responsible for all names that
it ever was, as long as it exists: a parent that was read too early leads to a node that is right or
that is gone. Nodes with few rows are not joined, so a listing reads at most one node for each part that
it returns, and usually one for 100.
"""

from __future__ import annotations

from bisect import bisect_left
from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import takewhile
from operator import itemgetter

from catga_store.stores.nats.part_text import Child
from catga_store.stores.nats.part_text import Node
from catga_store.stores.nats.part_text import Row
from catga_store.stores.nats.part_text import size_of

__all__ = ["Directory", "Load"]

_MOST_BYTES = 16 * 1024
_ROWS_OF_A_NODE = 64
_MOST_AT_ONCE = 16

Load = Callable[[Sequence[str], Sequence[str]], Node]
"""Return the first of some nodes, given the nodes above it; all of them will be wanted, or most."""

_name = itemgetter(0)


class Directory:
    """The tree under one root; what is changed is in `changed` and `removed`."""

    def __init__(self, root: Node, load: Load, new_name: Callable[[], str]) -> None:
        self._nodes = {"": root}
        self._load = load
        self._new_name = new_name
        self._last: str | None = None
        self.changed: dict[str, None] = {}
        self.removed: dict[str, None] = {}

    def node(self, name: str) -> Node:
        """Return a node that was changed."""
        return self._nodes[name]

    def inner_nodes(self) -> dict[str, Node]:
        """Return the nodes that lead to others, as far as they were looked at."""
        return {name: node for name, node in self._nodes.items() if node.children}

    def _below(self, path: Sequence[str], wanted: Sequence[str]) -> str:
        if wanted[0] not in self._nodes:
            self._nodes[wanted[0]] = self._load(path, wanted)

        return wanted[0]

    def path(self, name: str) -> list[str]:
        """Return the nodes from the root to the one where a name is or would be."""
        path = [""]
        while (node := self._nodes[path[-1]]).children:
            place = max(bisect_right(node.children, name, key=_name) - 1, 0)
            path.append(self._below(path, [node.children[place].node]))

        return path

    def last_path(self) -> list[str]:
        """Return the nodes above the row that was put last, without the root."""
        return [] if self._last is None else self.path(self._last)[1:]

    def unread(self, name: str, is_read: Callable[[str], bool]) -> str | None:
        """Return the first node above a name that must be read yet."""
        path = [""]
        while (node := self._nodes[path[-1]]).children:
            place = max(bisect_right(node.children, name, key=_name) - 1, 0)
            below = node.children[place].node
            if below not in self._nodes and not is_read(below):
                return below

            path.append(self._below(path, [below]))

        return None

    # changes ----------------------------------------------------------------------------------------

    def put(self, row: Row) -> None:
        """Insert or replace a row; a size of -1 keeps the size."""
        path = self.path(row.name)
        self._last = row.name
        rows = self._nodes[path[-1]].rows
        place = bisect_left(rows, row.name, key=_name)
        self.changed[path[-1]] = None
        if place < len(rows) and rows[place].name == row.name:
            rows[place] = row if row.size >= 0 else row._replace(size=rows[place].size)
        else:
            rows.insert(place, row)

        self._split(path, at_end=place == len(rows) - 1)

    def remove(self, name: str) -> Row | None:
        """Remove a row and return it; None if there is none."""
        path = self.path(name)
        rows = self._nodes[path[-1]].rows
        place = bisect_left(rows, name, key=_name)
        if place == len(rows) or rows[place].name != name:
            return None

        row = rows.pop(place)
        self.changed[path[-1]] = None
        while len(path) > 1 and not (rows or self._nodes[path[-1]].children):
            gone = path.pop()
            self._discard(gone)
            above = self._nodes[path[-1]]
            above.children = [child for child in above.children if child.node != gone]
            self.changed[path[-1]] = None

        return row

    def _discard(self, name: str) -> None:
        del self._nodes[name]
        self.changed.pop(name, None)
        self.removed[name] = None

    def _split(self, path: list[str], *, at_end: bool) -> None:
        """Split the last node of a path if it is too large; `at_end`: its last item is the new one."""
        node = self._nodes[path[-1]]
        count = len(node.rows or node.children)
        if count < 2 or size_of(node) <= _MOST_BYTES:  # noqa: PLR2004  what can be divided
            return

        cut = (
            count - 1 if at_end else count // 2
        )  # what is added at the end leaves full nodes behind
        left = Node(node.rows[:cut], node.children[:cut])
        right = Node(node.rows[cut:], node.children[cut:])
        low = (
            _between(left.rows[-1].name, right.rows[0].name) if node.rows else right.children[0].low
        )
        halves = [Child("", self._new_node(left)), Child(low, self._new_node(right))]
        if len(path) == 1:
            node.rows, node.children = [], halves
            self.changed[""] = None
            return

        above = self._nodes[path[-2]]
        place = [child.node for child in above.children].index(path[-1])
        at_end = place == len(above.children) - 1
        above.children[place : place + 1] = [
            halves[0]._replace(low=above.children[place].low),
            halves[1],
        ]
        self.changed[path[-2]] = None
        self._discard(path[-1])
        self._split(path[:-1], at_end=at_end)

    def _new_node(self, node: Node) -> str:
        name = self._new_name()
        self._nodes[name] = node
        self.changed[name] = None
        return name

    # listings ---------------------------------------------------------------------------------------

    def rows(self, first: str, last: str | None, limit: int, *, reverse: bool) -> Iterator[Row]:
        """Yield rows from the first name to before the last, in order; `limit`: how many will be read, or fewer."""
        return self._rows([""], first, last, limit, reverse=reverse)

    def _rows(
        self, path: list[str], first: str, last: str | None, limit: int, *, reverse: bool
    ) -> Iterator[Row]:
        node = self._nodes[path[-1]]
        if not node.children:
            begin = bisect_left(node.rows, first, key=_name)
            end = len(node.rows) if last is None else bisect_left(node.rows, last, key=_name)
            some = node.rows[begin:end]
            yield from reversed(some) if reverse else some
            return

        begin = max(bisect_right(node.children, first, key=_name) - 1, 0)
        end = len(node.children)
        if last is not None:
            end = max(bisect_left(node.children, last, key=_name), begin + 1)

        places = list(range(begin, end))
        if reverse:
            places.reverse()

        ahead = min(max(2, 1 + limit // _ROWS_OF_A_NODE), _MOST_AT_ONCE)
        for number, place in enumerate(places):
            wanted = [node.children[one].node for one in places[number : number + ahead]]
            below = self._below(path, wanted)
            # Its rows may reach further than its parent knows: the next node is read for those.
            low = max(first, node.children[place].low) if place else first
            high = last
            if place + 1 < len(node.children):
                then = node.children[place + 1].low
                high = then if last is None or then < last else last

            yield from self._rows([*path, below], low, high, limit, reverse=reverse)


def _between(left: str, right: str) -> str:
    """The shortest text that is greater than one name and not greater than the next."""
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )
    return right[: common + 1]
