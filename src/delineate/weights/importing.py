"""Making the weights of other libraries ours: which library a file is of, and what follows from that."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from delineate.errors import ConfigError, DataError, suggest
from delineate.models.zoo import create_model
from delineate.weights import (
    detectron,
    detectron2,
    hmsa,
    hrnet,
    mmdetection,
    resnest,
    smp,
    timm,
    torchvision,
    torchvision_semantic,
)
from delineate.weights.files import check_tensors, is_own
from delineate.weights.importer import Imported, Importer, State
from delineate.weights.pickles import read_state
from delineate.weights.published import Published, locate

IMPORTERS: tuple[Importer, ...] = (
    detectron.IMPORTER,
    detectron2.IMPORTER,
    hmsa.IMPORTER,
    hrnet.IMPORTER,
    mmdetection.IMPORTER,
    resnest.IMPORTER,
    smp.IMPORTER,
    timm.IMPORTER,
    torchvision.IMPORTER,
    torchvision_semantic.IMPORTER,
)


def import_checkpoint(
    path: str | Path,
    source: str | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    sha256: str | None = None,
    **choices: Any,
) -> nn.Module:
    """Read a weight file of another library and return the network of the zoo that computes the same, in evaluation mode.

    Args:
        path: a file of torch.save, a pickle of arrays, or safetensors; its URL; or the name of a published file (`PUBLISHED`).
        source: the library, as `sources` names them; None: told by the names of the tensors.
        arch: the architecture, in the library's own words; None: told by names and shapes.
        num_classes: number of classes (without a background that the library counts); None: told by the file.
        classes: their names; None: those of the data set that the library's published files were trained on.
        sha256: of the file behind a URL, or "any" to take whatever comes.
        choices: what the tensors cannot tell and this source asks for, such as `align_corners=False`.

    The network has `.classes`, `.conventions` and `.extra`, and `save_model` writes it. Nothing is guessed: where a file leaves
    open what it means, `ConfigError` says which argument decides. Raises `DataError` for a file that is missing, is damaged or
    would run code, or whose tensors are missing, left over or of another shape, with their names.
    """
    located, published = locate(path, sha256)
    return import_located(located, published, source, arch, num_classes, classes=classes, **choices)


def import_located(
    path: Path,
    published: Published | None,
    source: str | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    **choices: Any,
) -> nn.Module:
    """`import_checkpoint` of a file on disk; what is known of a `published` one need not be said."""
    if published is not None:
        source, arch = source or published.source, arch or published.arch
        choices = {**published.choices, **choices}
    if is_own(path):
        raise ConfigError(f"{path}: is a file of delineate already; load it with load_model")
    state = read_state(path)
    importer, arch = choose_importer(path, state, source, arch)
    known = choice_names(importer)
    for name in choices:
        if name not in known:
            hint = suggest(name, known) or f"; it takes {', '.join(known) or 'none'}"
            raise ConfigError(f"source '{importer.source}' has no choice '{name}'{hint}")
    try:
        imported = importer.convert(state, arch, num_classes, **choices)
    except KeyError as error:  # of the state
        raise DataError(f"{path}: tensor {error} is missing, which every {arch} of {importer.source} has") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if num_classes not in (None, imported.num_classes):
        raise ConfigError(f"num_classes is {num_classes}, but {path} has {imported.num_classes} classes; leave it away")
    if classes is not None:
        if len(classes) != len(imported.classes):
            raise ConfigError(f"classes names {len(classes)} classes, {path} has {len(imported.classes)}")
        imported = replace(imported, classes=tuple(classes))
    origin = {"source": importer.source, "arch": arch, "file": path.name, "choices": choices}
    return build(path, imported, extra={"imported": origin})


@dataclass(frozen=True, slots=True)
class Guess:
    """An importer that takes a file, and what the file may be."""

    importer: Importer
    archs: tuple[str, ...]


def recognise(state: State) -> list[Guess]:
    """Return the importers that take a file with these tensors, each with the architectures that it may be."""
    guesses = [Guess(importer, tuple(importer.recognise(state))) for importer in IMPORTERS]
    return [guess for guess in guesses if guess.archs]


def choose_importer(path: str | Path, state: State, source: str | None, arch: str | None) -> tuple[Importer, str]:
    """Return the importer and the architecture of a file; raises `ConfigError` where more than one fit, or none."""
    known = sources()
    if source is not None and source not in known:
        raise ConfigError(f"source '{source}' is unknown{suggest(source, known) or '; known are ' + ', '.join(known)}")
    guesses = [guess for guess in recognise(state) if source in (None, guess.importer.source)]
    if not guesses:
        first = ", ".join(list(state)[:3])
        kind = f"no network of {source}" if source else f"of no library that is known ({', '.join(known)})"
        raise DataError(f"{path}: its tensors ({first} ...) are {kind}")
    fitting = [(guess.importer, name) for guess in guesses for name in guess.archs if arch in (None, name)]
    if not fitting:
        names = ", ".join(name for guess in guesses for name in guess.archs)
        raise ConfigError(f"{path}: is no '{arch}'; its tensors are those of {names}")
    if len(fitting) > 1:
        could = "; ".join(f"source={importer.source} arch={name}" for importer, name in fitting)
        raise ConfigError(f"{path}: may be one of several networks; say which: {could}")
    return fitting[0]


def sources() -> list[str]:
    """Return the names of the libraries whose files can be read."""
    return sorted({importer.source for importer in IMPORTERS})


def choice_names(importer: Importer) -> list[str]:
    """Return the names of what the user of an importer may decide."""
    parameters = inspect.signature(importer.convert).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def build(path: str | Path, imported: Imported, extra: Mapping[str, Any]) -> nn.Module:
    """Return the network with the tensors that an importer found."""
    model: Any = create_model(imported.model, imported.num_classes, **imported.options)
    own: dict[str, Tensor] = model.state_dict()
    kept = {name: tensor for name, tensor in own.items() if name.startswith(imported.fresh)} if imported.fresh else {}
    tensors = {**kept, **imported.state}
    check_tensors(path, own, tensors, f"the network '{imported.model}' that it was taken for")
    model.load_state_dict(tensors)
    model.classes, model.conventions, model.extra = imported.classes, imported.conventions, dict(extra)
    return model.eval()
