"""Checking a data set before training: everything that would break or spoil it, all of it in one go."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from delineate.data.dataset import Dataset, Instance, Record
from delineate.data.decode import Array, missing, page_count, read_pixels, stored_orientation
from delineate.data.formats.problems import Problems, Severity
from delineate.data.load import (
    check_stated_size,
    load_instance_map,
    load_object_classes,
    load_panoptic,
    load_semantic,
)
from delineate.data.object_faults import object_faults, object_name, repeated
from delineate.data.open import open_dataset
from delineate.data.sample import IGNORE
from delineate.data.similarity import difference_hash, near_pairs
from delineate.errors import DataError

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
    findings += _check_classes(dataset, totals, read=not any(f.severity == "error" for f in findings))
    findings += _check_number_types(dataset, checked)
    without_outline, notes = _check_outlines(dataset)
    findings += without_outline
    notes += _note_unlabelled(dataset)
    statistics = {
        "format": dataset.format,
        "kind": dataset.kind,
        "pictures": {name: len(records) for name, records in dataset.splits.items()},
        "classes": [{"name": name, **totals[i]} for i, name in enumerate(dataset.classes)],
        "notes": [*dataset.notes, *notes],
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
    dtype: str | None = None  # of the decoded pixels


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
    result.dtype = str(image.dtype)
    size = (image.shape[0], image.shape[1])
    try:
        check_stated_size(record, size)
    except DataError as error:
        result.findings.append(_finding("error", error.kind, record.image, error))
        return result
    if (orientation := stored_orientation(record.image)) != 1:
        text = f"has the EXIF orientation {orientation}, which is applied; other tools may show it, and its labels, turned"
        result.findings.append(Finding("warning", "EXIF orientation", str(record.image), text))
    if dataset.format != "png" and (pages := page_count(record.image)) > 1:  # png reads each page as a picture
        text = f"has {pages} pages, of which the first is read; save the others as pictures of their own"
        result.findings.append(Finding("warning", "several pages", str(record.image), text))
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
        for severity, kind, message in object_faults(instance, size):
            result.findings.append(Finding(severity, kind, str(record.image), f"{object_name(instance, number)} {message}"))
    for later, first in repeated(instances):
        text = f"{object_name(instances[later], later)} is the same as {object_name(instances[first], first)}; remove one"
        result.findings.append(Finding("warning", "duplicate object", str(record.image), text))


def _check_outlines(dataset: Dataset) -> tuple[list[Finding], list[str]]:
    """Objects without outline where others have one; a note where none has."""
    single = [(r, n, i) for r in dataset.records for n, i in enumerate(r.instances or ()) if not i.crowd]
    without = [(record, number, i) for record, number, i in single if i.segmentation is None]
    if single and len(without) == len(single):
        return [], ["no object has an outline: for networks without masks (model.options.masks=false)"]
    text = "has no outline, though others have; networks with masks need one of each object"
    return [Finding("warning", "no outline", str(r.image), f"{object_name(i, number)} {text}") for r, number, i in without], []


def _note_unlabelled(dataset: Dataset) -> list[str]:
    """A note where keypoints are defined and not one is labelled."""
    labelled = any(v for r in dataset.records for i in r.instances or () for _, _, v in i.keypoints or ())
    return [] if dataset.keypoints is None or labelled else ["no keypoint is labelled: for networks without keypoints"]


def _check_number_types(dataset: Dataset, checked: list[_Checked]) -> list[Finding]:
    """Pictures of another number type than most."""
    types = Counter(result.dtype for result in checked if result.dtype is not None)
    if len(types) < 2:
        return []
    usual = types.most_common(1)[0][0]
    text = "holds {}, most others {}; each is scaled by what its type can hold, so save all alike"
    return [
        Finding("warning", "number types differ", str(record.image), text.format(result.dtype, usual))
        for record, result in zip(dataset.records, checked, strict=True)
        if result.dtype not in (None, usual)
    ]


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


def _check_classes(dataset: Dataset, totals: list[dict[str, int]], *, read: bool) -> list[Finding]:
    """Classes that are rare, or only where they are of no use; `read`: every picture could be."""
    root, findings = str(dataset.root), []
    unit = "pixels" if dataset.kind == "semantic" else "objects"
    counts = [total[unit] for total in totals]
    if not any(counts):
        told = any(r.instances is not None or r.label_map is not None for r in dataset.records) and dataset.kind != "semantic"
        text = "no picture shows an object, crowd regions aside; there is nothing to learn"
        return [Finding("error", "nothing to learn", root, text)] if told and read else []
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
