"""What tests of `catga-store` share: a command in a changed process, and what it must have said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from forks import COMMAND_SECONDS
from forks import Done
from forks import run_command


def run_changed(before: str, *arguments: str) -> Done:
    """Run a command to its end in a new interpreter, after some Python of the test's."""
    environment = {name: value for name, value in os.environ.items() if name != "CATGA_STORE_URL"}
    code = f"{before}\nfrom catga_store.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
    )


def failed(done: Done, code: int, *parts: str) -> None:
    """Check that a command ended with one line that says why, and printed nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line
    for part in parts:
        assert part in line


def findings(url: str, code: int = 0) -> dict[str, Any]:
    """Return what the doctor found, by what it looked at."""
    done = run_command("doctor", url, "--json")
    assert (done.returncode, done.stderr) == (code, ""), done
    document = json.loads(done.stdout)
    assert document["healthy"] is (code == 0)
    assert all(finding["means"] for finding in document["findings"])
    return {finding["check"]: finding for finding in document["findings"]}
