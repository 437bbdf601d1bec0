"""The plots of docs/performance.md, as PNG and SVG, from what the sections measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110
SIZE = (10.0, 4.0)


def draw(results: Path, folder: Path) -> None:
    """Draw a plot for each section that was measured and has one."""
    folder.mkdir(exist_ok=True)
    for name, (_, make) in PLOTS.items():
        path = results / f"{name}.json"
        if path.exists():
            figure = make(json.loads(path.read_text()))
            figure.tight_layout()
            # Without a date a plot changes only when its figures do.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            plt.close(figure)


def _decode(result: Mapping[str, Any]) -> Figure:
    """Time and memory against the number of pixels."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=SIZE)
    sizes = [int(size) for size in result["sizes"]]
    for way in next(iter(result["sizes"].values())):
        rows = [result["sizes"][str(size)][way] for size in sizes]
        label = way if "," in way else f"bands, {way}"
        time.plot(sizes, [row["seconds"]["p50"] for row in rows], marker="o", label=label)
        memory.plot(sizes, [row["bytes"]["p50"] / 1e6 for row in rows], marker="o", label=label)
    _label(time, "pixels a side", "seconds", sizes)
    _label(memory, "pixels a side", "MB over the loaded model", sizes)
    return figure


def _peers(result: Mapping[str, Any]) -> Figure:
    """Pictures a second and latency against the number of clients."""
    vaes = result["vaes"]
    figure, axes = plt.subplots(len(vaes), 2, figsize=(SIZE[0], SIZE[1] * len(vaes)), squeeze=False)
    for (vae, rows), (rate, latency) in zip(vaes.items(), axes, strict=True):
        for name, row in rows.items():
            clients = [int(count) for count in row]
            rates = [each["per_second"]["p50"] for each in row.values()]
            waited = [1000 * each["seconds"]["p50"] for each in row.values()]
            rate.plot(clients, rates, marker="o", label=name)
            latency.plot(clients, waited, marker="o", label=name)
        _label(rate, "clients", f"{vae}: pictures a second", clients)
        _label(latency, "clients", f"{vae}: milliseconds, p50", clients)
    return figure


def _load(result: Mapping[str, Any]) -> Figure:
    """What a further job costs against the backlog."""
    figure, (rate, memory) = plt.subplots(1, 2, figsize=SIZE)
    filling = result["filling"]
    queued = [each["queued"] for each in filling]
    rate.plot(queued, [1000 / each["submissions_per_second"] for each in filling], marker="o")
    memory.plot(queued, [each["redis_bytes_per_job"] for each in filling], marker="o")
    for axis, label in ((rate, "milliseconds a submission"), (memory, "bytes of Redis a job")):
        axis.set(xlabel="queued jobs", ylabel=label, ylim=(0, None))
        axis.grid(visible=True, alpha=0.3)
    return figure


def _label(axis: Axes, x: str, y: str, ticks: list[int]) -> None:
    axis.set(xlabel=x, ylabel=y, xscale="log", yscale="log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize="small")


PLOTS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "decode": ("Time and memory against resolution", _decode),
    "peers": ("Pictures a second and latency against clients", _peers),
    "load": ("A submission's time and a job's bytes against the backlog", _load),
}
"""For each section that has one, what the plot shows, and how it is drawn."""
