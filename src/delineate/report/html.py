"""The report of a run: one HTML file that needs nothing else, made from the files of the run folder."""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

import delineate
from delineate.files import write_text
from delineate.report.detections import (
    KINDS,
    class_table,
    error_numbers,
    is_of_detections,
    plot_precision_recall,
    precision_table,
)
from delineate.report.palette import palette
from delineate.report.plots import (
    plot_confusion,
    plot_detection_errors,
    plot_losses,
    plot_metrics,
    plot_schedule,
    save_png,
    to_svg,
)
from delineate.report.reading import RunFiles, read_run
from delineate.report.settings import describe_settings, sentence

_PICTURES = 3  # best and worst each
_CONFUSIONS = 3  # the most frequent ones, in words
_WIDEST_TABLE = 12  # classes; more are drawn as a plot


def write_report(run: str | Path) -> Path:
    """Write `report.html` into the run folder, and the plots as PNG into its `plots/`; return the path of the report.

    Reads config.yaml, plan.json, env.json, results.csv, evaluation.json and previews/; what is missing is left out and named in
    the report. Raises `DataError` where the folder is not that of a run, `DelineateError` where the report cannot be written.
    """
    files = read_run(run)
    page = _environment().get_template("report.html.j2")
    report = files.folder / "report.html"
    write_text(report, page.render(_context(files)))
    return report


