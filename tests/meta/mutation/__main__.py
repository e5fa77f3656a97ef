"""Draw mutants, run the tests that reach them: `python -m tests.meta.mutation [-n 200] [--seed 2030]`.

The tests run once without a mutant, to learn which lines each reaches. Then for each mutant those that
reach its lines run against it, the quickest first, to the first failure. With `--write` the survivors
are written to TABLE.md, which keeps what is said there about those that it has already. A mutant that
cannot be imported is not a mutant. The exit code is 1 if fewer than 90 % are killed.

The first run takes as long as all tests. `--keep FOLDER` keeps what it has found, with the copy of the
project that it is of, and a later run with the same folder continues with the next mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.meta.mutants.__main__ import copy_to
from tests.meta.mutation.drawing import ROOMS
from tests.meta.mutation.drawing import Mutant
from tests.meta.mutation.drawing import drawn
from tests.meta.mutation.reach import Reach
from tests.meta.mutation.reach import record

TABLE = Path(__file__).parent / "TABLE.md"
ENOUGH = 0.9
LONGEST_IMPORT = 300
"""Seconds: also on a busy machine no import takes so long."""
FIRST = 100
"""Tests that run first: to collect all that reach a line takes longer than to run these."""


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


def sure_killer_of(place: Path, tests: list[str], seconds: float) -> str:
    """Return the first test that fails twice: on a busy machine one may fail by itself."""
    while tests:
        killer = killer_of(place, tests, seconds)
        if killer not in tests or killer == killer_of(place, [killer], seconds):
            return killer

        tests = [test for test in tests if test != killer]

    return ""


def run(mutant: Mutant, place: Path, reach: Reach, limit: float) -> Result | None:
    """Run the tests against one mutant; `None` if it cannot be imported."""
    file = place / "catga_store" / mutant.file
    tests = reach.tests_of(file, mutant.lines)
    took, chosen = 0.0, []
    for test in tests:
        if took + reach.seconds[test] > limit:
            break  # those that follow take longer

        took += reach.seconds[test]
        chosen.append(test)

    if not chosen:
        return Result(mutant, 0, "")

    right = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    try:
        if not _can_be_imported(place, mutant.file):
            return None

        seconds = 120 + 5 * took
        killer = sure_killer_of(place, chosen[:FIRST], seconds)
        killer = killer or sure_killer_of(place, chosen[FIRST:], seconds)
        return Result(mutant, len(chosen), killer)
    finally:
        file.write_text(right, encoding="utf-8")


def _can_be_imported(place: Path, file: str) -> bool:
    module = f"catga_store.{file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"
    try:
        return not python(place, "-c", f"import {module}", seconds=LONGEST_IMPORT).returncode
    except subprocess.TimeoutExpired:
        return False  # an endless loop in a module


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
    parser.add_argument("--keep", type=Path, help="folder for what the first run finds")
    parser.add_argument("--write", action="store_true", help="make the table again")
    parser.add_argument("tests", nargs="*", default=["tests"])
    chosen = parser.parse_args(words)
    results: list[Result] = []
    with nullcontext(chosen.keep) if chosen.keep else TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        place = scratch / "copy"
        if not (scratch / "times.json").exists():
            place.mkdir(parents=True)
            copy_to(place)
            record(place, scratch, chosen.tests)
            copytree(place / "catga_store", scratch / "unchanged")

        # A run that was killed has left its mutant there.
        copytree(scratch / "unchanged", place / "catga_store", dirs_exist_ok=True)
        reach = Reach(place, scratch)
        done = scratch / "results.jsonl"
        results += results_in(done)
        mutants = islice(drawn(place / "catga_store", chosen.seed), tried_in(done), None)
        for mutant in mutants:
            if len(results) >= chosen.number:
                break

            result = run_and_tell(mutant, place, reach, chosen.limit)
            remember(done, result)
            results += [] if result is None else [result]

    killed = sum(bool(result.killer) for result in results)
    sys.stdout.write(f"{killed} of {len(results)} killed\n")
    if chosen.write:
        TABLE.write_text(table_of(results, chosen.seed), encoding="utf-8")

    return 0 if killed >= ENOUGH * len(results) else 1


def remember(done: Path, result: Result | None) -> None:
    """Write down what came of a mutant; None of one that is no mutant."""
    line = None if result is None else (*result.mutant[:-1], result.number, result.killer)
    with done.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line, default=sorted)}\n")


def tried_in(done: Path) -> int:
    """Return how many mutants were drawn before."""
    return len(done.read_text(encoding="utf-8").splitlines()) if done.exists() else 0


def results_in(done: Path) -> list[Result]:
    """Return what came of the mutants before."""
    lines = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    found = [json.loads(line) for line in lines]
    return [Result(Mutant(*one[:-2], ""), one[-2], one[-1]) for one in found if one is not None]


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
