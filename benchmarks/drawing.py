"""The numbers of `figures.py` as plots: one PNG a part, small enough to be kept in the repository."""

from __future__ import annotations

import io
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
APIS = {"blocking": "#1f4e79", "asyncio": "#4f94cd", "trio": "#a8cbe8"}
DPI = 110


def draw(data: Numbers, into: Path) -> None:
    """Write the plots of what was measured."""
    mpl.use("agg")
    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 10,
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
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True)
    titles = {"get": "get", "update": "update", "session": "session: get, change, commit"}
    for axis, name in zip(axes, OPERATIONS, strict=True):
        for place, (api, colour) in enumerate(APIS.items()):
            at = [number + 0.27 * (place - 1) for number in range(len(STORES))]
            heights = [numbers[kind][api][name] for kind in STORES]
            bars = axis.bar(at, heights, 0.25, label=api, color=colour)
            axis.bar_label(bars, [_short(one) for one in heights], fontsize=6, padding=1)

        for number, kind in enumerate(STORES):
            label = "bare client (memory: the codec)" if number == 0 else None
            raw = numbers[kind]["bare"][name]
            axis.hlines(raw, number - 0.43, number + 0.43, "black", lw=2, label=label)

        axis.set(title=titles[name], yscale="log", xticks=range(len(STORES)), xticklabels=STORES)
        axis.grid(axis="y", alpha=0.3)

    axes[0].set_ylabel("p50, µs (log scale)")
    _plain_numbers(axes[0].yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _short(value: float) -> str:
    """As in 940, 1.4k, 20k, 1M."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.0f}{name}" if scaled >= 10 else f"{scaled:.2g}{name}"

    return f"{value:.0f}"


def _throughput(data: Numbers) -> Any:
    numbers = data["throughput"]["numbers"]
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, line in numbers.items():
        is_bare = name.startswith("bare ")
        axis.plot(
            [int(tasks) for tasks in line],
            list(line.values()),
            "--" if is_bare else "o-",
            color=COLOURS[name.removeprefix("bare ")],
            label=f"{name} client, only writing" if is_bare else name,
        )

    ticks = [int(tasks) for tasks in next(iter(numbers.values()))]
    axis.set(
        xscale="log", yscale="log", xlabel="asyncio tasks", ylabel="updates per second (log scale)"
    )
    axis.set_xticks(ticks, [str(tasks) for tasks in ticks])
    axis.minorticks_off()
    _plain_numbers(axis.yaxis)
    return _beside(figure, axis)


def _growth(data: Numbers) -> Any:
    numbers = growth(data)
    names = [name for name in next(iter(numbers.values())) if not name.startswith("bytes")]
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True)
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

    for axis in axes[:, 0]:
        axis.set_ylabel("p50, µs (log scale)")

    last = axes.flat[len(names)]
    for kind, named in numbers.items():
        for what, line in named.items():
            if what.startswith("bytes"):
                kept = {int(size): count / 1024 for size, count in line.items()}
                style = "s:" if what == "bytes of the server's memory" else "o-"
                last.plot(kept.keys(), kept.values(), style, color=COLOURS[kind])

    last.set(title="what a flow takes", ylabel="KiB", xscale="log", ylim=(0, 8))
    last.plot([], [], "ks:", label="memory of the NATS server")
    last.legend(frameon=False)
    last.grid(alpha=0.3)
    _plain_numbers(last.xaxis)
    for axis in axes[1]:
        axis.set_xlabel("stored flows")

    handles, labels = axes.flat[0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color="black", ls="--", lw=1))
    labels.append("bare client")
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _fan_in(data: Numbers) -> Any:
    numbers = data["fan-in"]["numbers"]
    figure, axis = plt.subplots(figsize=(7, 3.8))
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
    return _beside(figure, axis)


def _recovery(data: Numbers) -> Any:
    bars = {f"worker killed, {kind}": one for kind, one in data["takeover"]["numbers"].items()}
    if "restart" in data:
        bars |= {f"server killed, {kind}": one for kind, one in data["restart"]["numbers"].items()}

    figure, axis = plt.subplots(figsize=(7, 2.6))
    colours = [COLOURS[name.rpartition(" ")[2]] for name in bars]
    drawn = axis.barh(list(bars), list(bars.values()), color=colours)
    axis.bar_label(drawn, fmt="%.2f s", padding=3)
    axis.axvline(LEASE_SECONDS, color="black", label="the worker's lease")
    axis.invert_yaxis()
    axis.set(xlabel="seconds until another worker has the flow, or the next commit is done")
    axis.margins(x=0.12)
    return _beside(figure, axis)


def _peers(data: Numbers) -> Any:
    numbers = data["peers"]["numbers"]
    libraries = [name for name in numbers if not name.startswith("bare client")]
    shown = [name for place in STORES for name in libraries if name.endswith(f", {place}")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.3 * len(shown) + 1.2), sharey=True)
    for axis, what in zip(axes, ("save", "load"), strict=True):
        values = [numbers[name][what] for name in shown]
        colours = [COLOURS[name.rpartition(", ")[2]] for name in shown]
        ours = [name.startswith("catga_store") for name in shown]
        drawn = axis.barh(shown, values, color=colours)
        for bar, own in zip(drawn, ours, strict=True):
            bar.set_alpha(1.0 if own else 0.45)

        axis.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
        for number, name in enumerate(shown):
            bare = numbers.get(f"bare client, {name.rpartition(', ')[2]}")
            if bare is not None:
                label = "bare client" if name == "catga_store, SQLite" else None
                axis.vlines(bare[what], number - 0.45, number + 0.45, "black", lw=2, label=label)

        axis.set(title=what, xscale="log", xlabel="p50, µs (log scale)")
        _plain_numbers(axis.xaxis)
        axis.margins(x=0.15)
        axis.grid(axis="x", alpha=0.3)

    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False)
    return figure


def _plain_numbers(*axes: Any) -> None:
    """Write numbers on logarithmic axes as people do, at enough places to read any value."""
    for axis in axes:
        lowest, highest = axis.get_view_interval()
        if highest < 300 * lowest:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))

        axis.set_major_formatter(lambda value, _: _short(value) if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def _beside(figure: Any, axis: Any) -> Any:
    """Put the legend where no line can run through it."""
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
