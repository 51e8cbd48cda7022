"""Names of pictures: short, unique, and usable as file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def shortest_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a unique name for each path (its parts, most general first): the last part, or more of them where that repeats.

    >>> shortest_names([("train", "00"), ("test", "00")])
    ['train/00', 'test/00']
    >>> shortest_names([("train", "a"), ("train", "b")])
    ['a', 'b']
    """
    names: list[str] = []
    for depth in range(1, max((len(path) for path in paths), default=0) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return _numbered(names)


def flat_names(names: Sequence[str]) -> list[str]:
    """Return unique names without folders or marks that file systems dislike.

    >>> flat_names(["train/00", "stack#07"])
    ['train_00', 'stack_07']
    """
    return _numbered(["".join("_" if c in '/\\#:*?"<>|' else c for c in name) for name in names])


def _numbered(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return numbered
