"""Plots of a run: curves of loss and metrics, confusion matrix; matplotlib figures, as PNG files and as SVG for the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from delineate.files import atomic_path

# Two colours that no plot uses otherwise: in the SVG they become the page's own, so that one plot suits light and dark.
_INK, _LINE = "#57606b", "#c9ced5"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "delineate",
    "figure.constrained_layout.use": True,
}


def plot_losses(history: Mapping[str, Sequence[float]]) -> Figure | None:
    """Training and validation loss by epoch, the terms of the loss thinner; None where there is nothing to draw."""
    terms = [name for name in history if name.startswith("train/") and name != "train/loss"]
    lines = {"training": "train/loss", "validation": "val/loss"}
    if len(terms) > 1:
        lines |= {name.removeprefix("train/").replace("_", " "): name for name in terms}
    peak, top = _early_peak(history)
    title = "Loss" if peak is None else f"Loss (peaks up to {peak:.3g} cut off)"
    return _plot_curves(history, lines, title, thick=2, top=top)


def _early_peak(history: Mapping[str, Sequence[float]]) -> tuple[float | None, float | None]:
    """The highest validation loss, where the first epochs are so far off that they would flatten all else, and where to cut."""
    training, validation = (np.array(history.get(name, []), float) for name in ("train/loss", "val/loss"))
    if not (np.isfinite(training).any() and np.isfinite(validation).any()):
        return None, None
    usual, peak = max(np.nanmax(training), 1.5 * np.nanmedian(validation)), float(np.nanmax(validation))
    return (peak, 1.1 * usual) if peak > 2 * usual else (None, None)


def plot_metrics(history: Mapping[str, Sequence[float]]) -> Figure | None:
    """Validation metrics by epoch, the best value of the first one marked; None where there is nothing to draw."""
    lines = {"mean IoU": "val/mean_iou", "mean Dice": "val/mean_dice", "pixel accuracy": "val/pixel_accuracy"}
    lines |= {"PQ": "val/pq", "PQ of things": "val/pq_things", "PQ of stuff": "val/pq_stuff"}
    for kind in ("keypoint", "mask", "box"):  # of detectors
        lines |= {f"{kind} AP": f"val/{kind}_AP", f"{kind} AP50": f"val/{kind}_AP50"}
    of_classes = [name for name in history if name.startswith("val/iou/")]
    if len(of_classes) <= 3:  # more would hide one another; the table of classes has them
        lines |= {f"IoU of {name.removeprefix('val/iou/')}": name for name in of_classes}
    figure = _plot_curves(history, lines, "Validation", thick=3)
    first = next((name for name in lines.values() if np.isfinite(history.get(name, [])).any()), None)
    if figure is not None and first is not None:
        values = np.array(history[first], float)
        best = int(np.nanargmax(values))
        axes = figure.axes[0]
        axes.plot([_epochs(history)[best]], [values[best]], "o", color=SERIES[0], markersize=5)
        label, place = f"{values[best]:.3f}", (_epochs(history)[best], values[best])
        axes.annotate(label, place, (0, -13), textcoords="offset points", ha="center", color=_INK, fontsize=9)
    return figure


def plot_schedule(history: Mapping[str, Sequence[float]]) -> Figure | None:
    """The learning rate by epoch."""
    return _plot_curves(history, {"learning rate": "lr"}, "Learning rate", thick=1, legend=False)


def plot_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Shares of each true class (row) that were predicted as each class (column); numbers where there is room for them."""
    matrix = np.array(counts, float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    count = len(shares)
    style: dict[Any, Any] = {**STYLE, "axes.grid": False}
    with rc_context(style):
        side = max(3.2, 0.42 * count + 1.6)
        figure = Figure(figsize=(side, side))
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(count), classes, rotation=45 if count > 3 else 0, ha="right" if count > 3 else "center")
        axes.set_yticks(range(count), classes)
        axes.set(xlabel="predicted", ylabel="truth")
        for row, column in np.ndindex(*shares.shape) if count <= 20 else ():
            color = "white" if shares[row, column] > 0.55 else "#222222"
            axes.text(column, row, f"{100 * shares[row, column]:.1f}", ha="center", va="center", color=color, fontsize=8)
        axes.set_title("Confusion, % of truth")
    return figure


def plot_detection_errors(summary: Mapping[str, float]) -> Figure:
    """What each kind of detection error costs in AP: `DetectionErrors.summary()`, "errors/ap", "errors/classification" ..."""
    gains = {name.removeprefix("errors/"): value for name, value in summary.items() if name.startswith("errors/")}
    ap = gains.pop("ap")
    whole = {name: gains.pop(f"false_{name}") for name in ("positive", "negative")}
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.6))
        kinds, sides = figure.subplots(1, 2, width_ratios=(3, 1))
        bars = kinds.barh(list(gains), list(gains.values()), color=[SERIES[i % len(SERIES)] for i in range(len(gains))])
        kinds.bar_label(bars, fmt="%.3f", padding=3, color=_INK, fontsize=8)
        kinds.invert_yaxis()
        kinds.set(xlabel="AP gained by repairing it")
        kinds.set_title(f"Errors at AP {ap:.3f}")
        kinds.grid(False, axis="y")
        bars = sides.bar([f"false\n{name}" for name in whole], list(whole.values()), color=_LINE, width=0.6)
        sides.bar_label(bars, fmt="%.3f", padding=2, color=_INK, fontsize=8)
        sides.grid(False, axis="x")
        for axes in (kinds, sides):
            axes.margins(x=0.15, y=0.1)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element for a page: it scales, its text is text, and its ink follows the page's colours."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # a page has several plots: nothing refers to these, and ids must not repeat
    return svg.replace(_INK, "var(--muted)").replace(_LINE, "var(--line)")


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure on white."""
    with atomic_path(path) as temporary, rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(temporary, dpi=150, facecolor="white")


def _epochs(history: Mapping[str, Sequence[float]]) -> list[float]:
    count = max((len(column) for column in history.values()), default=0)
    given = history.get("epoch", [])
    return list(given) if len(given) == count and all(math.isfinite(e) for e in given) else [float(i + 1) for i in range(count)]


def _plot_curves(
    history: Mapping[str, Sequence[float]],
    lines: Mapping[str, str],
    title: str,
    thick: int,
    legend: bool = True,
    top: float | None = None,
) -> Figure | None:
    """One line a column; validations that were skipped leave no gap, single points are dots."""
    drawn = {label: np.array(history[name], float) for label, name in lines.items() if name in history}
    drawn = {label: values for label, values in drawn.items() if np.isfinite(values).any()}
    if not drawn:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0))
        axes: Axes = figure.add_subplot()
        epochs = np.array(_epochs(history))
        for index, (label, values) in enumerate(drawn.items()):
            known = np.isfinite(values)
            width, alpha = (1.8, 1.0) if index < thick else (1.0, 0.7)
            marker = "o" if known.sum() == 1 else None
            color = SERIES[index % len(SERIES)]
            axes.plot(
                epochs[known],
                values[known],
                color=color,
                linewidth=width,
                alpha=alpha,
                marker=marker,
                markersize=4,
                label=label,
            )
        axes.set(xlabel="epoch")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.02)
        if len(epochs) == 1:
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        if top is not None:
            lowest = min(float(np.nanmin(values)) for values in drawn.values())
            axes.set_ylim(lowest - 0.05 * (top - lowest), top)
        if legend:
            axes.legend(loc="best", ncols=2 if len(drawn) > 3 else 1)
    return figure
