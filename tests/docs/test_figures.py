"""The figures of the documentation can be made again by the command that they name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
STORES = ["memory", "SQLite", "Redis", "NATS"]
# `peers` and `workers` need libraries that tests do without.
PARTS = ["latency", "throughput", *[f"growth-{kind}" for kind in STORES]]
PARTS += ["fan-in", "takeover", "restart"]


def measure(into: Path, *arguments: str) -> None:
    """Run the command in its quick form."""
    words = [sys.executable, ROOT / "benchmarks" / "figures.py", *arguments, "--quick"]
    subprocess.run([*words, "--no-plots", "--into", into], check=True, timeout=300)


def test_the_numbers_are_measured_on_every_store(tmp_path: Path) -> None:
    """The quick form fills every table, for each store and API, with what took time."""
    measure(tmp_path, *PARTS[:3])
    measure(tmp_path, *PARTS[3:])  # a part that is measured later keeps the others
    data = json.loads((tmp_path / "figures.json").read_text())
    assert list(data) == PARTS
    numbers = {part: one["numbers"] for part, one in data.items()}
    assert all(list(numbers[part])[:4] == STORES for part in ("latency", "throughput", "fan-in"))
    for apis in numbers["latency"].values():
        assert list(apis) == ["blocking", "asyncio", "trio", "bare"]
        assert all(taken > 0 for times in apis.values() for taken in times.values())

    for kind in STORES:
        assert all(line["1000"] > 0 for line in numbers[f"growth-{kind}"].values())
        assert any(name.startswith("bytes") for name in numbers[f"growth-{kind}"])

    assert all(seconds > 0 for seconds in numbers["takeover"].values())
    assert list(numbers["restart"]) == ["Redis", "NATS"]
    table = (tmp_path / "tables.md").read_text()
    assert all(f"| {store}, blocking |" in table for store in STORES)


def test_the_documentation_shows_every_part() -> None:
    """There is a picture for each that the page names, and numbers of the peers, too."""
    data = json.loads((FIGURES / "figures.json").read_text())
    assert data.keys() == {*PARTS, "peers", "workers"}
    assert len(data["peers"]["numbers"]) == 14
    assert len(data["workers"]["numbers"]) == 8
    named = re.findall(r"\(figures/(.+?\.png)\)", (FIGURES.parent / "figures.md").read_text())
    assert sorted(named) == sorted(path.name for path in FIGURES.glob("*.png"))
    assert sum(path.stat().st_size for path in FIGURES.iterdir()) < 300_000
