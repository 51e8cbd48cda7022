"""What a reader objects to in its files: the first error raises, or, for `data check`, everything is collected."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from delineate.errors import DataError

Severity = Literal["error", "warning"]

_END = 1 << 16  # bytes


@dataclass(slots=True)
class Problems:
    """Collects findings while a format is read; without `collect`, an error raises `DataError` and a warning is passed over."""

    collect: bool = False
    found: list[tuple[Severity, str, Path, str]] = field(default_factory=list)  # severity, kind, file, message

    def error(self, kind: str, path: Path, message: str) -> None:
        """Report that something cannot be used; the reader goes on without it."""
        if not self.collect:
            raise DataError(f"{path}: {message}")
        self.found.append(("error", kind, path, message))

    def warn(self, kind: str, path: Path, message: str) -> None:
        """Report something odd that can be used."""
        self.found.append(("warning", kind, path, message))


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `DataError` with the line where it breaks."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not JSON ({error.msg} in line {error.lineno}, column {error.colno}); export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); export it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def json_ends(path: Path) -> bytes:
    """Return the beginning and end of a JSON file, where its keys tell what it is without parsing it; b"" for other files."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return b""
    with path.open("rb") as file:
        head = file.read(_END)
        file.seek(max(0, path.stat().st_size - _END))
        return head + file.read()
