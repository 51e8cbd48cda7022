"""Starting from given weights: which network and input they mean, and which of its layers are new."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from delineate.config import InputConfig, ModelConfig, TrainConfig
from delineate.errors import ConfigError, DataError
from delineate.models.instance import InstanceModel
from delineate.models.zoo import MODELS, create_model
from delineate.weights.conventions import Conventions
from delineate.weights.files import check_tensors, load_model, read_info

COUNTS = {"num_keypoints": "keypoints", "num_stuff": "kinds of stuff"}
"""Options that the data decide, beside the number of classes."""
COUNTER = "num_batches_tracked"  # of batch normalisation; frozen ones have none


def is_weights(model: str) -> bool:
    """Whether what `--model` names is a file of weights, and no network of the zoo; raises `ConfigError` for another file.

    >>> is_weights("mask_rcnn_resnet50_fpn"), is_weights("runs/cells/weights/best.safetensors")
    (False, True)
    """
    if model not in MODELS and Path(model).suffix in (".pth", ".pt", ".pkl"):
        raise ConfigError(f"model '{model}': is a file of another library; make it ours with: delineate weights import {model}")
    return model not in MODELS and Path(model).suffix == ".safetensors"


def adopt(config: TrainConfig) -> TrainConfig:
    """Return `config` with the network and the input of the file `config.model.weights`, where it does not give its own.

    What the data decide, the channels and the numbers of classes, keypoints and kinds of stuff, is not taken. A config that
    says all, as that of a run folder, stays as it is, and its file is not looked at. Raises `DataError` where that cannot be
    read.
    """
    complete = config.input.model_fields_set == set(InputConfig.model_fields) and "name" in config.model.model_fields_set
    if config.model.weights is None or complete:
        return config
    info = read_info(config.model.weights)
    name = info.architecture["name"]
    usual = {key: parameter.default for key, parameter in inspect.signature(MODELS[name]).parameters.items()}
    own = {
        key: value
        for key, value in info.architecture["options"].items()
        if key != "in_channels" and not (key in COUNTS and usual[key])
    }
    model = config.model.model_dump(exclude_unset=True)
    if model.get("name", name) == name:
        outputs = info.conventions.outputs
        model = {"name": name, "outputs": outputs, **model, "options": own | config.model.options}
    stored = {key: value for key, value in asdict(info.conventions).items() if key in InputConfig.model_fields}
    given = config.input.model_dump(exclude_unset=True)
    changes = {"model": ModelConfig.model_validate(model), "input": InputConfig.model_validate(stored | given)}
    return config.model_copy(update=changes)


def start_from(model: nn.Module, path: Path, conventions: Conventions) -> list[str]:
    """Give `model` the weights of the file at `path`, and return what should be said about it.

    Layers whose size follows from the numbers of classes, keypoints and kinds of stuff keep their random weights where these
    differ. Raises `ConfigError` where the file holds another network, with the tensors that do not fit.
    """
    source: Any = load_model(path)
    ours: dict[str, Any] = model.architecture  # pyright: ignore[reportAssignmentType]
    theirs: dict[str, Any] = source.architecture
    if ours["name"] != theirs["name"]:
        raise ConfigError(
            f"{path}: holds the network '{theirs['name']}', the config asks for '{ours['name']}'; leave model.name away"
        )
    own, given = model.state_dict(), source.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in own or not name.endswith(COUNTER)}
    given = {name: own[name] for name in own if name.endswith(COUNTER)} | given
    _check(path, ours, theirs, given)
    new = [name for name in own if own[name].shape != given[name].shape]
    model.load_state_dict({name: own[name] if name in new else tensor for name, tensor in given.items()})
    what = "classes" if isinstance(model, InstanceModel) else "outputs"
    return [_start_note(path, ours, theirs, new, what), *_input_notes(conventions, source.conventions)]


def _check(path: Path, ours: dict[str, Any], theirs: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise `ConfigError` unless `given` are the tensors of our network for their classes, keypoints and stuff."""
    counts = {key: theirs["options"][key] for key in COUNTS if key in theirs["options"]}
    with torch.device("meta"):
        expected = create_model(ours["name"], theirs["num_classes"], **ours["options"] | counts).state_dict()
    options = [key for key in ours["options"] if ours["options"][key] != theirs["options"].get(key) and key not in COUNTS]
    differing = ", ".join(f"{key} {theirs['options'].get(key)!r} instead of {ours['options'][key]!r}" for key in options)
    try:
        check_tensors(path, expected, given, "the network of the config")
    except DataError as error:
        fix = f"it was made with {differing}; " if differing else ""
        raise ConfigError(f"{error}; {fix}leave model.options away, or set only what changes no shape") from error


def _start_note(path: Path, ours: dict[str, Any], theirs: dict[str, Any], new: list[str], what: str) -> str:
    if not new:
        return f"started from {path}"
    pairs = {what: (theirs["num_classes"], ours["num_classes"])}
    pairs |= {named: (theirs["options"].get(key), ours["options"].get(key)) for key, named in COUNTS.items()}
    counts = ", ".join(f"{a} {named} and not {b}" for named, (a, b) in pairs.items() if a != b)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in new))
    return f"started from {path}, but {', '.join(layers)} from random weights: it tells {counts} apart"


def _input_notes(ours: Conventions, theirs: Conventions) -> list[str]:
    """How pictures are read otherwise than the weights are used to."""
    keys = ("color", "value_range", "normalization", "mean", "std")
    differing = [key for key in keys if getattr(ours, key) != getattr(theirs, key)]
    if not differing:
        return []
    told = ", ".join(f"{key} {getattr(theirs, key)!r} and not {getattr(ours, key)!r}" for key in differing)
    return [f"its weights are used to input of {told}; leave input away to keep that"]
