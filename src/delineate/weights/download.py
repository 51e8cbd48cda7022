"""Downloading weight files: resumed where they stopped, checked, and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

import delineate
from delineate.errors import ConfigError, DataError, DelineateError
from delineate.files import make_folder

ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server says so


def is_url(text: str) -> bool:
    """Whether `text` is an address that can be downloaded."""
    return text.startswith(("https://", "http://"))


def download(
    url: str,
    checksum: str | None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """Return the path of the file behind `url`, which is downloaded unless it is in the cache already.

    `checksum` is "sha256:" or "md5:" and the hexadecimal digest or its beginning; None takes any file. `folder` is the cache,
    `$XDG_CACHE_HOME/delineate/weights` if None. What was loaded before the connection broke is not loaded again. A file that
    does not have the checksum is deleted. Raises `DataError` for a wrong checksum and `DelineateError` where the server fails.
    """
    path = _place(url, folder)
    if path.exists():
        if matches(path, checksum):
            return path
        path.unlink()  # damaged on disk, or another checksum was asked for
    part = path.with_name(path.name + ".part")
    reason = ""
    for _ in range(ATTEMPTS):
        resumed = part.exists()
        try:
            _transfer(url, part, progress, timeout)
        except _BrokenOffError as error:
            reason = str(error)
            continue
        if matches(part, checksum):
            part.replace(path)
            return path
        wrong = digest(part, "sha256")
        part.unlink()
        if not resumed:  # otherwise the two parts may be of different files: once more from the start
            raise DataError(
                f"{url}: its sha256 is {wrong}, expected {checksum}; it was deleted: compare the address and the checksum"
            )
        reason = f"its sha256 was {wrong}"
    raise DelineateError(f"{url}: could not be downloaded ({reason}); try again, what has come is kept")


def matches(path: Path, checksum: str | None) -> bool:
    """Whether a file has the checksum "sha256:..." or "md5:...", which may be cut short; None fits every file."""
    if checksum is None:
        return True
    algorithm, _, start = checksum.partition(":")
    return digest(path, algorithm).startswith(start)


def digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_sha256(text: str) -> str:
    """Return the checksum "sha256:..." of a digest that the user gave; raises `ConfigError` if it is none."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ConfigError(f"sha256 is '{text}', expected 64 hexadecimal digits, or 'any' to take whatever comes")
    return f"sha256:{text.lower()}"


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "delineate" / "weights"


class _BrokenOffError(Exception):
    """The transfer ended early; what came is in the file, and asking again may help."""


def _place(url: str, folder: Path | None) -> Path:
    """Where the file is kept: addresses that end alike have folders of their own."""
    name = Path(unquote(urlsplit(url).path)).name or "weights"
    return make_folder((folder or cache_folder()) / hashlib.sha256(url.encode()).hexdigest()[:12]) / name


def _transfer(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Append what is missing of a file to `part`, or write it anew where the server cannot go on in the middle."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"delineate/{delineate.__version__}", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            _receive(answer, part, start, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is not shorter than the file, so it is not a part of it
            part.unlink()
            raise _BrokenOffError("the part that was kept does not fit") from error
        if error.code < 500:
            raise DelineateError(f"{url}: the server answered {error.code} {error.reason}; check the address") from error
        raise _BrokenOffError(f"the server answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise _BrokenOffError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    except OSError as error:
        raise DelineateError(f"{part}: cannot be written ({error.strerror}); make room or set XDG_CACHE_HOME") from error


def _receive(answer: HTTPResponse, part: Path, start: int, progress: Progress | None) -> None:
    goes_on = re.match(rf"bytes {start}-", answer.headers.get("Content-Range", "")) is not None and answer.status == 206
    done = start if goes_on else 0
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else None
    with part.open("ab" if goes_on else "wb") as file:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if total is not None and done < total:
        raise _BrokenOffError(f"{done} of {total} bytes came")
