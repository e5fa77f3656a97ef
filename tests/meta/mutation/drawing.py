"""Draw mutants with cosmic-ray: places of the package with a seed, and one change at each."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes
from cosmic_ray.ast import get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.plugins import operator_names

ROOMS = ("core", "codec", "stores", "drivers", "protocol")
"""The folders that are mutated: what decides, encodes and talks."""


class Change(NamedTuple):
    """What the tool would do: its operator, and which of the operator's places in the file."""

    operator: Any
    occurrence: int
    node: Any


class Mutant(NamedTuple):
    """One change; `old` and `new` are the lines that differ, `lines` the statement around them."""

    file: str
    where: str
    line: int
    lines: set[int]
    old: str
    new: str
    source: str


def drawn(package: Path, seed: int) -> Iterator[Mutant]:
    """Draw mutants, each place at most once: one of the changes that the tool would make there."""
    draw = Random(seed)
    found = {
        (str(file), *place): changes
        for room in ROOMS
        for file in sorted((package / room).rglob("*.py"))
        for place, changes in places(file.read_text(encoding="utf-8")).items()
    }
    order = sorted(found)
    draw.shuffle(order)
    for place in order:
        mutant = made(package, Path(place[0]), place[1], draw.choice(found[place]))
        if mutant is not None:
            yield mutant


def places(source: str) -> dict[tuple[int, int], list[Change]]:
    """Return each place of a module that the tool can change, with the changes."""
    kinds = [get_operator(name) for name in sorted(operator_names()) if is_meant(name)]
    operators = [kind() for kind in kinds if not kind.arguments()]
    nodes = list(ast_nodes(get_ast(source)))
    hints = annotations(source)
    found = defaultdict(list)
    for operator in operators:
        numbers = count()
        for node in nodes:
            for place, _ in operator.mutation_positions(node):
                change = Change(operator, next(numbers), node)
                if not any(begin <= place < end for begin, end in hints):
                    found[place].append(change)

    return found


def is_meant(operator: str) -> bool:
    """Whether it is a change that a programmer could make: not `is` for `==`, nor `<` for `is`."""
    compared = operator.split("_")[1:] if "Comparison" in operator else []
    return len({kind.startswith("Is") for kind in compared}) < 2


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end: nothing executes them."""
    nodes = ast.walk(ast.parse(source))
    hints = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    return [
        ((hint.lineno, hint.col_offset), (hint.end_lineno or 0, hint.end_col_offset or 0))
        for hint in hints
        if isinstance(hint, ast.expr)
    ]


def made(package: Path, file: Path, line: int, change: Change) -> Mutant | None:
    """Make a change; `None` if the tool cannot."""
    right = file.read_text(encoding="utf-8")
    try:
        wrong = mutate_code(right, change.operator, change.occurrence)
    except AttributeError:  # cosmic-ray 8.7 offers to replace a dotted exception, and fails at it
        return None

    assert wrong is not None
    where = ASTQuery(change.node).get_definition_name() or ""
    name = str(file.relative_to(package))
    return Mutant(name, where, line, statement(right, line), *differing(right, wrong), wrong)


def differing(right: str, wrong: str) -> tuple[str, str]:
    """Return the lines that differ, stripped, each side on one line."""
    old, new = right.splitlines(), wrong.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]

    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]

    return " ".join(map(str.strip, old)), " ".join(map(str.strip, new))


def statement(source: str, line: int) -> set[int]:
    """Return the lines of the innermost statement at a line; of a compound one, those of its head."""
    found = {line}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if isinstance(body, list) else node.end_lineno
            if line <= max(end or 0, node.lineno):
                found = set(range(node.lineno, max(end or 0, node.lineno) + 1))

    return found
