"""The pages and the package use the words of the field, and no words that this project coined.

In the package everything that is prose is checked: docstrings, messages, and comments, in Python and Lua.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "catga_store"
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted(PACKAGE.rglob("*.lua"))]
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
    r"(?<!there )is no (?!longer|more|wheel|server|replay)[a-z]+": "is not a",
    r"(no|any|some)body": "no worker, any client, another process",
}
IN_SOURCES = AVOIDED | {
    r"told(?! apart)|tellings?": "notified, reported, learned",
    r"answers|answered (what|it|as)": "returns, replies",
    r"(bears?|bearing|borne) (out|on)": "verify, affect",
    r"so many(?! that)": "that many, up to",
    r"(?<!there )(?-i:is none)": "is not one",
    r"seam": "interface",
    r"wires?": "transport",
}
# The replies of NATS are called answers; where there are several, the word is a noun.
NOUNS = {"answers|answered (what|it|as)": ("drivers/nats_", "stores/nats/")}


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
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    }
    assert not found


def prose_of(source: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a source file, each with its line."""
    if source.suffix == ".lua":
        for line, text in enumerate(source.read_text("utf-8").splitlines(), 1):
            yield line, text.partition("--")[2]

        return

    with source.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            name = tokenize.tok_name[token.type]
            if name in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                for line, text in enumerate(token.string.splitlines(), token.start[0]):
                    yield line, text


def coined_in(text: str, place: str) -> list[str]:
    """Return the coined words in a line of prose. Examples and what is in backticks are code."""
    if re.match(r"\s*(>>>|\.\.\.) ", text):
        return []

    plain = re.sub(r"`[^`]*`|\{[^{}]*\}", "``", text)
    return [
        f"{match[0]!r} (write: {instead})"
        for words, instead in IN_SOURCES.items()
        if not place.startswith(NOUNS.get(words, ("-",)))
        for match in re.finditer(rf"\b(?:{words})\b", plain, re.IGNORECASE)
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_no_coined_words_in_the_package(source: Path) -> None:
    """Docstrings, messages and comments do without them."""
    place = source.relative_to(PACKAGE).as_posix()
    found = [
        f"{place}:{line}: {word}"
        for line, text in prose_of(source)
        for word in coined_in(text, place)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("# the parent is told", 2),
        ("the two cannot be told apart", 0),
        (">>> store.get('nobody')", 0),
        ("see `answers` there", 0),
        ("this is no record", 1),
    ],
)
def test_a_coined_word_in_a_source_is_noticed(text: str, number: int) -> None:
    """Words in prose are found; words in code are not looked for."""
    assert len(coined_in(text, "core/claims.py")) == number


def test_a_coined_word_is_noticed(tmp_path: Path) -> None:
    """The check can fail, and code is left out of it."""
    page = tmp_path / "page.md"
    page.write_text("It is told anew.\n\n```text\nwaist\n```\n", "utf-8")
    with pytest.raises(AssertionError, match="anew"):
        test_no_coined_words(page)
