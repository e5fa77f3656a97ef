"""`catga-store console`: what it prints, whom it serves, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from commands import failed
from forks import run_command
from waiting import LONG

import catga_store as cs
from catga_store.testing.servers import free_ports


def test_the_console_serves_until_it_is_terminated(tmp_path: Path) -> None:
    """The printed address leads to the pages; the address alone does not. SIGTERM ends it with 0."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("order-1", state={"paid": True}))

    process = subprocess.Popen(
        [sys.executable, "-m", "catga_store", "console", url, "--port", "0"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"The console is at (http://127\.0\.0\.1:\d+/)\?token=(.{43})\n", line)
        assert found, line
        place, token = found[1], found[2]
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{place}flows", timeout=LONG)

        refused.value.close()
        request = urllib.request.Request(
            f"{place}flow.json?id=order-1", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=LONG) as reply:
            assert b'"paid": true' in reply.read()

        events = urllib.request.Request(
            f"{place}events?id=order-1&after=1", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(events, timeout=LONG) as stream:
            assert stream.readline() == b": connected\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    """A store that is not there, a port that is taken, a short token."""
    url = f"sqlite:///{tmp_path / 'flows.db'}"
    failed(run_command("console", url), 1, "nothing was created")

    with cs.open_store(url) as store:
        store.create(cs.FlowSnapshot("f", state={}))

    failed(run_command("console", url, "--token", "short"), 2, "expected at least 16")
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        failed(run_command("console", url, "--port", str(port)), 3, "cannot listen on")
