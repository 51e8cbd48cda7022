"""Folders of images and label pictures: class ids, colours, or object ids (instance maps)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from delineate.data.dataset import Dataset, LabelMap, Record
from delineate.data.decode import page_count, stored_palette
from delineate.data.formats.classes import ClassTable, find_class_file, read_class_file, write_class_file
from delineate.data.formats.pairing import Pair, pair_pictures
from delineate.data.formats.problems import Problems
from delineate.data.formats.survey import Page, infer_classes, looks_like_instances, survey_values
from delineate.data.formats.writing import class_palette, copy_image, named_records, write_labels
from delineate.data.load import load_sample
from delineate.data.objects import outlined_only
from delineate.errors import DataError

VARIANTS = ("semantic", "instance")


@dataclass(frozen=True, slots=True)
class _Picture:
    """One page of an image with the pages of its label pictures."""

    name: str
    split: str | None
    image: Page
    mask: Page | None
    instances: Page | None


def read_png(root: Path, variant: str | None, problems: Problems) -> Dataset:
    """Read a folder of images and label pictures; `variant` "semantic" or "instance" overrules what the values suggest.

    A class file (`classes.txt` ...) names the classes; without one they are concluded from the values, with a note.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with images/ and masks/")
    pairs, orphans, notes = pair_pictures(root)
    pairs = _apply_split_lists(root, pairs, problems)
    _refuse_nothing(root, pairs, orphans)
    pictures = [picture for pair in pairs for picture in _pages(pair)]
    for orphan in orphans:
        problems.warn("unpaired file", orphan, "is a label picture without an image of the same stem")
    notes += [f"{len(orphans)} label pictures without an image, such as {_inside(root, orphans[0])}"] if orphans else []
    class_file = find_class_file(root)
    table = read_class_file(class_file) if class_file else None
    dataset = Dataset(root, "png", "semantic", (), {}, notes=tuple(notes))
    if _is_instance(pictures, variant, table is not None):
        return _instance_dataset(dataset, pictures, table, variant)
    return _semantic_dataset(dataset, pictures, table)


def _is_instance(pictures: list[_Picture], variant: str | None, has_class_file: bool) -> bool:
    if variant is not None:
        return variant == "instance"
    if any(p.instances for p in pictures):
        return True
    return not has_class_file and looks_like_instances([p.mask for p in pictures if p.mask])


def _semantic_dataset(dataset: Dataset, pictures: list[_Picture], table: ClassTable | None) -> Dataset:
    masks = [p.mask for p in pictures if p.mask]
    if not masks:
        raise DataError(f"{dataset.root}: has instances/ but no masks/; leave --format away, or give --format png:instance")
    notes = list(dataset.notes)
    where = f"label pictures in {_inside(dataset.root, masks[0][0].parent)}"
    if table is None:
        table, concluded = infer_classes(survey_values(masks), where, lossy=_is_jpeg(masks[0][0]))
        notes += concluded
    palette = table.palette or _stored_palette(masks[0][0], table)
    records = [_record(p, _label_map(p.mask, table)) for p in pictures]
    splits, more = _splits(pictures, records)
    return replace(dataset, classes=table.names, splits=splits, palette=palette, notes=(*notes, *more))


def _instance_dataset(dataset: Dataset, pictures: list[_Picture], table: ClassTable | None, variant: str | None) -> Dataset:
    """Objects lie in instances/, then masks/ tells their classes; or in masks/ alone, then there is one class."""
    notes = list(dataset.notes)
    own_folder = any(p.instances for p in pictures)
    classes = table.names if table else ("object",)
    classified = own_folder and any(p.mask for p in pictures)
    if classified:
        table = (
            table or infer_classes(survey_values([p.mask for p in pictures if p.mask]), "the class pictures", lossy=False)[0]
        )
        classes = table.names[1:]  # the first is the background
    if variant is None and not own_folder:
        first = next(p.mask[0].parent for p in pictures if p.mask)
        where = f"label pictures in {_inside(dataset.root, first)}"
        notes.append(f"{where} hold an object each id (instance maps); if the ids are classes: --format png:semantic")
    records = []
    for picture in pictures:
        page = picture.instances if own_folder else picture.mask
        class_map = _label_map(picture.mask, table) if classified and table else None
        records.append(_record(picture, LabelMap(page[0], "instance", page[1], classes=class_map) if page else None))
    splits, more = _splits(pictures, records)
    return replace(dataset, kind="instance", classes=classes, splits=splits, notes=(*notes, *more))


def _label_map(page: Page | None, table: ClassTable) -> LabelMap | None:
    return LabelMap(page[0], "semantic", page[1], table.values) if page else None


def _record(picture: _Picture, label_map: LabelMap | None) -> Record:
    return Record(picture.name, picture.image[0], picture.image[1], label_map=label_map)


