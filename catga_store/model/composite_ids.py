"""Ids that are made of several texts, and back.

An adapter often names a record by several texts: a thread, a namespace, a number. Joining them by hand
makes two records share one id as soon as a part contains the separator.
"""

from __future__ import annotations

import re

from catga_store.errors import InvalidIdError
from catga_store.protocol.keys import check_id
from catga_store.protocol.masking import shown

__all__ = ["join_id", "split_id"]

_ID, _PART, _TAG = "a composite id", "a part of an id", "the tag of an id"

# The brace is escaped because the first one of an id opens its tag: see `partition_of`.
_ESCAPES = {"%": "%25", "/": "%2F", "{": "%7B"}
_ESCAPED = str.maketrans(_ESCAPES)
_PLAIN = {escape: character for character, escape in _ESCAPES.items()}
_ANY_ESCAPE = re.compile("|".join(_PLAIN))


def join_id(*parts: str, tag: str | None = None) -> str:
    """Combine several strings into one id; `split_id` splits it again.

    The parts are joined with `/`. In each part, `%`, `/` and `{` are escaped (`%25`, `%2F`, `%7B`), so
    different parts never produce the same id. A part can be empty. The `tag` is written first, in braces and
    unescaped: ids with the same tag share a partition with each other and with the plain id `tag`.

    Raises `InvalidIdError` if the result is empty or longer than 512 bytes of UTF-8 (an escape takes three
    bytes), if a part is not a string, or if the tag is empty or contains `}`.

    >>> import catga_store as cs
    >>> cs.join_id("thread 7", "a/b", "")
    'thread 7/a%2Fb/'
    >>> cs.join_id("checkpoint", "12", tag="thread 7")
    '{thread 7}/checkpoint/12'
    """
    texts = [_text(part, _PART).translate(_ESCAPED) for part in parts]
    if tag is not None:
        texts.insert(0, f"{{{_checked_tag(tag)}}}")

    return check_id("/".join(texts), _ID)


def split_id(any_id: str) -> tuple[tuple[str, ...], str | None]:
    """Return the parts and the tag of an id that `join_id` made; the tag is `None` if the id has no tag.

    Raises `InvalidIdError` for an id that `join_id` cannot produce, such as `"50%"`.

    >>> import catga_store as cs
    >>> cs.split_id("{thread 7}/checkpoint/a%2Fb")
    (('checkpoint', 'a/b'), 'thread 7')
    >>> thread, number = cs.split_id("thread 7/12")[0]
    >>> thread, number
    ('thread 7', '12')
    """
    text = check_id(any_id, _ID)
    tag: str | None = None
    texts = text.split("/")
    if text.startswith("{"):
        tag, _, rest = text[1:].partition("}")
        texts = rest[1:].split("/") if rest else []

    parts = tuple(_ANY_ESCAPE.sub(_plain, part) for part in texts)
    # Joining them again is the check: what was read too leniently comes out different.
    if tag == "" or join_id(*parts, tag=tag) != text:
        message = (
            f"{_ID} {shown(text)} was not built by join_id, so nothing was sent; build the id "
            "with join_id"
        )
        raise InvalidIdError(message, what=_ID, value=text)

    return parts, tag


def _plain(found: re.Match[str]) -> str:
    return _PLAIN[found[0]]


def _checked_tag(tag: object) -> str:
    text = _text(tag, _TAG)
    if not text or "}" in text:
        message = (
            f"{_TAG} is {shown(text)}, but must be a non-empty str without '}}'; nothing was sent"
        )
        raise InvalidIdError(message, what=_TAG, value=text)

    return text


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        message = f"{what} must be a str, but has type {type(value).__name__}; nothing was sent"
        raise InvalidIdError(message, what=what)

    return str.__str__(value)
