"""The pages use the words of the field: words that this project coined are not used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# What to write instead stands beside it.
AVOIDED = {
    r"waist": "store protocol",
    r"lane": "multiplexed connection",
    r"faces?": "API",
    r"early completions?": "pending completion",
    r"is told": "gets, is notified",
    r"anew": "again",
    r"for ever": "forever",
    r"who(so)?ever": "the one that, any",
    r"goes on": "continues",
    r"answers (the|a|an|as|what|it|its|None|True)": "returns",
    r"bears? out": "verify",
    r"is no (?!longer|wheel|server|replay)[a-z]": "is not a",
    r"(no|any|some)body": "no worker, any client, another process",
}
ALLOWED = {"migrate.md": {"early completions?"}}  # what a command prints


def sentences(page: Path) -> str:
    """A page without its code, with links as their text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_coined_words(page: Path) -> None:
    """A page does without words that a reader would have to look up or read twice."""
    text = sentences(page)
    found = {
        match[0]: instead
        for words, instead in AVOIDED.items()
        if words not in ALLOWED.get(page.name, ())
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    }
    assert not found


def test_a_coined_word_is_noticed(tmp_path: Path) -> None:
    """The check can fail, and code is left out of it."""
    page = tmp_path / "page.md"
    page.write_text("It is told anew.\n\n```text\nwaist\n```\n", "utf-8")
    with pytest.raises(AssertionError, match="anew"):
        test_no_coined_words(page)
