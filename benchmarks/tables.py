"""The numbers of `figures.py` as Markdown."""

from __future__ import annotations

from typing import Any

from peers import ABOUT
from worker_peers import ABOUT as WORKERS

__all__ = ["LEASE_SECONDS", "OPERATIONS", "STORES", "Numbers", "growth", "tables"]

Numbers = dict[str, Any]

STORES = ("memory", "SQLite", "Redis", "NATS")
OPERATIONS = ("get", "update", "session")
LEASE_SECONDS = 1.0

_TITLES = {
    "throughput": "Updates per second, by the number of asyncio tasks. The bare clients only write:",
    "fan-in": "Median time (p50) of one completion in µs, by the number of children:",
    "takeover": "Time in seconds from the SIGKILL of a worker until another worker has claimed its flow. The lease is"
    f" {LEASE_SECONDS:.0f} s, and the other worker polls every 50 ms:",
    "restart": "Time in seconds from the SIGKILL of the server until the next commit. The server is restarted at once:",
    "workers": "Each worker runs up to 32 jobs at a time, and the jobs do nothing. `rate` is the number of jobs per"
    " second, `latency` is the time in ms from when a job is sent to an idle worker until the job starts, and `cpu` is"
    " the CPU time per job in µs:",
    "peers": "Median time (p50) in µs for one caller that saves and loads 20 flows in turn. All libraries use the same"
    " state, 1 KiB of plain data:",
}


def tables(data: Numbers) -> str:
    """Write a table for each part that was measured, with when and on what it was."""
    lines: list[str] = []
    for part in (
        "latency",
        "throughput",
        "growth",
        "fan-in",
        "takeover",
        "restart",
        "peers",
        "workers",
    ):
        rows = _rows(data, part)
        if not rows:
            continue

        title = _TITLES.get(part, "")
        first = "store"
        if part == "latency":
            title, first = "Median latency (p50) of one call in µs:", "store, API"
        elif part == "growth":
            title, first = (
                "Median time (p50) in µs and bytes per flow, by the number of stored flows:",
                "store, operation",
            )

        digits = 2 if part in ("takeover", "restart") else 0
        lines += [title, "", *_table(first, rows, digits), "", _where(data, part), ""]
        if part == "peers":
            lines += ["In each library, one save stores and checks the following:", ""]
            lines += [f"- **{name}** {text}." for name, text in ABOUT.items()] + [""]
        elif part == "workers":
            lines += ["The libraries are configured as follows:", ""]
            lines += [f"- **{name}** {text}." for name, text in WORKERS.items()] + [""]

    return "\n".join(lines[:-1]) + "\n"


def growth(data: Numbers) -> dict[str, Numbers]:
    """What was measured of growth, by store."""
    return {kind: data[f"growth-{kind}"]["numbers"] for kind in STORES if f"growth-{kind}" in data}


def _rows(data: Numbers, part: str) -> dict[str, dict[str, float]]:
    if part == "growth":
        return {
            f"{kind}, {what}": line
            for kind, named in growth(data).items()
            for what, line in named.items()
        }

    if part not in data:
        return {}

    numbers: Numbers = data[part]["numbers"]
    if part == "latency":
        return {
            f"{kind}, {api}": taken for kind, apis in numbers.items() for api, taken in apis.items()
        }

    if part in ("takeover", "restart"):
        return {kind: {"s": one} for kind, one in numbers.items()}

    return numbers


def _where(data: Numbers, part: str) -> str:
    measured = [one for name, one in data.items() if name == part or name.startswith(f"{part}-")]
    said = {
        f"{one['about']['date']}, Python {one['about']['python']}, {one['about']['cpus']} cores"
        " shared by client and servers"
        for one in measured
    }
    return f"(Measured with `python benchmarks/figures.py`: {'; '.join(sorted(said))}.)"


def _table(first: str, rows: dict[str, dict[str, float]], digits: int) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    heads = " | ".join(f"{int(name):,}" if name.isdecimal() else name for name in columns)
    lines = [f"| {first} | {heads} |", "|---" + "|--:" * len(columns) + "|"]
    for name, row in rows.items():
        cells = (f"{row[one]:,.{digits}f}" if one in row else "" for one in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")

    return lines
