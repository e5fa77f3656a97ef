"""Which tests reach which lines of the package, and how long each takes.

`record` runs the tests once under coverage with this module as a plugin, which names each test as the
context of the lines that run in it. Lines that run in another process belong to no test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

CONFIG = """\
[run]
source_pkgs = catga_store
concurrency = thread
data_file = {data}
"""
# Alone in this process: under xdist coverage would see the workers' lines in no test.
COMMAND = (sys.executable, "-m", "coverage", "run", "--rcfile", "{config}", "-m", "pytest")
OPTIONS = ("-q", "--tb=line", "-p", "no:cacheprovider", "-p", "tests.meta.mutation.reach")
TIMES = "CATGA_TEST_TIMES"
_seconds: dict[str, float] = {}
_failed: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Make the test the context of what it runs."""
    current = coverage.Coverage.current()
    assert current is not None
    current.switch_context(item.nodeid)
    start = time.monotonic()
    result = yield
    _seconds[item.nodeid] = time.monotonic() - start
    current.switch_context("")
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the tests that fail without a mutant: they can tell nothing."""
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write down how long each test took that passed."""
    passed = {name: seconds for name, seconds in _seconds.items() if name not in _failed}
    Path(os.environ[TIMES]).write_text(json.dumps(passed), encoding="utf-8")


class Reach:
    """What a run of the tests has shown."""

    def __init__(self, place: Path, scratch: Path) -> None:
        """Read what `record` wrote."""
        self._place = place
        self._data = coverage.CoverageData(str(scratch / "reached"))
        self._data.read()
        times = json.loads((scratch / "times.json").read_text(encoding="utf-8"))
        self.seconds: dict[str, float] = times

    def tests_of(self, file: Path, lines: set[int]) -> list[str]:
        """Return the tests that run one of these lines, the quickest first.

        What runs only while a module is imported is in no test: then all that run anything of the file,
        or of its folder if it only declares what others use.
        """
        contexts = self._data.contexts_by_lineno(str(file))
        reached = {name for line in lines for name in contexts.get(line, ())}
        if not reached - {""} and any(line in contexts for line in lines):
            reached = {name for names in contexts.values() for name in names}
            if not reached - {""}:
                reached = self._reaching(file.parent)

        return sorted(reached & self.seconds.keys(), key=self.seconds.__getitem__)

    def _reaching(self, folder: Path) -> set[str]:
        """Return the tests that run anything of a folder."""
        files = [file for file in self._data.measured_files() if Path(file).parent == folder]
        lines = [self._data.contexts_by_lineno(file).values() for file in files]
        return {name for of_file in lines for names in of_file for name in names}


def record(place: Path, scratch: Path, tests: list[str]) -> Reach:
    """Run the tests of a copy of the project once; scratch keeps what they reached."""
    config = scratch / "coverage.ini"
    config.write_text(CONFIG.format(data=scratch / "reached"), encoding="utf-8")
    command = [word.format(config=config) for word in COMMAND]
    paths = {"PYTHONPATH": str(place), TIMES: str(scratch / "times.json")}
    done = subprocess.run(
        [*command, *OPTIONS, *tests], cwd=place, env={**os.environ, **paths}, check=False
    )
    if done.returncode not in (0, pytest.ExitCode.TESTS_FAILED):
        message = f"the tests could not run without a mutant: pytest ended with {done.returncode}"
        raise SystemExit(message)

    if done.returncode:
        sys.stdout.write("tests that fail without a mutant are left out\n")

    return Reach(place, scratch)
