"""Numbers as tables for a terminal, shared by `delineate eval` and `delineate score`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from delineate.metrics.comparison import ComparedScores
    from delineate.metrics.evaluation import Evaluation

_MOST_CLASSES = 20
_MOST_COMPARED = 12  # classes with numbers of their own
_WORST = 5
_LEFT_OUT = {f"objects/ap{percent}" for percent in (55, 60, 65, 70, 80, 85, 95)}  # in the JSON only


def evaluation_tables(evaluation: Evaluation) -> Group:
    """Return summary, classes and the worst pictures of `evaluation`, one table below the other."""
    from rich.console import Group
    from rich.text import Text

    parts = [_summary_table(evaluation), *_class_tables(evaluation)]
    if evaluation.confusions and len(evaluation.classes) > 2:
        parts.append(_confusion_table(evaluation))
    if evaluation.errors is not None:
        parts.append(evaluation.errors.table())
    if sum(not math.isnan(image.quality) for image in evaluation.images) > 1:
        parts.append(_image_table(evaluation))
    notes = [f"note: {note}" for note in evaluation.notes]
    if evaluation.pictures_per_second is not None:
        notes.append(f"speed: {evaluation.pictures_per_second:.3g} pictures a second")
    return Group(*parts, *(Text(note, style="dim") for note in notes))


def _summary_table(evaluation: Evaluation) -> Table:
    count = len(evaluation.images)
    interval = f"{100 * evaluation.confidence:g} % interval"
    table = _table(f"{evaluation.split}: {count} picture{'s' * (count != 1)}", "number", "value", interval)
    intervals = evaluation.intervals or {}
    for name, value in evaluation.summary.items():
        if name.startswith(("iou/", "dice/")) or _left_out(name, evaluation.classes):  # the table of classes has the first
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
    for name, score in comparison.scores.items():
        if name.startswith("dice/") or _left_out(name, comparison.classes):
            continue
        better = "–" if math.isnan(score.better) else f"{score.better:.1%}"
        numbers = _show(score.a), _show(score.b), _show(score.difference, "+"), _interval(score.low, score.high, 3), better
        table.add_row(name, *numbers, style="bold" if score.decided else None)
    names = Text(f"A: {comparison.a}\nB: {comparison.b}")
    return Group(names, table, *(Text(f"note: {note}", style="dim") for note in comparison.notes))


def _left_out(name: str, classes: Sequence[str]) -> bool:
    """Whether only the JSON shows a number: in-between thresholds, and single classes where there are many."""
    return name in _LEFT_OUT or (len(classes) > _MOST_COMPARED and any(name.endswith(f"/{c}") for c in classes))


def _interval(low: float, high: float, digits: int = 4) -> str:
    return "" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"


_CLASS_COLUMNS = {
    "pixels": {
        "iou": "IoU",
        "dice": "Dice",
        "precision": "precision",
        "recall": "recall",
        "truth_pixels": "true pixels",
        "predicted_pixels": "predicted",
    },
    "COCO": {
        f"{kind}/{name}": f"{kind} {name}" for kind in ("segm", "bbox", "boundary", "keypoints") for name in ("AP", "AP50")
    },
    "panoptic": {
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
        "true_positives": "found",
        "false_positives": "invented",
        "false_negatives": "missed",
    },
}
"""What a table of classes shows of each family that has numbers of classes."""


def _class_tables(evaluation: Evaluation) -> list[Table]:
    tables = []
    for family, columns in _CLASS_COLUMNS.items():
        rows = [row for row in evaluation.per_class if any(key in row for key in columns)]
        columns = {key: title for key, title in columns.items() if any(key in row for row in rows)}
        shown, left_out = rows, ""
        if len(rows) > _MOST_CLASSES:
            shown, left_out = _largest(rows), f"the {_MOST_CLASSES} most frequent "
        if not rows:
            continue
        table = _table(f"{left_out}classes, {family}", "class", *columns.values())
        for row in shown:
            table.add_row(row["name"], *(_show(row.get(key, math.nan)) for key in columns))
        tables.append(table)
    return tables


def _largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows by pixels or segments of the truth, in the order they have."""
    size = {row["name"]: row.get("truth_pixels", row.get("true_positives", 0) + row.get("false_negatives", 0)) for row in rows}
    kept = {row["name"] for row in sorted(rows, key=lambda row: -size[row["name"]])[:_MOST_CLASSES]}
    return [row for row in rows if row["name"] in kept]


def _confusion_table(evaluation: Evaluation) -> Table:
    table = _table("most frequent confusions", "class", "taken for", "pixels", "of the class", "of all errors")
    for row in evaluation.confusions[:_WORST]:
        shares = f"{row['share_of_class']:.1%}", f"{row['share_of_errors']:.1%}"
        table.add_row(row["truth"], row["prediction"], f"{row['pixels']:,}", *shares)
    return table


_IMAGE_COLUMNS = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "objects/panoptic_quality_50": "PQ",
    "objects/ap50": "AP50",
    "objects/f1_50": "F1",
    "objects/truth_objects": "objects",
}


def _image_table(evaluation: Evaluation) -> Table:
    """The worst pictures; of objects alone with panoptic quality, by which they are ranked."""
    defined = [image for image in evaluation.images if not math.isnan(image.quality)]
    measured = {name for image in defined for name in image.numbers}
    pixels = "mean_iou" in measured
    columns = {
        name: title
        for name, title in _IMAGE_COLUMNS.items()
        if name in measured and not (pixels and name == "objects/panoptic_quality_50")
    }
    table = _table("worst pictures", "picture", *columns.values())
    for image in sorted(defined, key=lambda image: image.quality)[:_WORST]:
        table.add_row(image.name, *(_show(image.numbers.get(name, math.nan)) for name in columns))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True, max_width=24 if len(columns) > 3 else 40)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show(value: float, sign: str = "") -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:{sign}.4f}"