def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("delineate.report", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": _number, "count": _count, "title": _title, "sentence": sentence}
    return environment


def _context(files: RunFiles) -> dict[str, Any]:
    evaluation = files.evaluation
    classes = [str(name) for name in evaluation.get("classes") or [row["name"] for row in evaluation.get("per_class") or []]]
    title, subtitle = _heading(files)
    return {
        "name": title,
        "version": delineate.__version__,
        "written": datetime.now().strftime("%d %B %Y, %H:%M"),
        "subtitle": subtitle,
        "missing": files.missing,
        "notes": evaluation.get("notes") or [],
        "headline": _headline(evaluation),
        "split": evaluation.get("split"),
        "settings": describe_settings(files.config, files.plan, finds_objects=files.finds_objects),
        "plan_notes": files.plan.get("notes") or [],
        "config_text": yaml.safe_dump(files.config, sort_keys=False) if files.config else "",
        "curves": _curves(files),
        "precision": precision_table(evaluation),
        "precision_of_classes": class_table(evaluation),
        "detection_plots": _detection_plots(files),
        "confusion": _confusion(files, classes),
        "per_class": _per_class(evaluation, classes),
        "objects": _objects(evaluation),
        "other_numbers": _other_numbers(evaluation),
        "pictures": _pictures(files),
        "picture_count": len(evaluation.get("images") or []),
        "speed": _speed(files),
        "environment": _flat(files.environment),
        "commands": _commands(files),
    }


def _heading(files: RunFiles) -> tuple[str, str]:
    """What the page is about, and a line below it: the folder, and how long the training was."""
    name = files.folder.resolve().name
    model, data = files.config.get("model") or {}, files.config.get("data") or {}
    title = f"{model['name']} on {Path(str(data['path'])).name}" if model.get("name") and data.get("path") else name
    epochs = f"{files.epochs} {'epoch' if files.epochs == 1 else 'epochs'}" if files.epochs else "no finished epoch"
    return title, f"{files.folder} · {epochs}"


def _headline(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The few numbers that matter most, each with its interval where there is one."""
    summary, objects = evaluation.get("summary") or {}, _numbers(evaluation.get("objects"))
    wanted = [("mean_iou", "Mean IoU"), ("mean_dice", "Mean Dice"), ("pixel_accuracy", "Pixel accuracy")]
    classes = evaluation.get("classes") or []
    if len(classes) == 2:  # one class against the background: its own IoU says more than the mean
        wanted.insert(0, (f"iou/{classes[1]}", f"IoU of {classes[1]}"))
    wanted.append(("pq", "Panoptic quality"))
    wanted += [(f"{kind}/AP", f"AP of {title}") for kind, title in KINDS.items() if kind != "boundary"]
    cards = [(key, title, summary[key]) for key, title in wanted if summary.get(key) not in (None, -1)]
    of_objects = [("f1_50", "Object F1, IoU 0.5"), ("ap", "Object mean AP")]
    if "bbox/AP" in summary:  # beside COCO's, StarDist's would confuse
        of_objects.pop()
    cards += [(f"objects/{key}", title, objects[key]) for key, title in of_objects if key in objects]
    several = len(evaluation.get("images") or []) > 1  # an interval over one picture would say nothing
    intervals = (evaluation.get("intervals") or {}) if several else {}
    return [{"title": title, "value": value, "interval": intervals.get(key)} for key, title, value in cards]


def _curves(files: RunFiles) -> list[str]:
    plots = {
        "loss.png": plot_losses(files.history),
        "metrics.png": plot_metrics(files.history),
        "learning_rate.png": plot_schedule(files.history),
    }
    return [_keep(files, name, figure) for name, figure in plots.items() if figure is not None]


def _detection_plots(files: RunFiles) -> list[str]:
    """Curves of precision, and what each kind of error costs."""
    evaluation = files.evaluation
    plots = {"precision_recall.png": plot_precision_recall(evaluation.get("curves") or [])}
    if errors := evaluation.get("errors"):
        plots["errors.png"] = plot_detection_errors(error_numbers(errors))
    return [_keep(files, name, figure) for name, figure in plots.items() if figure is not None]


def _keep(files: RunFiles, name: str, figure: Figure) -> str:
    """Save the figure in the run's plots and return it for the page."""
    svg = to_svg(figure)
    save_png(figure, files.folder / "plots" / name)
    return svg


def _confusion(files: RunFiles, classes: list[str]) -> dict[str, Any] | None:
    counts = files.evaluation.get("confusion")
    if not counts or len(counts) != len(classes):
        return None
    plot = _keep(files, "confusion.png", plot_confusion(counts, classes))
    rows: list[dict[str, Any]] = []
    for name, row in zip(classes, counts, strict=True):
        total = sum(row)
        cells = [{"share": value / total if total else 0.0, "count": value} for value in row]
        rows.append({"name": name, "total": total, "cells": cells})
    frequent = (files.evaluation.get("confusions") or [])[:_CONFUSIONS] if len(classes) > 2 else []
    return {"classes": classes, "rows": rows, "frequent": frequent, "plot": plot if len(classes) > _WIDEST_TABLE else None}


def _per_class(evaluation: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    rows = [row for row in evaluation.get("per_class") or [] if "iou" in row]
    total = sum(_finite(row.get("truth_pixels")) for row in rows)
    colors = palette(len(classes))
    table: list[dict[str, Any]] = []
    for row in rows:
        index = classes.index(str(row["name"])) if str(row["name"]) in classes else 0
        share = _finite(row.get("truth_pixels")) / total if total else 0.0
        numbers = {key: row.get(key) for key in ("iou", "dice", "precision", "recall", "truth_pixels", "predicted_pixels")}
        table.append({"name": row["name"], "color": "#{:02x}{:02x}{:02x}".format(*colors[index]), "share": share, **numbers})
    return table


def _objects(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers of objects; of average precision's ten thresholds only the usual ones."""
    numbers = _numbers(evaluation.get("objects"))
    return {key: value for key, value in numbers.items() if not re.fullmatch(r"ap\d\d", key) or key in ("ap50", "ap75", "ap90")}


def _other_numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """Numbers of the summary that no other part of the page shows."""
    shown = {"mean_iou", "mean_dice", "pixel_accuracy"}
    numbers = _numbers(evaluation.get("summary"))
    return {
        key: value
        for key, value in numbers.items()
        if key not in shown and not key.startswith(("iou/", "dice/", "objects/")) and not is_of_detections(key)
    }


def _pictures(files: RunFiles) -> list[dict[str, Any]]:
    """The worst and the best pictures with their previews; all of them, worst first, where there are few."""
    images = [image for image in files.evaluation.get("images") or [] if image.get("preview")]
    ranking, title, numbers = _ranking(images)
    ranked = sorted(images, key=lambda image: _finite(image.get(ranking), -1.0))
    groups = [(f"Worst, by {title}", ranked[:_PICTURES]), (f"Best, by {title}", ranked[: -_PICTURES - 1 : -1])]
    if len(ranked) <= 2 * _PICTURES:
        groups = [("", ranked)]
    shown = [(group, image, _embed(files.folder / str(image["preview"]))) for group, members in groups for image in members]
    lost = sorted({image["preview"] for _, image, content in shown if content is None})
    if lost:
        files.missing.append(f"Pictures that cannot be read: {', '.join(lost)}.")
    return [
        {
            "group": group,
            "name": image["name"],
            "numbers": [f"{what} {_number(image.get(key))}" for key, what in numbers.items()],
            "source": source,
        }
        for group, image, source in shown
        if source is not None
    ]


def _ranking(images: list[dict[str, Any]]) -> tuple[str, str, dict[str, str]]:
    """The number that pictures are ranked by, its name, and the numbers to show; as `ImageScore.quality` has it."""
    if any("mean_iou" in image for image in images) or not images:
        return "mean_iou", "mean IoU", {"mean_iou": "mean IoU", "mean_dice": "mean Dice"}
    counts = {"objects/truth_objects": "objects", "objects/predicted_objects": "found"}
    ranking = "objects/panoptic_quality_50"
    return ranking, "panoptic quality", {ranking: "panoptic quality", "objects/f1_50": "F1"} | counts


def _embed(path: Path, widest: int = 1600) -> str | None:
    """A picture as a data URL: as it is where small, else at most `widest` pixels wide and as JPEG; None if unreadable."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            kind = str(picture.format).lower()
            if len(content) > 200_000 or picture.width > widest:
                picture.thumbnail((widest, 8 * widest))
                buffer = io.BytesIO()
                picture.convert("RGB").save(buffer, "JPEG", quality=88)
                content, kind = buffer.getvalue(), "jpeg"
    except (OSError, Image.DecompressionBombError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _speed(files: RunFiles) -> list[tuple[str, str]]:
    speed, memory, seconds = (files.column(name) for name in ("images_per_second", "memory_mb", "seconds"))
    rows: list[tuple[str, str]] = []
    if speed:
        rows.append(("Training speed, median of the epochs", f"{sorted(speed)[len(speed) // 2]:.3g} pictures a second"))
    if memory:
        rows.append(("Highest memory", f"{max(memory):,.0f} MB"))
    if seconds:
        rows.append(("Time of the training", _duration(seconds[-1])))
    if skipped := sum(files.column("skipped_steps")):
        rows.append(("Steps skipped, loss not finite", f"{skipped:.0f}"))
    if prediction := files.evaluation.get("pictures_per_second"):
        rows.append(("Speed of the prediction, files read", f"{prediction:.3g} pictures a second"))
    return rows


def _commands(files: RunFiles) -> list[tuple[str, str]]:
    folder = str(files.folder)
    data = str((files.config.get("data") or {}).get("path", "DATA"))
    weights = shlex.quote(f"{folder}/weights/best.safetensors")
    epochs = files.config.get("epochs")
    longer = 2 * epochs if isinstance(epochs, int) else "MORE"
    return [
        ("Predict pictures", f"delineate predict {weights} PICTURES --out predictions"),
        ("Measure on a data set", f"delineate eval {weights} {shlex.quote(data)}"),
        ("Go on for longer", f"delineate train --resume {shlex.quote(folder)} --epochs {longer}"),
        (
            "Train the same again",
            f"delineate train {shlex.quote(folder + '/config.yaml')} --out {shlex.quote(folder + '-again')}",
        ),
    ]


def _numbers(content: Any) -> dict[str, float]:
    """The numbers of a nested dict under flat names."""
    return {
        key: value for key, value in _flat(content).items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in (content if isinstance(content, dict) else {}).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = ", ".join(str(v) for v in value) if isinstance(value, list) else value
    return flat


def _title(key: str) -> str:
    """A flat name as words: objects/mean_matched_iou -> objects · mean matched IoU."""
    known = {"iou": "IoU", "f1": "F1", "ap": "AP", "map": "mean AP", "cpu": "CPU", "gpu": "GPU", "gb": "GB", "mb": "MB"}
    if threshold := re.fullmatch(r"(.*?)_?(\d\d)", key):  # of objects: ap75, f1_50
        return f"{_title(threshold[1])} at IoU 0.{threshold[2]}"
    words = key.replace("/", " · ").replace("_", " ").split(" ")
    return " ".join(known.get(word, word) for word in words)


def _finite(value: Any, otherwise: float = 0.0) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


def _number(value: Any, digits: int = 3) -> str:
    """Three decimals; a dash where there is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _count(value: Any) -> str:
    """A whole number in short: 1 234, 56.8 k, 1.2 M."""
    number = _finite(value, math.nan)
    if math.isnan(number):
        return "–"
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= factor:
            return f"{number / (1e3 if unit == 'k' else factor):.3g} {unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
