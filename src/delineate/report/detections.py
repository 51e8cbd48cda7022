"""The part of a report that is about detections: average precision by class, its curves, and the kinds of error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from delineate.report.plots import SERIES, STYLE

KINDS = {"keypoints": "keypoints", "segm": "masks", "bbox": "boxes", "boundary": "boundaries"}
"""COCO's kinds of IoU, the one that says most first, and what they are of."""

_NUMBERS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "APs", "APm": "APm", "APl": "APl", "AR100": "AR", "AR": "AR"}
"""COCO's names, and those of the columns; keypoints have AR of all detections alone."""

_MOST_CLASSES = 40


def is_of_detections(name: str) -> bool:
    """Whether a flat name is one of COCO's numbers.

    >>> is_of_detections("segm/AP50"), is_of_detections("boundary_iou")
    (True, False)
    """
    return name.partition("/")[0] in KINDS


def precision_table(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows of COCO's numbers, a row a kind of IoU, with the interval of AP where there is one."""
    summary, intervals = evaluation.get("summary") or {}, evaluation.get("intervals") or {}
    kinds = [kind for kind in KINDS if f"{kind}/AP" in summary]
    several = len(evaluation.get("images") or []) > 1
    columns = list(dict.fromkeys(_NUMBERS.values()))
    rows = []
    for kind in kinds:
        values = {title: summary[f"{kind}/{name}"] for name, title in _NUMBERS.items() if f"{kind}/{name}" in summary}
        interval = intervals.get(f"{kind}/AP") if several else None
        rows.append({"name": KINDS[kind], "values": [_defined(values.get(c)) for c in columns], "interval": interval})
    return {"columns": columns, "rows": rows}


def class_table(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows of AP and AP50 of each class that has true objects, the worst first."""
    rows = evaluation.get("per_class") or []
    columns = {
        f"{kind}/{name}": f"{name}, {KINDS[kind]}"
        for kind in KINDS
        for name in ("AP", "AP50")
        if any(f"{kind}/{name}" in row for row in rows)
    }
    if not columns:
        return {"columns": [], "rows": [], "left_out": 0}
    first = next(iter(columns))
    values = [{"name": row["name"], "values": [_defined(row.get(key)) for key in columns]} for row in rows if first in row]
    values.sort(key=lambda row: math.inf if row["values"][0] is None else row["values"][0])
    return {"columns": list(columns.values()), "rows": values[:_MOST_CLASSES], "left_out": max(0, len(values) - _MOST_CLASSES)}


def error_numbers(errors: Mapping[str, Any]) -> dict[str, float]:
    """The flat numbers that `plot_detection_errors` draws, of evaluation.json's "errors"."""
    gains = {**errors["delta_ap"], "false_positive": errors["false_positive"], "false_negative": errors["false_negative"]}
    gains = {name: 0.0 if value is None else value for name, value in gains.items()}
    return {"errors/ap": errors["ap"] or 0.0} | {f"errors/{name}": value for name, value in gains.items()}


def plot_precision_recall(curves: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Precision at each recall, the mean over classes, a panel a kind of IoU; None where there is nothing to draw."""
    kinds = [kind for kind in KINDS if any(curve["iou_type"] == kind for curve in curves)]
    if not kinds:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(kinds), 2.9))
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for index, curve in enumerate(curve for curve in curves if curve["iou_type"] == kind):
                what = "0.50 to 0.95" if curve["iou"] is None else f"{curve['iou']:.2f}"
                label = f"IoU {what}, AP {np.mean(curve['precision']):.3f}"
                axes.plot(curve["recall"], curve["precision"], color=SERIES[index % len(SERIES)], linewidth=1.6, label=label)
            axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
            axes.set_title(KINDS[kind].capitalize())
            axes.legend(loc="best", fontsize=8)
        panels[0].set(ylabel="precision")
    return figure


def _defined(value: float | None) -> float | None:
    """COCO's -1, which stands for nothing to count, as None."""
    return None if value is None or value == -1 else value
