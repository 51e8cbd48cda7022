"""Checking a data set before training: everything that would break or spoil it, all of it in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import Array, missing, read_pixels, stored_orientation
from delineate.data.formats.problems import Problems
from delineate.data.geometry import crosses_itself, polygon_area
from delineate.data.load import (
    check_stated_size,
    has_extent,
    load_instance_map,
    load_object_classes,
    load_panoptic,
    load_semantic,
)
from delineate.data.open import open_dataset
from delineate.data.raster import rle_area, segmentation_rle
from delineate.data.sample import IGNORE
from delineate.data.similarity import difference_hash, near_pairs
from delineate.errors import DataError

Severity = Literal["error", "warning"]

RARE = 0.001  # a class with a smaller share of the pixels is reported
IMBALANCE = 100  # as is a class with so many times fewer objects than another
_THREADS = 4  # the decoders leave Python's lock


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity  # error: training would fail or learn something false; warning: worth a look
    kind: str  # such as "damaged file", the same for all findings of its sort
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings about a data set, and what was counted on the way."""

    path: str
    findings: tuple[Finding, ...]
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of findings that are warnings."""
        return len(self.findings) - self.errors

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        findings = [asdict(finding) for finding in self.findings]
        return {"path": self.path, "errors": self.errors, "warnings": self.warnings, "findings": findings, **self.statistics}

    def print(self, examples: int = 3) -> None:
        """Print a table: each kind of finding with its number and the first `examples`."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console()
        pictures = ", ".join(f"{name} {count}" for name, count in self.statistics.get("pictures", {}).items())
        about = f"{self.statistics.get('format', 'not readable')} {self.statistics.get('kind', '')}".strip()
        console.print(f"[bold]{escape(self.path)}[/bold]: {about}; {pictures or 'no pictures'}")
        for note in self.statistics.get("notes", ()):
            console.print(f"  note: {note}", markup=False)
        if self.findings:
            table = Table("", "finding", "count", "for example")
            for (severity, kind), members in self._grouped().items():
                shown = "\n".join(escape(f"{Path(f.path).name}: {f.message}") for f in members[:examples])
                more = f"\n... and {len(members) - examples} more" if len(members) > examples else ""
                colour = "red" if severity == "error" else "yellow"
                table.add_row(f"[{colour}]{severity}[/{colour}]", kind, str(len(members)), shown + more)
            console.print(table)
        console.print(f"{self.errors} errors, {self.warnings} warnings")

    def _grouped(self) -> dict[tuple[str, str], list[Finding]]:
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda f: (f.severity != "error", f.kind)):
            groups.setdefault((finding.severity, finding.kind), []).append(finding)
        return groups


def check_dataset(path: str | Path, format: str | None = None) -> CheckReport:
    """Read a data set with all its pictures and report everything that is wrong with it; never stops at the first error.

    Errors: unreadable annotations, missing or damaged files, sizes that differ, values and categories that are not in the
    class list, damaged run-length codes, objects wholly outside the image, the same picture in two splits. Warnings: pictures
    without any object or with background alone, degenerate or self-crossing polygons, outlines, boxes and keypoints that
    reach outside, near-duplicates across splits (256-bit difference hash, at most 12 bits apart), EXIF orientations, ids given
    twice, rare or missing classes. Raises `DataError` only where `path` does not exist.
    """
    if not Path(path).exists():
        raise missing(path)
    problems = Problems(collect=True)
    try:
        dataset = open_dataset(path, format, problems)
    except DataError as error:
        findings = [*_found(problems), _finding("error", "unreadable data set", Path(path), error)]
        return CheckReport(str(path), tuple(findings))
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = list(pool.map(lambda item: _check_record(dataset, *item), _members(dataset)))
    findings = _found(problems)
    findings += [finding for result in checked for finding in result.findings]
    findings += _check_duplicates(dataset, checked)
    totals = _class_totals(dataset, checked)
    findings += _check_classes(dataset, totals)
    statistics = {
        "format": dataset.format,
        "kind": dataset.kind,
        "pictures": {name: len(records) for name, records in dataset.splits.items()},
        "classes": [{"name": name, **totals[i]} for i, name in enumerate(dataset.classes)],
        "notes": list(dataset.notes),
    }
    return CheckReport(str(path), tuple(findings), statistics)


@dataclass(slots=True)
class _Checked:
    """What one picture gave."""

    findings: list[Finding] = field(default_factory=list)
    hash: Array | None = None
    content: int | None = None  # of the decoded pixels
    pixels: Array | None = None  # (256,) pixels of each class id
    objects: Counter[int] = field(default_factory=Counter)  # by label


def _members(dataset: Dataset) -> list[tuple[str, Record]]:
    return [(split, record) for split, records in dataset.splits.items() for record in records]


