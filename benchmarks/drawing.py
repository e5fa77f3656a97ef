"""The numbers of `figures.py` as plots: one PNG for each part, small enough for the repository.

The plots are narrow, so that their labels can be read on a small screen. Values on a logarithmic axis are
points, not bars: such an axis has no zero, so the length of a bar would mean nothing. `python
benchmarks/drawing.py` draws the numbers that are kept again, without measuring.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullFormatter
from PIL import Image
from tables import LEASE_SECONDS
from tables import OPERATIONS
from tables import STORES
from tables import Numbers
from tables import growth

__all__ = ["draw"]

COLOURS = dict(zip(STORES, ("tab:gray", "tab:blue", "tab:red", "tab:green"), strict=True))
APIS = {"blocking": "o", "asyncio": "s", "trio": "^"}
DPI = 110
WIDTH = 5.6
"""Inches; at 110 dots an inch, 9 points are still 8 pixels on a screen that is 390 wide."""


def draw(data: Numbers, into: Path) -> None:
    """Write the plots of what was measured."""
    mpl.use("agg")
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "figure.constrained_layout.use": True,
        }
    )
    for part, drawing in (
        ("latency", _latency),
        ("throughput", _throughput),
        ("fan-in", _fan_in),
        ("takeover", _recovery),
        ("peers", _peers),
        ("workers", _workers),
    ):
        if part in data:
            _save(drawing(data), into / f"{part}.png")

    if growth(data):
        _save(_growth(data), into / "growth.png")


def _save(figure: Any, path: Path) -> None:
    with io.BytesIO() as drawn:
        figure.savefig(drawn, dpi=DPI)
        Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)

    plt.close(figure)


def _bare(data: Numbers, kind: str, operation: str) -> float | None:
    """What the bare client takes, if that was measured."""
    if "latency" not in data:
        return None

    found: float | None = data["latency"]["numbers"][kind]["bare"].get(operation)
    return found


def _latency(data: Numbers) -> Any:
    numbers = data["latency"]["numbers"]
    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 8.6), sharex=True)
    titles = {"get": "get", "update": "update", "session": "session: get, change, commit"}
    for axis, name in zip(axes, OPERATIONS, strict=True):
        for row, kind in enumerate(STORES):
            for place, (api, marker) in enumerate(APIS.items()):
                value = numbers[kind][api][name]
                _point(axis, value, row + 0.26 * (place - 1), COLOURS[kind], marker)

            raw = numbers[kind]["bare"][name]
            axis.vlines(raw, row - 0.42, row + 0.42, "black", lw=2)

        axis.margins(x=0.1)
        axis.set(title=titles[name], xscale="log", yticks=range(len(STORES)), yticklabels=STORES)
        axis.set_ylim(len(STORES) - 0.45, -0.55)
        axis.grid(axis="x", alpha=0.3)

    axes[-1].set_xlabel("p50, µs (log scale)")
    _plain_numbers(axes[-1].xaxis)
    handles = [
        plt.Line2D([], [], color="black", ls="", marker=marker, label=api)
        for api, marker in APIS.items()
    ]
    handles.append(plt.Line2D([], [], color="black", lw=2, label="bare client (memory: the codec)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _point(axis: Any, value: float, row: float, colour: str, marker: str = "o") -> None:
    """Draw a point and write its value beside it, on white, so that no line runs through it."""
    axis.plot(value, row, marker, color=colour, ms=6)
    axis.annotate(
        f"{value:,.0f}",
        (value, row),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
        zorder=3,
    )


def _short(value: float) -> str:
    """Format a number as in 940, 1.4k, 20k, 1M."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.0f}{name}" if scaled >= 10 else f"{scaled:.2g}{name}"

    return f"{value:.0f}"


def _throughput(data: Numbers) -> Any:
    numbers = data["throughput"]["numbers"]
    figure, axis = plt.subplots(figsize=(WIDTH, 4.6))
    for name, line in numbers.items():
        is_bare = name.startswith("bare ")
        axis.plot(
            [int(tasks) for tasks in line],
            list(line.values()),
            "--" if is_bare else "o-",
            color=COLOURS[name.removeprefix("bare ")],
            label=f"{name} client, writes only" if is_bare else name,
        )

    ticks = [int(tasks) for tasks in next(iter(numbers.values()))]
    axis.set(
        xscale="log", yscale="log", xlabel="asyncio tasks", ylabel="updates per second (log scale)"
    )
    axis.set_xticks(ticks, [str(tasks) for tasks in ticks])
    axis.minorticks_off()
    _plain_numbers(axis.yaxis)
    return _with_legend(figure, axis)


