"""The examples of the pages on LangGraph and on other frameworks, each page in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.mark.parametrize(("name", "count"), [("langgraph", 4), ("other-frameworks", 2)])
def test_the_examples(name: str, count: int) -> None:
    """Every Python block runs, and its asserts hold."""
    page = PAGES / f"{name}.md"
    blocks = re.findall(
        r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == count
    exec(compile("\n".join(blocks), page, "exec", dont_inherit=True), {"__name__": "page"})
