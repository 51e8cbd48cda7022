"""Numbers as tables for a terminal, shared by `delineate eval` and `delineate score`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from delineate.metrics.comparison import ComparedScores
    from delineate.metrics.evaluation import Evaluation

_MOST_CLASSES = 40
_MOST_COMPARED = 12
_WORST = 5
_LEFT_OUT = {f"objects/ap{percent}" for percent in (55, 60, 65, 70, 80, 85, 95)}  # in the JSON only


def evaluation_tables(evaluation: Evaluation) -> Group:
    """Return summary, classes and the worst pictures of `evaluation`, one table below the other."""
    from rich.console import Group
    from rich.text import Text

    parts = [_summary_table(evaluation)]
    if evaluation.per_class:
        parts.append(_class_table(evaluation))
    if len(evaluation.images) > 1:
        parts.append(_image_table(evaluation))
    return Group(*parts, *(Text(f"note: {note}", style="dim") for note in evaluation.notes))


def _summary_table(evaluation: Evaluation) -> Table:
    count = len(evaluation.images)
    interval = f"{100 * evaluation.confidence:g} % interval"
    table = _table(f"{evaluation.split}: {count} picture{'s' * (count != 1)}", "number", "value", interval)
    intervals = evaluation.intervals or {}
    for name, value in evaluation.summary.items():
        if name.startswith(("iou/", "dice/")) or name in _LEFT_OUT:  # the table of classes has the first
            continue
        low, high = intervals.get(name, (math.nan, math.nan))
        table.add_row(name, _show(value), _interval(low, high))
    return table


def comparison_table(comparison: ComparedScores) -> Group:
    """Return the numbers of A and B, their differences with intervals, and how often A is better; decided ones in bold."""
    from rich.console import Group
    from rich.text import Text

    count, resampling = comparison.pictures, comparison.resampling
    title = f"{comparison.split}: {count} picture{'s' * (count != 1)}, the same for both in {resampling.resamples} resamples"
    table = _table(title, "number", "A", "B", "A - B", f"{100 * resampling.confidence:g} % interval", "A better")
    table.collapse_padding, table.pad_edge = True, False  # to fit 80 columns
    several = sum(name.startswith("iou/") for name in comparison.scores) > _MOST_COMPARED
    for name, score in comparison.scores.items():
        if name in _LEFT_OUT or name.startswith("dice/") or (several and name.startswith("iou/")):
            continue
        better = "–" if math.isnan(score.better) else f"{score.better:.1%}"
        numbers = _show(score.a), _show(score.b), f"{score.difference:+.4f}", _interval(score.low, score.high), better
        table.add_row(name, *numbers, style="bold" if score.decided else None)
    names = Text(f"A: {comparison.a}\nB: {comparison.b}")
    return Group(names, table, *(Text(f"note: {note}", style="dim") for note in comparison.notes))


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def _class_table(evaluation: Evaluation) -> Table:
    rows = sorted(evaluation.per_class, key=lambda row: -row["truth_pixels"])[:_MOST_CLASSES]
    shown = [row for row in evaluation.per_class if row in rows]
    title = "classes" if len(shown) == len(evaluation.per_class) else f"the {len(shown)} largest classes"
    table = _table(title, "class", "IoU", "Dice", "precision", "recall", "true pixels", "predicted")
    for row in shown:
        scores = [_show(row[key]) for key in ("iou", "dice", "precision", "recall")]
        table.add_row(row["name"], *scores, f"{row['truth_pixels']:,}", f"{row['predicted_pixels']:,}")
    return table


def _image_table(evaluation: Evaluation) -> Table:
    objects = evaluation.objects is not None
    table = _table("worst pictures", "picture", "mean IoU", "mean Dice", *(["AP50", "F1", "objects"] if objects else []))
    defined = [image for image in evaluation.images if not math.isnan(image.mean_iou)]
    for image in sorted(defined, key=lambda image: image.mean_iou)[:_WORST]:
        numbers = image.objects or {}
        extra = [
            _show(numbers.get("ap50", math.nan)),
            _show(numbers.get("f1_50", math.nan)),
            _show(numbers.get("truth_objects", 0)),
        ]
        table.add_row(image.name, _show(image.mean_iou), _show(image.mean_dice), *(extra if objects else []))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True, max_width=24 if len(columns) > 3 else 40)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:.4f}"
