"""The README: its examples run, what it refers to exists, and it stays short."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import catga_store as cs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_it_begins_with_the_two_commands() -> None:
    """A heading, then how to see it work and how to run the tests; nothing before or between."""
    lines = [line for line in TEXT.splitlines() if line]
    assert lines[:5] == [
        "# catga_store",
        "```sh",
        "pip install '.[cli]' && catga-store demo",
        "pip install tox && tox",
        "```",
    ]


def test_its_examples_run() -> None:
    """Every example prints what the README says it prints."""
    failed, tried = doctest.testfile(
        str(README), module_relative=False, optionflags=doctest.ELLIPSIS, encoding="utf-8"
    )
    assert failed == 0
    assert tried > 10


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|catga_store)/[^`]+)`", TEXT))))
def test_the_files_it_names_are_there(path: str) -> None:
    """A file that the README names exists."""
    assert ROOT.joinpath(path).is_file()


def test_the_names_it_uses_are_public() -> None:
    """What the README takes from the package is in its `__all__`."""
    assert set(re.findall(r"\bcs\.([A-Za-z_]+)", TEXT)) <= set(cs.__all__)


def test_it_is_short() -> None:
    """A reader gets through it in a few minutes: about 150 lines."""
    assert len(TEXT.splitlines()) < 170