def _check_record(dataset: Dataset, split: str, record: Record) -> _Checked:
    result = _Checked()
    try:
        image = read_pixels(record.image, record.frame)
    except DataError as error:
        result.findings.append(_finding("error", error.kind, record.image, error))
        return result
    result.hash, result.content = difference_hash(image), hash((image.shape, image.tobytes()))
    size = (image.shape[0], image.shape[1])
    try:
        check_stated_size(record, size)
    except DataError as error:
        result.findings.append(_finding("error", error.kind, record.image, error))
        return result
    if (orientation := stored_orientation(record.image)) != 1:
        text = f"has the EXIF orientation {orientation}, which is applied; other tools may show it, and its labels, turned"
        result.findings.append(Finding("warning", "EXIF orientation", str(record.image), text))
    if record.label_map is not None:
        _check_label_map(dataset, record, size, result)
    elif record.instances is not None:
        _check_instances(record, record.instances, size, result)
    elif split == "unlabelled":
        result.findings.append(Finding("warning", "no label", str(record.image), "has no label picture, while others have"))
    return result


def _check_label_map(dataset: Dataset, record: Record, size: tuple[int, int], result: _Checked) -> None:
    label_map = record.label_map
    assert label_map is not None
    try:
        if label_map.kind == "instance":
            ids = load_instance_map(label_map, record.image, size)
            labels, _ = load_object_classes(label_map, record.image, ids, len(dataset.classes))
            result.objects = Counter(labels.tolist())
            empty = not ids.any()
        elif label_map.kind == "panoptic":
            picture = load_panoptic(label_map, record.image, size)
            single = picture.labels[~picture.crowd]
            result.objects = Counter(single[single < len(dataset.classes)].tolist())
            empty = not picture.segments.any()
        else:
            classes = load_semantic(label_map, record.image, size, len(dataset.classes))
            result.pixels = np.bincount(classes.ravel(), minlength=IGNORE + 1)
            counted = np.flatnonzero(result.pixels[:IGNORE])
            empty = len(counted) == 0 or (len(counted) == 1 and counted[0] == 0)
    except DataError as error:
        result.findings.append(_finding("error", error.kind, label_map.path, error))
        return
    if empty:
        result.findings.append(Finding("warning", "empty mask", str(label_map.path), "holds background alone"))


def _check_instances(record: Record, instances: tuple[Instance, ...], size: tuple[int, int], result: _Checked) -> None:
    result.objects = Counter(instance.label for instance in instances if not instance.crowd)
    if not instances:
        result.findings.append(Finding("warning", "no objects", str(record.image), "has no objects"))
    for number, instance in enumerate(instances):
        name = f"object {instance.id if instance.id is not None else number}"
        for severity, kind, message in _object_problems(instance, size):
            result.findings.append(Finding(severity, kind, str(record.image), f"{name} {message}"))


def _object_problems(instance: Instance, size: tuple[int, int]) -> Iterator[tuple[Severity, str, str]]:
    if instance.box is None and instance.segmentation is None and not any(v for _, _, v in instance.keypoints or ()):
        yield "error", "object without place", "has neither box, outline nor labelled keypoints; remove it"
    if instance.box is not None:
        yield from _box_problems(instance.box, size)
        yield from _box_against_outline(instance)
    if isinstance(instance.segmentation, tuple):
        yield from _polygon_problems(instance.segmentation, size)
    if instance.segmentation is not None and has_extent(instance):
        try:
            if rle_area(segmentation_rle(instance.segmentation, size)) == 0:
                yield "warning", "empty object", "covers no pixel and is left out"
        except DataError as error:
            yield "error", "damaged outline", str(error)
    outside = [
        (x, y) for x, y, visible in instance.keypoints or () if visible and not (0 <= x <= size[1] and 0 <= y <= size[0])
    ]
    if outside:
        yield "warning", "outside the image", f"has {len(outside)} keypoints outside the image, such as {outside[0]}"


def _box_problems(box: tuple[float, ...], size: tuple[int, int]) -> Iterator[tuple[Severity, str, str]]:
    x0, y0, x1, y1 = box
    height, width = size
    shown = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not np.isfinite(box).all():
        yield "error", "damaged outline", f"has the box {shown}"
    elif x1 <= x0 or y1 <= y0:
        yield "warning", "degenerate box", f"has the box {shown} without extent and is left out"
    elif x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        yield "error", "outside the image", f"has the box {shown}, wholly outside the {width} x {height} image"
    elif x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
        yield "warning", "outside the image", f"has the box {shown}, which reaches outside the {width} x {height} image"


def _box_against_outline(instance: Instance) -> Iterator[tuple[Severity, str, str]]:
    """Boxes written as corners, x, y, x, y, where width and height belong, show by not fitting their outlines."""
    polygons = [p for p in instance.segmentation or () if len(p) >= 6] if isinstance(instance.segmentation, tuple) else []
    if instance.box is None or not polygons or any(len(p) % 2 or not np.isfinite(p).all() for p in polygons):
        return
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    box, around = np.array(instance.box), np.concatenate([points.min(0), points.max(0)])
    shared = (np.minimum(box[2:], around[2:]) - np.maximum(box[:2], around[:2])).clip(0).prod()
    union = (box[2:] - box[:2]).clip(0).prod() + (around[2:] - around[:2]).prod() - shared
    if union > 0 and shared < union / 2:
        given, fitting = (f"({', '.join(f'{value:g}' for value in corners)})" for corners in (box, around))
        text = f"has the box {given}, its outline reaches over {fitting}; a bbox is [x, y, width, height], not two corners"
        yield "warning", "box unlike its outline", text


