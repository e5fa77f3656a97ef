"""Ids, keys, partitions and subject tokens."""

from __future__ import annotations

import pickle
import re
from enum import IntEnum
from enum import StrEnum
from zlib import crc32

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st

from catga_store.errors import InvalidIdError
from catga_store.errors import UsageError
from catga_store.protocol import keys

HUGE = pytest.param(10**5000, id="huge")  # Python refuses to print it

ids = st.text(min_size=1, max_size=128)  # 4 bytes at most each: all of them fit
braced = st.text(alphabet="{}ab", max_size=10)


def model_tag(any_id: str) -> str:
    """Redis Cluster's rule, as a regular expression."""
    match = re.match(r"[^{]*\{([^}]+)\}", any_id, re.DOTALL)
    return match[1] if match else any_id


@given(ids)
@example("\0")
@example("a\nb")
@example("a.*>{}: ")
@example("x" * 512)
@example("é" * 256)
def test_any_text_up_to_the_limit_is_an_id_unchanged(text: str) -> None:
    """Non-empty text of at most 512 UTF-8 bytes passes `check_id` and comes out as it was."""
    assert keys.check_id(text, "flow id") == text


@given(st.text(alphabet="aé€😀", min_size=100, max_size=600))
def test_the_limit_counts_bytes(text: str) -> None:
    """An id is refused exactly when its UTF-8 form is over 512 bytes, whatever its characters."""
    size = len(text.encode())

    if size <= keys.MAX_ID_BYTES:
        assert keys.check_id(text, "flow id") == text
        return

    with pytest.raises(InvalidIdError, match=f"{size} UTF-8 bytes") as caught:
        keys.check_id(text, "flow id")

    assert vars(caught.value) == {"what": "flow id", "value": text, "size": size}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "is empty"),
        ("x" * 513, "is 513 UTF-8 bytes long"),
        ("a\ud800b", r"'a\ud800b' has a lone surrogate, '\ud800', at index 1"),
        ("\udfff" * 600, r"has a lone surrogate, '\udfff', at index 0"),
        (None, "is None"),
        (7, "is of type int"),
        (b"order-1", "is of type bytes"),
    ],
)
def test_a_refused_id_is_named_with_expected_found_and_meaning(value: object, found: str) -> None:
    """The message has all four parts, stays short, and `what` is a fact of the error."""
    with pytest.raises(InvalidIdError) as caught:
        keys.check_id(value, "correlation id")

    message = str(caught.value)
    assert message.startswith("correlation id ")
    assert found in message
    assert "1 to 512 UTF-8 bytes" in message
    assert message.endswith("nothing was sent")
    assert len(message) < 400
    assert vars(caught.value)["what"] == "correlation id"


def test_an_id_of_a_subclass_of_str_becomes_plain_text() -> None:
    """What `check_id` returns is a `str` and nothing more, so no subclass reaches a store."""

    class Name(StrEnum):
        ORDER = "order-1"

    checked = keys.check_id(Name.ORDER, "flow id")
    assert type(checked) is str
    assert checked == "order-1"


@given(st.integers(0, 2**31 - 1))
def test_a_step_is_any_int_of_31_bits(step: int) -> None:
    """`check_step` returns ints from 0 to 2**31 - 1 as they are."""
    assert keys.check_step(step) == step


def test_a_step_of_a_subclass_of_int_becomes_a_plain_int() -> None:
    """What `check_step` returns is an `int` and nothing more."""

    class Step(IntEnum):
        PAY = 3

    checked = keys.check_step(Step.PAY)
    assert type(checked) is int
    assert checked == 3


@pytest.mark.parametrize("value", [-1, 2**31, HUGE, True, 1.0, "1", None])
def test_a_step_that_is_not_such_an_int_is_refused(value: object) -> None:
    """Negative, too large, bool and everything that is not an int is a `UsageError`."""
    with pytest.raises(UsageError, match=r"step index: expected .*, got .*; nothing was sent"):
        keys.check_step(value)


def test_a_key_reads_as_its_record_is_called() -> None:
    """`str` of a key names kind, id and step as messages do."""
    assert str(keys.flow_key("order-1")) == "flow 'order-1'"
    assert str(keys.progress_key("order-1", 2)) == "progress 'order-1' step 2"
    assert str(keys.wait_key("x\n")) == r"wait condition 'x\n'"


def test_a_key_is_a_plain_tuple() -> None:
    """A key equals, hashes and pickles as the tuple (kind, id, step)."""
    key = keys.progress_key("order-1", 2)
    assert key == ("progress", "order-1", 2, "")
    assert pickle.loads(pickle.dumps(key)) == key
    assert len({key, ("progress", "order-1", 2, ""), keys.flow_key("order-1")}) == 2


@given(braced | ids, st.integers(1, 64))
@example("{}a{b}", 64)
@example("a{b}{c}", 64)
@example("{{b}}", 64)
@example("}{a", 64)
@example("{a\nb}c", 64)
def test_partitions_follow_the_hash_tag_rule_of_redis_cluster(any_id: str, partitions: int) -> None:
    """The partition is CRC-32 of the tag, or of the id without one, modulo their number."""
    expected = crc32(model_tag(any_id).encode()) % partitions
    assert keys.partition_of(any_id, partitions) == expected


@pytest.mark.parametrize(
    ("any_id", "hashed"),
    [
        ("{user1000}.following", "user1000"),
        ("foo{}{bar}", "foo{}{bar}"),
        ("foo{{bar}}zap", "{bar"),
        ("foo{bar}{zap}", "bar"),
        ("foo{bar", "foo{bar"),
    ],
)
def test_the_examples_of_the_redis_cluster_specification_hold(any_id: str, hashed: str) -> None:
    """Each example of the specification hashes what the specification says."""
    assert keys.partition_of(any_id, 2**32) == crc32(hashed.encode())


def test_the_hash_never_changes() -> None:
    """These partitions are part of the stored layout: another answer would lose records."""
    found = [keys.partition_of(any_id, 1000) for any_id in ("order-1", "{order-1}/ship", "ü")]
    assert found == [79, 79, 789]


@given(ids)
@example("order=2E1")
def test_a_token_decodes_to_its_id_and_is_one_subject_token(any_id: str) -> None:
    """`encode_token` is reversible, and writes nothing that means something in a subject."""
    token = keys.encode_token(any_id)
    assert re.fullmatch(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+", token)
    assert keys.decode_token(token) == any_id


@given(st.text(alphabet="aC3=BcbfF0 ._é\ud800", max_size=8))
def test_only_what_encode_token_writes_is_decoded(token: str) -> None:
    """Any text is either refused, or is the one token of the id that it decodes to."""
    try:
        any_id = keys.decode_token(token)
    except ValueError:
        return

    assert keys.encode_token(any_id) == token


@pytest.mark.parametrize(
    "token",
    ["", "=", "=4", "=4g", "=c3=bc", "=C3", "=61", "a.b", "a b", "= 1", "=FF", "ü", "\ud800"],
)
def test_a_token_of_another_form_is_refused(token: str) -> None:
    """Lower hex, escapes without need, cut escapes and broken UTF-8 are a `ValueError`."""
    with pytest.raises(ValueError, match="is not an encoded id"):
        keys.decode_token(token)
