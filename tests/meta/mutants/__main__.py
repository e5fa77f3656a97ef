"""Run the tests against every mutant and print who killed it: `python -m tests.meta.mutants [NAME …]`.

Each mutant is a copy of the package with one place changed. The tests that its line in the catalogue
names run against it, to the first failure. With `--write` the table in TABLE.md is made again; the
rows of mutants that were not run stay as they are. The exit code is 1 if one survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.meta.mutants.catalogue import MUTANTS
from tests.meta.mutants.catalogue import Mutant
from tests.meta.mutants.catalogue import place_of

ROOT = Path(__file__).parents[3]
TABLE = Path(__file__).parent / "TABLE.md"
COPIED = (
    *("catga_store", "tests", "docs", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("LICENSE", "pyproject.toml", "setup.cfg", "tox.ini"),
)
LONG = 600
"""Seconds after which a run counts as stuck, which kills a mutant too."""


class Result(NamedTuple):
    """What came of one mutant; `killer` is empty if it survived."""

    mutant: Mutant
    killer: str
    seconds: float


def copy_to(place: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)


def change(place: Path, mutant: Mutant) -> tuple[Path, str]:
    """Make the mutant's change; return the file and the text that was there."""
    file = place_of(mutant, place / "catga_store")
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
    return file, right


def killer_of(place: Path, tests: tuple[str, ...]) -> str:
    """The first test that fails, empty if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(stuck in {' '.join(tests)})"

    failed = re.search(
        r"^(?:FAILED|ERROR) (?:tests/)?(\S+?\.py(?:::.*?)?)(?: - .*)?$", done.stdout, re.MULTILINE
    )
    if failed is None and done.returncode:
        return f"(pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-200:]!r})"

    return "" if failed is None else failed[1]


def run(mutant: Mutant, place: Path) -> Result:
    """Run its tests against one mutant."""
    start = time.monotonic()
    file, right = change(place, mutant)
    try:
        killer = killer_of(place, mutant.tests)
    finally:
        file.write_text(right, encoding="utf-8")

    return Result(mutant, killer, time.monotonic() - start)


def rows_of(results: list[Result]) -> dict[str, str]:
    """The rows of the table, by mutant."""
    rows: dict[str, str] = {}
    for mutant, killer, _ in results:
        shown = f"`{killer}`" if killer else "**survived**"
        rows[mutant.name] = f"| {mutant.name} | {mutant.what} | `{mutant.file}` | {shown} |"

    return rows


def table_of(rows: dict[str, str]) -> str:
    """The table that is checked in, in the order of the catalogue."""
    lines = [
        "# Mutants",
        "",
        "`tox -e mutants -- --write` made this table. Each mutant is a small wrong version of the library,",
        "of the sort that stores have been shipped with; each is killed by the test beside it.",
        "",
        "| mutant | what is wrong | file | killed by |",
        "|---|---|---|---|",
    ]
    there = [rows[mutant.name] for mutant in MUTANTS if mutant.name in rows]
    killed = sum("**survived**" not in row for row in there)
    return "\n".join([*lines, *there, "", f"{killed} of {len(there)} are killed.", ""])


def written_rows() -> dict[str, str]:
    """The rows that the table has now."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    rows = (line for line in lines if re.match(r"\| [a-z]+-", line))
    return {row.split(" ", 2)[1]: row for row in rows}


def main(words: list[str]) -> int:
    """Run those that are named, or all."""
    names = [word for word in words if not word.startswith("-")]
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    if len(chosen) != (len(names) or len(MUTANTS)):
        sys.stdout.write(f"no such mutant among {names}\n")
        return 2

    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_to(place)
        for mutant in chosen:
            results.append(run(mutant, place))
            shown = results[-1].killer or "SURVIVED"
            sys.stdout.write(f"{results[-1].seconds:6.1f} s  {mutant.name}: {shown}\n")
            sys.stdout.flush()
            if "--write" in words:
                rows = written_rows() | rows_of(results)
                TABLE.write_text(table_of(rows), encoding="utf-8")

    survived = [result.mutant.name for result in results if not result.killer]
    sys.stdout.write(
        f"{len(results) - len(survived)} of {len(results)} killed; survived: {survived}\n"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