def _polygon_problems(polygons: Iterable[list[float]], size: tuple[int, int]) -> Iterator[tuple[Severity, str, str]]:
    for polygon in polygons:
        if len(polygon) % 2 or not np.isfinite(polygon).all():
            continue  # reported when it is rasterised
        points = np.reshape(polygon, (-1, 2))
        if len(points) < 3:
            yield "warning", "degenerate polygon", f"has a polygon of {len(points)} points, which covers nothing"
        elif polygon_area(polygon) < 1e-6 and not crosses_itself(polygon):
            yield "warning", "degenerate polygon", f"has a polygon of {len(points)} points without area"
        elif crosses_itself(polygon):
            yield "warning", "self-crossing polygon", f"has a polygon of {len(points)} points whose edges cross"
        if len(points) and ((points < -1).any() or (points > (size[1] + 1, size[0] + 1)).any()):
            x, y = points[((points < -1) | (points > (size[1] + 1, size[0] + 1))).any(1)][0]
            yield (
                "warning",
                "outside the image",
                f"has a polygon that reaches outside the {size[1]} x {size[0]} image, to ({x:g}, {y:g})",
            )


def _check_duplicates(dataset: Dataset, checked: list[_Checked]) -> list[Finding]:
    """Compare pictures of different splits, and of data without splits all, for a part of them will be held back."""
    splits = [split for split, _ in _members(dataset)]
    hashes = {i: result.hash for i, result in enumerate(checked) if result.hash is not None}
    known, findings = list(hashes), []
    for a, b in near_pairs(np.array(list(hashes.values())).reshape(-1, 4)):
        i, j = known[a], known[b]
        same = checked[i].content == checked[j].content
        first, second = dataset.records[i], dataset.records[j]
        if splits[i] != splits[j]:
            alike = "the same as" if same else "nearly the same as"
            text = f"is {alike} {first.image}, but one is in '{splits[i]}', the other in '{splits[j]}'"
            kind = "same picture in two splits" if same else "near-duplicate across splits"
            findings.append(Finding("error" if same else "warning", kind, str(second.image), text))
        elif same and "unlabelled" not in splits[i]:
            findings.append(Finding("warning", "duplicate picture", str(second.image), f"is the same as {first.image}"))
    return findings


def _class_totals(dataset: Dataset, checked: list[_Checked]) -> list[dict[str, int]]:
    """Return for each class its pictures, in all and in "train", and its pixels or objects."""
    splits = [split for split, _ in _members(dataset)]
    unit = "pixels" if dataset.kind == "semantic" else "objects"
    totals = [{"pictures": 0, "train_pictures": 0, unit: 0} for _ in dataset.classes]
    for split, result in zip(splits, checked, strict=True):
        for label, total in enumerate(totals):
            count = int(result.pixels[label]) if result.pixels is not None else result.objects[label]
            total[unit] += count
            total["pictures"] += count > 0
            total["train_pictures"] += count > 0 and split in ("train", "all")
    return totals


def _check_classes(dataset: Dataset, totals: list[dict[str, int]]) -> list[Finding]:
    root, findings = str(dataset.root), []
    unit = "pixels" if dataset.kind == "semantic" else "objects"
    counts = [total[unit] for total in totals]
    if not any(counts):
        return []
    absent = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        findings.append(Finding("warning", "class without examples", root, f"never seen: {', '.join(absent[:8])}{more}"))
    if "train" in dataset.splits:
        untrained = [n for n, t in zip(dataset.classes, totals, strict=True) if t["pictures"] and not t["train_pictures"]]
        text = "'{}' is in other splits alone; it cannot be learnt"
        findings += [Finding("warning", "class not in train", root, text.format(name)) for name in untrained]
    limit = RARE * sum(counts) if unit == "pixels" else max(counts) / IMBALANCE
    common = f"'{dataset.classes[counts.index(max(counts))]}' has {max(counts)}"
    rare = [(name, count) for name, count in zip(dataset.classes, counts, strict=True) if 0 < count < limit]
    findings += [Finding("warning", "class imbalance", root, f"'{n}' has {count} {unit}, {common}") for n, count in rare]
    return findings


def _found(problems: Problems) -> list[Finding]:
    return [Finding(severity, kind, str(path), message) for severity, kind, path, message in problems.found]


def _finding(severity: Severity, kind: str, path: Path, error: DataError) -> Finding:
    """Return an error's line without the file name that it begins with."""
    return Finding(severity, kind, str(path), str(error).removeprefix(f"{path}: "))