def _splits(pictures: list[_Picture], records: list[Record]) -> tuple[dict[str, tuple[Record, ...]], list[str]]:
    """Sort the records into splits; within a split that has labels, pictures without one go to "unlabelled"."""
    names = {p.split for p in pictures}
    splits: dict[str, list[Record]] = {name: [] for name in ("train", "val", "test", "all") if name in names}
    if None in names:
        splits["all"] = []
    for picture, record in zip(pictures, records, strict=True):
        splits[picture.split or "all"].append(record)
    notes, unlabelled = [], []
    for name, members in splits.items():
        without = [r for r in members if r.label_map is None]
        if without and len(without) < len(members):
            unlabelled += without
            splits[name] = [r for r in members if r.label_map is not None]
            share = f"{len(without)} of {len(members)} pictures in '{name}'"
            notes.append(f"{share} have no label picture and are left out, such as {without[0].name}")
    if unlabelled:
        splits["unlabelled"] = unlabelled
    return {name: tuple(members) for name, members in splits.items()}, notes


def _pages(pair: Pair) -> Iterable[_Picture]:
    """Give each page of a multi-page TIFF its own picture."""
    pages = _page_count(pair.image)
    for label in (pair.mask, pair.instances):
        if label is not None and pages > 1 and _page_count(label) != pages:
            counts = f"has {_page_count(label)} pages, its image {pair.image} has {pages}"
            raise DataError(f"{label}: {counts}; give one label page for each page")
    digits = len(str(pages - 1))
    for frame in range(pages):
        name = pair.name if pages == 1 else f"{pair.name}#{frame:0{digits}d}"
        mask = (pair.mask, frame) if pair.mask else None
        instances = (pair.instances, frame) if pair.instances else None
        yield _Picture(name, pair.split, (pair.image, frame), mask, instances)


def _page_count(path: Path) -> int:
    """Count pages; a damaged TIFF has one, so that `data check` can report it instead of failing."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    try:
        return page_count(path)
    except DataError:
        return 1


def _apply_split_lists(root: Path, pairs: list[Pair], problems: Problems) -> list[Pair]:
    """Follow train.txt, val.txt and test.txt: lines of an image's path, name or stem, and maybe its label picture's path."""
    lists = {split: root / f"{split}.txt" for split in ("train", "val", "test") if (root / f"{split}.txt").is_file()}
    if not lists:
        return pairs
    known: dict[str, Pair] = {}
    for pair in pairs:
        for key in (pair.name, pair.image.stem, pair.image.name, _inside(root, pair.image)):
            known.setdefault(key, pair)
    chosen = []
    for split, path in lists.items():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not (words := line.split()):
                continue
            image = words[0].removeprefix("./").lstrip("/")
            if (pair := known.get(image) or known.get(Path(image).name) or known.get(Path(image).stem)) is None:
                problems.error("missing file", path, f"line {number} names {words[0]}, which is not an image in {root}")
                continue
            pair.split = split
            if len(words) > 1:
                pair.mask = root / words[1].removeprefix("./").lstrip("/")
            chosen.append(pair)
    return chosen


def _refuse_nothing(root: Path, pairs: list[Pair], orphans: list[Path]) -> None:
    if any(p.mask or p.instances for p in pairs):
        return
    if orphans and pairs:
        example = f"{_inside(root, orphans[0])} and {_inside(root, pairs[0].image)} for example"
        raise DataError(f"{root}: no label picture fits an image, {example}; give both the same stem")
    if text := next(root.glob("**/labels/**/*.txt"), None):
        fix = "which needs a data YAML with 'train' and 'names'; write one"
        raise DataError(f"{root}: {_inside(root, text)} looks like YOLO, {fix}")
    if pairs:
        expected = "expected masks/ (or labels/) with the same stems beside images/"
        raise DataError(f"{root}: {len(pairs)} images but no label pictures; {expected}")
    others = "or a COCO, YOLO, VOC, Cityscapes or labelme layout"
    raise DataError(f"{root}: no data set found; expected images/ and masks/ with the same stems, {others}")


def _stored_palette(path: Path, table: ClassTable) -> tuple[tuple[int, int, int], ...] | None:
    """Return the colours of the classes in a palette picture whose indices are the class ids."""
    try:
        palette = stored_palette(path) if table.values is None else None
    except DataError:
        return None
    return palette[: len(table.names)] if palette and len(palette) >= len(table.names) else None


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


def _inside(root: Path, path: Path) -> str:
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return root.name if inside == "." else inside


def write_png(dataset: Dataset, out: Path, variant: str | None) -> None:
    """Write `images/` and `masks/` (class ids, palette PNG) in `SPLIT/`, and `classes.txt`.

    For objects `instances/` holds 16-bit ids, and `masks/` is there only if there are several classes. As png:semantic
    objects are written as their classes.
    """
    with_objects = dataset.kind != "semantic" and variant != "semantic"
    with_classes = not with_objects or len(dataset.classes) > 1
    palette = class_palette(dataset)
    for split, record, stem in named_records(dataset):
        folder = out if split == "all" else out / split
        copy_image(record, folder / "images", stem)
        if record.label_map is None and record.instances is None:
            continue
        record = outlined_only(record)
        if with_objects:
            ids = load_sample(dataset, record, ("instance_map",)).instance_map
            assert ids is not None
            write_labels(folder / "instances" / f"{stem}.png", ids.numpy())
        if with_classes:
            classes = load_sample(dataset, record, ("semantic",)).semantic
            assert classes is not None
            write_labels(folder / "masks" / f"{stem}.png", classes.numpy(), palette)
    write_class_file(out / "classes.txt", dataset.semantic_classes if with_classes else dataset.classes)
