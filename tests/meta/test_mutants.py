"""The catalogue of mutants: each can be made, and the table says that each was killed, and by whom."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import catga_store

HERE = Path(__file__).parent
TESTS = HERE.parent
PACKAGE = Path(catga_store.__file__).parent


def load() -> ModuleType:
    """Read the catalogue by its path: these tests are no package."""
    spec = importlib.util.spec_from_file_location("catalogue", HERE / "mutants" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


catalogue = load()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (HERE / "mutants" / "TABLE.md").read_text(encoding="utf-8").splitlines()[6:]
    if line.startswith("| ")
]


def test_mutants_of_the_catalogue_can_be_made() -> None:
    """What each changes stands in the package once; if it moved, its line in the catalogue must too."""
    failures = []
    for mutant in catalogue.MUTANTS:
        try:
            catalogue.place_of(mutant, PACKAGE)
        except LookupError as error:
            failures.append(str(error))

    assert failures == []


def test_the_table_has_every_mutant() -> None:
    """In the catalogue's order, with its words; `tox -e mutants -- --write` makes it again."""
    assert [row[:2] for row in ROWS] == [[one.name, one.what] for one in catalogue.MUTANTS]


def test_every_mutant_is_killed_by_a_test_that_is_there() -> None:
    """By its name; none survives."""
    for name, *_, killer in ROWS:
        found = re.fullmatch(r"`([\w/]+\.py)::(\w+)(?:\[.*\])?`", killer)
        assert found is not None, f"{name} is killed by {killer}"
        source = (TESTS / found[1]).read_text(encoding="utf-8")
        assert f"def {found[2]}(" in source, f"{name} is killed by {killer}, which is gone"
