"""The examples of the page on LangGraph, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "langgraph.md"


def test_the_examples() -> None:
    """Every Python block runs, and its asserts hold."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), PAGE, "exec", dont_inherit=True), {"__name__": "page"})
