"""The order of the tests for several processes: it has each test once, and mixes the files all the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from spreading import LONG
from spreading import TOGETHER
from spreading import spread
from spreading import unit_of

ROOT = Path(__file__).parents[2]
SIZES = {"tests/a.py": 400, "tests/b.py": 100, "tests/c.py": 1, LONG[0]: 80}


@pytest.fixture
def items() -> list[Any]:
    """Return tests in the order of their files."""
    return [
        SimpleNamespace(nodeid=f"{file}::test_{number}")
        for file, size in SIZES.items()
        for number in range(size)
    ]


def file_of(item: Any) -> str:
    """Return the file of a test."""
    file: str = item.nodeid.partition("::")[0]
    return file


def test_each_test_is_there_once_and_in_the_order_of_its_file(items: list[Any]) -> None:
    """Nothing is lost, and each process gets the same order."""
    order = spread(items)
    assert order == spread(items)
    assert {one.nodeid for one in order} == {one.nodeid for one in items}
    for file in SIZES:
        assert [one for one in order if file_of(one) == file] == [
            one for one in items if file_of(one) == file
        ]


def test_every_part_of_the_run_has_its_share_of_each_file(items: list[Any]) -> None:
    """What waits in one file is beside what computes in others; what takes seconds comes to an end before."""
    order = spread(items)
    tenth = len(order) // 10
    for start in range(0, 7 * tenth, tenth):
        counts = Counter(map(file_of, order[start : start + tenth]))
        assert 30 <= counts["tests/a.py"] <= 50
        assert 7 <= counts["tests/b.py"] <= 13
        assert 8 <= counts[LONG[0]] <= 13

    assert LONG[0] not in map(file_of, order[-tenth:])


def test_files_that_are_named_are_there() -> None:
    """Those that one process runs make something for all their tests, or it would be for nothing."""
    for name in (*LONG, *TOGETHER):
        assert (ROOT / name).exists(), name

    for name in TOGETHER:
        source = (ROOT / name).read_text(encoding="utf-8")
        assert 'scope="module"' in source or "@cache" in source, name


def test_a_file_stays_together() -> None:
    """All its tests are one unit; of other files, each test is."""
    together = min(TOGETHER)
    assert unit_of(f"{together}::test_a[x::y]") == unit_of(f"{together}::test_b") == together
    assert unit_of("tests/a.py::test_a") != unit_of("tests/a.py::test_b")
