"""What an importer is: a description of how the weights of another library become ours.

To add a source, write a module beside this one with an `IMPORTER` and list it in `importing.IMPORTERS`::

    def recognise(state: State) -> Sequence[str]:
        return ["toy_a"] if "toy.weight" in state else []

    def convert(state: State, arch: str, num_classes: int | None, *, align_corners: bool | None = None) -> Imported:
        if align_corners is None:
            raise ambiguous("align_corners", "the tensors do not say how maps were enlarged", "true", "false")
        renamed = rename(state, [(r"toy\\.(weight|bias)", r"head.\\1")])
        return Imported("toy", len(renamed["head.bias"]), renamed, classes, conventions, {"align_corners": align_corners})

    IMPORTER = Importer("toy library", recognise, convert)

Whatever is missing, left over or of another shape after that is found by `import_checkpoint`, which knows the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from delineate.errors import ConfigError, DataError
from delineate.weights.conventions import Conventions

State = Mapping[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a foreign file is in our terms: a network of the zoo, its tensors, and what goes in and comes out."""

    model: str  # name in the zoo
    num_classes: int  # output channels, as `create_model` takes them
    state: dict[str, Tensor]  # under the names of our network
    classes: tuple[str, ...]
    conventions: Conventions
    options: Mapping[str, Any] = field(default_factory=dict)  # of the zoo's function
    fresh: tuple[str, ...] = ()  # beginnings of names that the file cannot hold (it is a bare encoder); they are not loaded


@dataclass(frozen=True, slots=True)
class Importer:
    """How the files of one library are read. Several importers may have the same `source`.

    `recognise(state)` returns the architectures that a file with these names and shapes may be, in the library's own words;
    none, if it is not of this kind. More than one means that only the user can tell.
    `convert(state, arch, num_classes, **choices)` makes one of them ours. Its keyword-only arguments are what tensors alone
    cannot tell and the user may say; their default is None, and `ambiguous` is raised where one is needed. `num_classes` is
    what the user gave, or None: most files know it themselves.
    """

    source: str
    recognise: Callable[[State], Sequence[str]]
    convert: Callable[..., Imported]


def rename(state: State, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return the tensors under new names: the first rule (pattern, replacement) that matches a whole name is applied to it.

    Replacement None drops the tensor. A name without a rule is kept, so that it is told as left over.

    >>> import torch
    >>> x = torch.zeros(1)
    >>> rules = [(r"res(\\d)\\.w", lambda m: f"layer{int(m[1]) - 1}.weight"), (r"step", None)]
    >>> list(rename({"res2.w": x, "step": x, "odd": x}, rules))
    ['layer1.weight', 'odd']
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in compiled:
            match = pattern.fullmatch(name)
            if match:
                new = match.expand(replacement) if isinstance(replacement, str) else replacement and replacement(match)
                break
        if new is None:
            continue
        if new in renamed:
            raise DataError(f"two tensors mean '{new}', one of them is '{name}'; keep one of them")
        renamed[new] = tensor
    return renamed


def ambiguous(choice: str, reason: str, *values: str) -> ConfigError:
    """The error that asks the user for what the file cannot tell."""
    wanted = " or ".join(f"{choice}={value}" for value in values)
    return ConfigError(f"{choice} is not known: {reason}; give {wanted} (on the command line after --choice)")
