"""Ids of several parts: any texts come back, and no two lists of texts share an id."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st

import catga_store as cs
from catga_store.protocol.keys import partition_of

texts = st.text(alphabet="a%/{}2F7B5é\0", max_size=8) | st.text(max_size=8)
parts = st.lists(texts, max_size=6)
tags = st.none() | texts.filter(lambda text: text != "" and "}" not in text)


def joined(those: list[str], tag: str | None) -> str:
    """Join the parts; the one list that makes an empty id is not drawn."""
    assume(tag is not None or "".join(those) or len(those) > 1)
    return cs.join_id(*those, tag=tag)


@given(parts, tags)
@example(["%2F", "/", "%"], None)
@example(["{a}", "b"], None)
@example([], "a")
@example([""], "a")
@example(["", ""], None)
def test_split_returns_what_was_joined(those: list[str], tag: str | None) -> None:
    """Parts and tag come back as they were."""
    assert cs.split_id(joined(those, tag)) == (tuple(those), tag)


@given(parts, tags, st.integers(2, 64))
def test_the_partition_is_that_of_the_tag(
    those: list[str], tag: str | None, partitions: int
) -> None:
    """With a tag an id is where its tag is; without, braces in a part choose nothing."""
    found = joined(those, tag)
    if tag is not None and "{" not in tag:
        assert partition_of(found, partitions) == partition_of(tag, partitions)
    elif tag is None:
        assert "{" not in found


@given(st.text(max_size=12) | texts)
def test_split_accepts_only_what_join_makes(text: str) -> None:
    """Any other text is refused, never misread."""
    try:
        those, tag = cs.split_id(text)
    except cs.InvalidIdError:
        return

    assert cs.join_id(*those, tag=tag) == text


@pytest.mark.parametrize("text", ["50%", "a%2f", "{}", "{}/a", "{a", "{a}b", "a{b", ""])
def test_split_of_another_text_is_refused(text: str) -> None:
    """Each of these was made by hand."""
    with pytest.raises(cs.InvalidIdError, match="id"):
        cs.split_id(text)


@pytest.mark.parametrize(
    ("those", "tag"),
    [
        ((), None),
        (("",), None),
        (("a", 1), None),
        (("a",), ""),
        (("a",), "x}y"),
        (("a",), 1),
        (("\ud800",), None),
        (("x" * 513,), None),
        (("/" * 171,), None),
    ],
)
def test_join_to_an_invalid_id_is_refused(those: tuple[Any, ...], tag: Any) -> None:
    """The result is an id: 1 to 512 UTF-8 bytes."""
    with pytest.raises(cs.InvalidIdError):
        cs.join_id(*those, tag=tag)


def test_longest_joined_id() -> None:
    """An escape takes three bytes."""
    assert len(cs.join_id("/" * 170, "x")) == len("%2F" * 170 + "/x") == 512
