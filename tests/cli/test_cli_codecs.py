"""Commands on stores whose bodies go through codecs: keys by URL, `rewrap`, `doctor`, `show`, `copy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import run_command

import catga_store as cs

OLD, NEW = f"old={'0f' * 32}", f"new={'1e' * 32}"


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """Name a SQLite store that has no codecs yet."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("order", state={"card": "4111"}, error="declined"))
        store.put_part(cs.Part("order", "receipt", b"4111"))

    return url


def answer(*arguments: str, code: int = 0, **environment: str) -> Any:
    """Run a command with `--json` and read what it prints."""
    done = run_command(*arguments, "--json", **environment)
    assert (done.returncode, done.stderr) == (code, "")
    assert "4111" not in done.stdout or arguments[0] == "show"
    return json.loads(done.stdout)


def test_a_store_is_encrypted_rotated_copied_and_decrypted(plain: str, tmp_path: Path) -> None:
    """The whole life of a key, by commands alone."""
    url = f"{plain}?codecs=zstd&keys=env:FLOW_KEYS"
    first = answer("rewrap", f"{url}&accept_plain=true", FLOW_KEYS=OLD)
    assert (first["rewritten"], first["current"], first["left"]) == (2, 2, 0)
    assert first["bodies"] == {"aes256gcm=old": 2}
    assert answer("show", "order", "-s", url, FLOW_KEYS=OLD)["state"] == {"card": "4111"}

    keys = tmp_path / "keys"
    keys.write_text(f"# rotated\n{NEW}\n{OLD}\n")
    rotated = answer("rewrap", f"{plain}?keys=file:{keys}")
    assert (rotated["rewritten"], rotated["bodies"]) == (2, {"aes256gcm=new": 2})
    done = run_command("rewrap", f"{plain}?keys=file:{keys}")
    assert "Rewritten: 0 records; already current: 2.\nVerified:" in done.stdout

    target = f"sqlite:///{tmp_path / 'plain.db'}"
    copied = answer("copy", f"{plain}?keys=file:{keys}", target)
    assert (copied["flows"], copied["unreadable"], copied["verified"]) == (1, 0, True)
    assert answer("show", "order", "-s", target)["state"] == {"card": "4111"}


def test_what_cannot_be_decoded_is_shown_without_its_state(plain: str, tmp_path: Path) -> None:
    """`show` has the head and says why; `copy` and `rewrap` leave it out, count it and exit with 1."""
    url = f"{plain}?keys=env:FLOW_KEYS"
    answer("rewrap", f"{url}&accept_plain=true", FLOW_KEYS=OLD)
    for named, keys in ((plain, ""), (url, NEW)):
        shown = answer("show", "order", "--history", "-s", named, FLOW_KEYS=keys, code=5)
        assert "old" in shown["unreadable"]
        assert (shown["state"], shown["error"], shown["version"]) == (None, "declined", 2)
        assert [part["name"] for part in shown["parts"]] == ["receipt"]
        done = run_command("show", "order", "-s", named, FLOW_KEYS=keys)
        assert done.returncode == 5
        assert "unreadable:" in done.stdout
        assert "state:" not in done.stdout

    left = answer("rewrap", url, FLOW_KEYS=NEW, code=1)
    assert (left["rewritten"], left["unreadable"], left["left"]) == (0, 2, 2)
    assert "2 could not be decoded" in run_command("rewrap", url, FLOW_KEYS=NEW).stdout
    target = f"sqlite:///{tmp_path / 'copy.db'}"
    copied = answer("copy", url, target, FLOW_KEYS=NEW, code=1)
    assert (copied["flows"], copied["unreadable"]) == (0, 2)
    assert (
        "2 records could not be decoded" in run_command("copy", url, target, FLOW_KEYS=NEW).stderr
    )


def test_doctor_counts_bodies_by_codec_and_key(plain: str) -> None:
    """Of a store that never had codecs it says nothing; else it names them, with keys or without."""

    def bodies(url: str, code: int = 0, **environment: str) -> list[str]:
        found = answer("doctor", url, code=code, **environment)["findings"]
        return [one["found"] for one in found if one["check"] == "bodies"]

    url = f"{plain}?keys=env:FLOW_KEYS&accept_plain=true"
    assert bodies(plain) == []
    assert bodies(url, FLOW_KEYS=OLD) == ["2 without codecs"]
    with cs.open_store(plain, codecs=[cs.Encrypt(cs.Keys.parse(OLD))]) as store:
        store.create(cs.FlowSnapshot("b", state={}))

    both = "2 without codecs, 1 with the codecs aes256gcm=old"
    assert bodies(url, FLOW_KEYS=OLD) == [both]
    assert bodies(plain, code=1) == [both], "without keys, a flow cannot be read"


@pytest.mark.parametrize(
    ("query", "keys", "code", "says"),
    [
        ("keys=env:NOT_SET", "", 3, "'NOT_SET' is not set"),
        ("keys=file:/no/such/file", "", 3, "'/no/such/file' cannot be read"),
        ("keys=env:FLOW_KEYS", "old=0f0f", 3, "entry 1 of 1"),
        (f"keys={OLD}", "", 2, "expected env:NAME"),
        ("codecs=lzma", "", 2, "expected zstd"),
        ("accept_plain=true", "", 2, "without keys="),
        ("keys=env:A&keys=env:B", "", 2, "keys twice"),
        ("codec=zstd", "", 2, "only the options accept_plain, codecs, keys"),
    ],
)
def test_wrong_options_of_a_url(plain: str, query: str, keys: str, code: int, says: str) -> None:
    """One line says what is wrong, and shows no key."""
    done = run_command("ls", "-s", f"{plain}?{query}", FLOW_KEYS=keys)
    assert done.returncode == code
    assert says in done.stderr
    assert "0f0f" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_codecs_by_url_and_by_keyword() -> None:
    """Every way to open a store by URL takes them, and not both at once."""
    codecs: list[cs.BodyCodec] = [cs.Zstd()]
    for open_it in (cs.open_store, cs.open_async_store):
        for place in ("memory://", "sqlite:///a.db", "redis://h/0", "nats://h"):
            store = open_it(f"{place}?codecs=zstd")
            assert "Zstd" in repr(store._context.settings.codecs)
            with pytest.raises(cs.UsageError, match="remove one"):
                open_it(f"{place}?codecs=zstd", codecs=codecs)

    redis = cs.RedisStore.from_url("redis://h/0?prefix=p:&codecs=zstd")
    assert redis._context.settings.codecs is not None
    assert repr(redis) == "<RedisStore redis://h/0 prefix='p:'>"
