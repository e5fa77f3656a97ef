"""Draw mutants, run the tests that reach them: `python -m tests.meta.mutation [-n 200] [--seed 2030]`.

The tests run once without a mutant, to learn which lines each reaches. Then for each mutant those that
reach its lines run against it, the quickest first, to the first failure. With `--write` the survivors
are written to TABLE.md, which keeps what is said there about those that it has already. A mutant that
cannot be imported is not a mutant. The exit code is 1 if fewer than 90 % are killed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tests.meta.mutants.__main__ import copy_to
from tests.meta.mutation.drawing import ROOMS
from tests.meta.mutation.drawing import Mutant
from tests.meta.mutation.drawing import drawn
from tests.meta.mutation.reach import Reach
from tests.meta.mutation.reach import record

TABLE = Path(__file__).parent / "TABLE.md"
ENOUGH = 0.9
IMPORT = """
import importlib, pkgutil, catga_store
for one in pkgutil.walk_packages(catga_store.__path__, "catga_store."):
    if "__main__" not in one.name:
        importlib.import_module(one.name)
"""


class Result(NamedTuple):
    """What came of one mutant; `killer` is empty if it survived."""

    mutant: Mutant
    number: int
    killer: str


def python(place: Path, *words: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run Python on a copy of the project."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def killer_of(place: Path, tests: list[str], seconds: float) -> str:
    """Return the first test that fails, empty if none does."""
    names = place / "chosen.txt"
    names.write_text("\n".join(tests), encoding="utf-8")
    words = ["-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"@{names}"]
    try:
        done = python(place, *words, seconds=seconds)
    except subprocess.TimeoutExpired:
        return "(stuck)"

    failed = re.search(
        r"^(?:FAILED|ERROR) (\S+?\.py(?:::.*?)?)(?: - .*)?$", done.stdout, re.MULTILINE
    )
    if failed is None and done.returncode:
        return f"(pytest ended with {done.returncode})"

    return "" if failed is None else failed[1]


def run(mutant: Mutant, place: Path, reach: Reach, limit: float) -> Result | None:
    """Run the tests against one mutant; `None` if it cannot be imported."""
    file = place / "catga_store" / mutant.file
    tests = reach.tests_of(file, mutant.lines)
    left, chosen = limit, []
    for test in tests:
        left -= reach.seconds.get(test, 0)
        if left > 0:
            chosen.append(test)

    if not chosen:
        return Result(mutant, 0, "")

    right = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    try:
        if python(place, "-c", IMPORT, seconds=60).returncode:
            return None

        return Result(mutant, len(chosen), killer_of(place, chosen, 120 + 5 * (limit - left)))
    finally:
        file.write_text(right, encoding="utf-8")


def said_before() -> dict[tuple[str, ...], str]:
    """Return what the table says about its survivors, by their first columns."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines if line.startswith("| `")]
    return {tuple(row[:3]): row[-1] for row in rows}


def table_of(results: list[Result], seed: int) -> str:
    """Return the table of survivors."""

    def code(text: str) -> str:
        return "`" + text.replace("|", "\\|").replace("`", "'") + "`"

    before = said_before()
    survivors = [result for result in results if not result.killer]
    killed = len(results) - len(survivors)
    lines = [
        "# Drawn mutants",
        "",
        f"`tox -e mutation -- -n {len(results)} --seed {seed} --write` made this table. cosmic-ray makes",
        f"the mutants, of {', '.join(ROOMS)}; each ran against the tests that reach its lines.",
        f"{killed} of {len(results)} are killed ({killed / len(results):.0%}). These live:",
        "",
        "| where | line | with the mutant | tests that ran | why it lives |",
        "|---|---|---|---|---|",
    ]
    for mutant, number, _ in sorted(survivors, key=lambda one: (one.mutant.file, one.mutant.line)):
        shown = code(f"{mutant.file}: {mutant.where}"), code(mutant.old), code(mutant.new)
        lines.append(
            f"| {' | '.join(shown)} | {number} | {before.get(shown, 'not looked at yet')} |"
        )

    return "\n".join([*lines, ""])


def main(words: list[str]) -> int:
    """Draw, run, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.meta.mutation", description=__doc__)
    parser.add_argument("-n", "--number", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=2030)
    parser.add_argument("--limit", type=float, default=600, help="seconds of tests for each mutant")
    parser.add_argument("--write", action="store_true", help="make the table again")
    parser.add_argument("tests", nargs="*", default=["tests"])
    chosen = parser.parse_args(words)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "copy"
        place.mkdir()
        copy_to(place)
        reach = record(place, Path(folder), chosen.tests)
        mutants = drawn(place / "catga_store", chosen.seed)
        tried = (run_and_tell(mutant, place, reach, chosen.limit) for mutant in mutants)
        results = list(islice((one for one in tried if one is not None), chosen.number))

    killed = sum(bool(result.killer) for result in results)
    sys.stdout.write(f"{killed} of {len(results)} killed\n")
    if chosen.write:
        TABLE.write_text(table_of(results, chosen.seed), encoding="utf-8")

    return 0 if killed >= ENOUGH * len(results) else 1


def run_and_tell(mutant: Mutant, place: Path, reach: Reach, limit: float) -> Result | None:
    """Run one mutant, and print what came of it."""
    start = time.monotonic()
    result = run(mutant, place, reach, limit)
    if result is not None:
        shown = result.killer or f"SURVIVED {result.number} tests"
        where = f"{mutant.file}:{mutant.line}"
        sys.stdout.write(f"{time.monotonic() - start:6.1f} s  {where}: {shown}\n")
        sys.stdout.write(f"          {mutant.old}\n          {mutant.new}\n")
        sys.stdout.flush()

    return result


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
