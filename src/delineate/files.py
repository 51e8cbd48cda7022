"""Writing files so that nothing is lost: every output is written beside its place and renamed when whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delineate.errors import DelineateError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Parent folders are made. The temporary file keeps the suffix of `path`, because many writers choose the format by it.
    An `OSError` (disk full, folder not writable) becomes a `DelineateError` that names the file; `path` then keeps its
    former content.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DelineateError(f"{path}: cannot be written ({reason}); choose a folder that is writable and has room") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write `content` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, default=default) + "\n")


def make_folder(path: str | Path) -> Path:
    """Make the folder `path` with its parents, or raise a `DelineateError` that names it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DelineateError(f"{path}: folder cannot be made ({error.strerror}); choose another --out") from error
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