def _growth(data: Numbers) -> Any:
    numbers = growth(data)
    names = [name for name in next(iter(numbers.values())) if not name.startswith("bytes")]
    figure, axes = plt.subplots(3, 2, figsize=(WIDTH, 8), sharex=True)
    for axis, name in zip(axes.flat, names, strict=False):
        for kind, named in numbers.items():
            line = named[name]
            axis.plot(
                [int(size) for size in line],
                list(line.values()),
                "o-",
                color=COLOURS[kind],
                label=kind,
            )
            bare = _bare(data, kind, {"get": "get", "get + update": "session"}.get(name, ""))
            if bare is not None:
                axis.axhline(bare, color=COLOURS[kind], ls="--", lw=1)

        axis.set(title=name, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        _plain_numbers(axis.xaxis, axis.yaxis)

    figure.supylabel("p50, µs (log scale)")
    last = axes.flat[len(names)]
    for kind, named in numbers.items():
        for what, line in named.items():
            if what.startswith("bytes"):
                kept = {int(size): count / 1024 for size, count in line.items()}
                style = "s:" if what == "bytes in server memory" else "o-"
                last.plot(kept.keys(), kept.values(), style, color=COLOURS[kind])

    last.set(title="space per flow, KiB", xscale="log", yscale="log")
    last.grid(alpha=0.3)
    _plain_numbers(last.xaxis, last.yaxis)
    for axis in axes[-1]:
        axis.set_xlabel("stored flows")

    handles, labels = axes.flat[0].get_legend_handles_labels()
    handles += [
        plt.Line2D([], [], color="black", ls="--", lw=1),
        plt.Line2D([], [], color=COLOURS["NATS"], ls=":", marker="s"),
    ]
    labels += ["bare client", "NATS server memory"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _fan_in(data: Numbers) -> Any:
    numbers = data["fan-in"]["numbers"]
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4))
    for kind, line in numbers.items():
        axis.plot(
            [int(n) for n in line], list(line.values()), "o-", color=COLOURS[kind], label=kind
        )
        bare = _bare(data, kind, "update")
        if bare is not None and kind != "memory":
            axis.axhline(
                bare, color=COLOURS[kind], ls="--", lw=1, label=f"bare {kind} client, one write"
            )

    axis.set(
        xscale="log", yscale="log", xlabel="children", ylabel="one completion, p50, µs (log scale)"
    )
    _plain_numbers(axis.xaxis, axis.yaxis)
    return _with_legend(figure, axis)


def _recovery(data: Numbers) -> Any:
    bars = {f"worker killed, {kind}": one for kind, one in data["takeover"]["numbers"].items()}
    if "restart" in data:
        bars |= {f"server killed, {kind}": one for kind, one in data["restart"]["numbers"].items()}

    figure, axis = plt.subplots(figsize=(WIDTH, 3))
    colours = [COLOURS[name.rpartition(" ")[2]] for name in bars]
    drawn = axis.barh(list(bars), list(bars.values()), color=colours)
    axis.bar_label(drawn, fmt="%.2f s", padding=3)
    axis.axvline(LEASE_SECONDS, color="black", label="the worker's lease")
    axis.invert_yaxis()
    axis.set(xlabel="seconds until work continues")
    axis.margins(x=0.2)
    return _with_legend(figure, axis)


def _peers(data: Numbers) -> Any:
    numbers = data["peers"]["numbers"]
    libraries = [name for name in numbers if not name.startswith("bare client")]
    shown = [name for place in STORES for name in libraries if name.endswith(f", {place}")]
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 0.5 * len(shown) + 2), sharex=True)
    for axis, what in zip(axes, ("save", "load"), strict=True):
        for row, name in enumerate(shown):
            kind = name.rpartition(", ")[2]
            bare = numbers.get(f"bare client, {kind}")
            if bare is not None:
                axis.vlines(bare[what], row - 0.42, row + 0.42, "black", lw=2)

            marker = "D" if name.startswith("catga_store") else "o"
            _point(axis, numbers[name][what], row, COLOURS[kind], marker)

        axis.set(title=what, xscale="log", yticks=range(len(shown)), yticklabels=shown)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.margins(x=0.12)
        axis.grid(axis="x", alpha=0.3)

    axes[-1].set_xlabel("p50, µs (log scale)")
    _plain_numbers(axes[-1].xaxis)
    handles = [
        plt.Line2D([], [], color="black", ls="", marker="D", label="this library"),
        plt.Line2D([], [], color="black", ls="", marker="o", label="other libraries"),
        plt.Line2D([], [], color="black", lw=2, label="bare client"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _workers(data: Numbers) -> Any:
    numbers = data["workers"]["numbers"]
    shown = list(numbers)
    panels = {
        "rate": "jobs per second",
        "latency": "wake-up latency, ms",
        "cpu": "CPU time per job, µs",
    }
    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 0.9 * len(shown) + 1), sharey=True)
    for axis, (what, title) in zip(axes, panels.items(), strict=True):
        for row, name in enumerate(shown):
            kind = name.rpartition(", ")[2]
            marker = "D" if name.startswith("catga_store") else "o"
            _point(axis, numbers[name][what], row, COLOURS[kind], marker)

        axis.set(title=title, xscale="log", yticks=range(len(shown)), yticklabels=shown)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.margins(x=0.15)
        axis.grid(axis="x", alpha=0.3)
        _plain_numbers(axis.xaxis)

    handles = [
        plt.Line2D([], [], color="black", ls="", marker="D", label="this library"),
        plt.Line2D([], [], color="black", ls="", marker="o", label="other libraries"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _plain_numbers(*axes: Any) -> None:
    """Write plain numbers on logarithmic axes, at enough places to read any value."""
    for axis in axes:
        lowest, highest = axis.get_view_interval()
        if highest < 300 * lowest:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))

        axis.set_major_formatter(lambda value, _: _short(value) if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def _with_legend(figure: Any, axis: Any) -> Any:
    """Put the legend below, where no line can run through it."""
    axis.grid(alpha=0.3)
    legend = axis.get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    FIGURES = Path(__file__).parents[1] / "docs" / "figures"
    draw(json.loads((FIGURES / "figures.json").read_text("utf-8")), FIGURES)
