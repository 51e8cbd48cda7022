"""What label pictures hold, concluded from their pixels: class ids, colours or object ids."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from skimage.measure import label as label_components

from delineate.data.decode import Array, decode_labels
from delineate.data.formats.classes import ClassTable, Key
from delineate.data.sample import IGNORE
from delineate.errors import DataError

VALUE_SAMPLE = 2000  # label pictures whose values are read
OBJECT_SAMPLE = 40  # label pictures whose pieces are counted
_THREADS = 4  # the decoders leave Python's lock

T = TypeVar("T")
Page = tuple[Path, int]  # a label picture and its page


@dataclass(frozen=True, slots=True)
class Survey:
    """The values of a set of label pictures."""

    values: tuple[int, ...]  # distinct values, sorted; of an RGB picture 0xRRGGBB
    coloured: bool  # at least one picture has three channels that differ
    sampled: int
    extreme: float  # share of pixels within 32 of 0 or of 255: near 1 for black and white stored as JPEG


def survey_values(pages: Sequence[Page]) -> Survey:
    """Read the values of up to `VALUE_SAMPLE` label pictures; damaged ones are passed over unless all are."""
    sample = evenly(pages, VALUE_SAMPLE)
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(_values_or_error, sample))
    read = [r for r in results if not isinstance(r, DataError)]
    if not read:
        raise next(r for r in results if isinstance(r, DataError))
    coloured = any(c for _, c, _ in read)
    found: set[int] = set()
    for values, is_coloured, _ in read:
        found.update((values * 0x010101 if coloured and not is_coloured else values).tolist())
    return Survey(tuple(sorted(found)), coloured, len(read), float(np.mean([e for *_, e in read])))


def looks_like_instances(pages: Sequence[Page]) -> bool:
    """Decide whether label pictures hold object ids rather than class ids.

    They do if at least 9 of 10 ids are one connected piece of a picture, and either a picture holds more than 20 ids, or in 9
    of 10 pictures the ids are 1..N without gaps, where N differs from picture to picture and reaches 3.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        described = [d for d in pool.map(_describe_pieces, evenly(pages, OBJECT_SAMPLE)) if d]
    objects = sum(d[0] for d in described)
    if not objects or sum(d[2] for d in described) < 0.9 * objects:
        return False
    filled = [d for d in described if d[0]]
    gapless = sum(count == largest for count, largest, _ in filled)
    counts = {count for count, *_ in described}
    return max(counts) > 20 or (gapless >= 0.9 * len(filled) and len(counts) > 1 and max(counts) >= 3)


def infer_classes(survey: Survey, where: str, lossy: bool) -> tuple[ClassTable, list[str]]:
    """Name the classes of label pictures that have no class file, with notes on what was concluded; raises `DataError`."""
    values, hint = set(survey.values), "name the classes in a classes.txt"
    if survey.coloured:
        return _colour_table(survey, where, hint)
    if lossy and survey.extreme > 0.98:
        threshold: dict[Key, int] = {value: int(value >= 128) for value in range(256)}
        return ClassTable(("background", "foreground"), threshold), [
            f"{where} are JPEG, split at 128 into background and foreground"
        ]
    if values <= {0, 1}:
        return ClassTable(("background", "foreground"), None), []
    if values <= {0, 255}:
        note = f"{where} hold 0 and 255: read as background and foreground; {hint} to rename them"
        return ClassTable(("background", "foreground"), {0: 0, 255: 1}), [note]
    ids = sorted(values - {IGNORE})
    if ids[-1] < 3 * len(ids) and ids[-1] < IGNORE:
        names = tuple(f"class_{i}" for i in range(ids[-1] + 1))
        void = ", 255 is not counted" if IGNORE in values else ""
        note = f"{where} hold class ids 0..{ids[-1]}{void}; {hint}, or if they are objects: --format png:instance"
        return ClassTable(names, None), [note]
    if len(values) <= 32:
        grey: dict[Key, int] = {value: i for i, value in enumerate(survey.values)}
        return ClassTable(tuple(f"value_{v}" for v in survey.values), grey), [
            f"{where} hold {len(grey)} grey values, a class each; {hint}"
        ]
    raise DataError(
        f"{where} hold {len(values)} different values, too many for classes; objects? --format png:instance; else {hint}"
    )


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of `items`, evenly spread.

    >>> evenly(range(10), 3)
    [1, 5, 8]
    """
    if len(items) <= count:
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def grey_or_codes(labels: Array) -> tuple[Array, bool]:
    """Return `(H, W)` numbers: the values where the three channels agree, else 0xRRGGBB, and whether it is the latter."""
    if labels.ndim == 2:
        return labels, False
    if np.array_equal(labels[..., 0], labels[..., 1]) and np.array_equal(labels[..., 0], labels[..., 2]):
        return labels[..., 0], False
    wide = labels.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], True


def distinct(numbers: Array) -> Array:
    """Return the sorted distinct values; bytes and shorts are counted, which is far quicker than sorting."""
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(numbers.ravel()))
    return np.unique(numbers)


def _values_or_error(page: Page) -> tuple[Array, bool, float] | DataError:
    try:
        numbers, coloured = grey_or_codes(decode_labels(*page))
    except DataError as error:
        return error
    extreme = np.mean((numbers < 32) | (numbers > 223)) if not coloured else 0.0
    return distinct(numbers), coloured, float(extreme)


def _describe_pieces(page: Page) -> tuple[int, int, int] | None:
    """Return the number of ids, the largest id, and how many ids are one connected piece (nine tenths of their pixels)."""
    try:
        numbers, coloured = grey_or_codes(decode_labels(*page))
    except DataError:
        return None
    if coloured:
        return None
    numbers = numbers.astype(np.int64)
    pieces = np.asarray(label_components(numbers, background=0, connectivity=2))
    first, sizes = np.unique(pieces, return_index=True, return_counts=True)[1:]
    owner = numbers.ravel()[first]  # the id that each piece belongs to; the background is 0
    ids = np.unique(owner[owner > 0])
    whole = sum(sizes[owner == i].max() >= 0.9 * sizes[owner == i].sum() for i in ids)
    return len(ids), int(ids.max(initial=0)), int(whole)


def _colour_table(survey: Survey, where: str, hint: str) -> tuple[ClassTable, list[str]]:
    if len(survey.values) > 64:
        fix = "save them as PNG without smoothing, or name the colours in a class_dict.csv (name,r,g,b)"
        raise DataError(f"{where} hold {len(survey.values)} colours, too many for classes; {fix}")
    colours = [_rgb(code) for code in survey.values]
    names = tuple(f"color_{code:06x}" for code in survey.values)
    values: dict[Key, int] = {colour: i for i, colour in enumerate(colours)}
    return ClassTable(names, values, tuple(colours)), [
        f"{where} hold {len(colours)} colours, a class each; {hint} (R G B NAME)"
    ]


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
