"""The figures of the documentation can be made anew by the command that they name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_numbers_are_measured_on_every_store(tmp_path: Path) -> None:
    """The quick form fills every table, for each store and face, with what took time."""
    words = [sys.executable, BENCHMARKS / "figures.py", "--quick", "--no-plots", "--into", tmp_path]
    subprocess.run(words, check=True, timeout=300)
    data = json.loads((tmp_path / "figures.json").read_text())
    stores = ["memory", "SQLite", "Redis", "NATS"]
    for part in ("latency", "throughput", "growth", "fan_in"):
        assert list(data[part]) == stores

    for faces in data["latency"].values():
        assert list(faces) == ["blocking", "asyncio", "trio", "bare"]
        assert all(taken > 0 for times in faces.values() for taken in times.values())

    assert all(seconds > 0 for seconds in data["takeover"].values())
    table = (tmp_path / "tables.md").read_text()
    assert all(f"| {store} | blocking |" in table for store in stores)
