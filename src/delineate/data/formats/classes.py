"""Class files: which pixel value or colour means which class."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.data.sample import IGNORE
from delineate.errors import DataError
from delineate.files import write_text

Key = int | tuple[int, int, int]

CLASS_FILES = (
    *("classes.txt", "classes.csv", "classes.json", "labels.txt", "labels.csv", "labels.json"),
    *("class_names.txt", "class_dict.csv", "labelmap.txt", "label_colors.txt"),
)
IGNORED_NAMES = {"ignore", "ignored", "__ignore__", "void", "unlabelled", "unlabeled", "dontcare", "don't care"}


@dataclass(frozen=True, slots=True)
class ClassTable:
    """What a class file says."""

    names: tuple[str, ...]
    values: dict[Key, int] | None  # pixel value or colour -> index into names, or IGNORE; None: the value is the index
    palette: tuple[tuple[int, int, int], ...] | None = None  # colour of each class


def find_class_file(folder: Path) -> Path | None:
    """Return the class file in `folder`: the first of `CLASS_FILES` that is there."""
    return next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)


def read_class_file(path: Path) -> ClassTable:
    """Read a class file; raises `DataError` naming the file and the line.

    Text and CSV, one class a line: `NAME` (pixel value = line, from 0), `VALUE NAME`, `R G B NAME`, `NAME,VALUE`,
    `NAME,R,G,B` with or without a header, or CVAT's `NAME:R,G,B::`. JSON: a list of names, {value: name}, {name: value} or
    {name: [r, g, b]}. Classes named void, ignore, unlabelled ... become pixels that do not count.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = _json_entries(json.loads(text)) if path.suffix == ".json" else _text_entries(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON ({error.msg} in line {error.lineno})") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a class file ({error}); write one class name a line") from error
    if not entries:
        raise DataError(f"{path}: names no class; write one class name a line")
    return _table(path, entries)


def write_class_file(path: Path, names: tuple[str, ...]) -> None:
    """Write the plain form: one name a line, the line number (from 0) is the pixel value."""
    write_text(path, "".join(f"{name}\n" for name in names))


def _table(path: Path, entries: list[tuple[Key, str]]) -> ClassTable:
    names = tuple(name for _, name in entries if name.lower() not in IGNORED_NAMES)
    if len(names) > IGNORE:
        raise DataError(f"{path}: names {len(names)} classes, at most {IGNORE} fit a label picture")
    for kind, count in (("value", Counter(key for key, _ in entries)), ("class", Counter(name for _, name in entries))):
        if repeated := [item for item, times in count.items() if times > 1]:
            raise DataError(f"{path}: the {kind} {repeated[0]!r} is given twice")
    index = {name: i for i, name in enumerate(names)}
    values = {key: index.get(name, IGNORE) for key, name in entries}
    colours = tuple(key for key, name in entries if isinstance(key, tuple) and name in index)
    plain = all(key == value for key, value in values.items())
    return ClassTable(names, None if plain else values, colours if len(colours) == len(names) else None)


def _text_entries(text: str) -> list[tuple[Key, str]]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for form in (_leading_numbers, _trailing_numbers):
        # A CSV may begin with a header, which is the one line without numbers.
        for rows in (lines, lines[1:]):
            entries = [form(line) for line in rows]
            if rows and all(entry is not None for entry in entries):
                return [entry for entry in entries if entry is not None]
    return list(enumerate(lines))


def _leading_numbers(line: str) -> tuple[Key, str] | None:
    """Read `R G B NAME` or `VALUE NAME`."""
    if match := re.fullmatch(r"(\d+)[,;\s]+(\d+)[,;\s]+(\d+)[,;:\s]+(\S.*)", line):
        return (int(match[1]), int(match[2]), int(match[3])), match[4].strip()
    if match := re.fullmatch(r"(\d+)[,;:=\s]+(\S.*)", line):
        return int(match[1]), match[2].strip()
    return None


def _trailing_numbers(line: str) -> tuple[Key, str] | None:
    """Read `NAME,R,G,B`, `NAME:R,G,B::` or `NAME,VALUE`; spaces alone do not separate, for a name may be "class 1"."""
    if match := re.fullmatch(r"(.+?)\s*[,;:]\s*(\d+)\s*[,;]\s*(\d+)\s*[,;]\s*(\d+)[:;,]*", line):
        return (int(match[2]), int(match[3]), int(match[4])), match[1]
    if match := re.fullmatch(r"(.+?)\s*[,;:=]\s*(\d+)", line):
        return int(match[2]), match[1]
    return None


def _json_entries(content: Any) -> list[tuple[Key, str]]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return list(enumerate(content))
    if not isinstance(content, dict):
        raise ValueError("expected a list of names or an object")
    entries: list[tuple[Key, str]] = []
    for key, value in content.items():
        if isinstance(value, str) and key.isdigit():
            entries.append((int(key), value))
        elif isinstance(value, int):
            entries.append((value, key))
        elif isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) for v in value):
            entries.append(((value[0], value[1], value[2]), key))
        else:
            raise ValueError(f"{key!r}: {value!r} is neither a value nor a colour")
    return entries
