"""What a run is made of, from its config: data with both splits, the network with its starting weights, repeatability."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from delineate.config import DataConfig, TrainConfig
from delineate.data import Dataset, open_dataset, split_dataset
from delineate.errors import ConfigError, suggest
from delineate.models.zoo import create_model
from delineate.weights.conventions import Conventions
from delineate.weights.files import load_model


def prepare_dataset(config: DataConfig, dataset: Dataset | None = None) -> Dataset:
    """Return the data set with the splits "train" and "val" that `config` names; `dataset` is taken as it is, if given."""
    dataset = dataset or open_dataset(config.path, config.format)
    named = {"train": config.train_split, "val": config.val_split}
    if all(name in dataset.splits for name in named.values()):
        return replace(dataset, splits=dataset.splits | {key: dataset.splits[name] for key, name in named.items()})
    for key, name in named.items():
        if name != key and name not in dataset.splits:
            known = tuple(dataset.splits)
            raise ConfigError(f"data.{key}_split '{name}': {dataset.root} has {', '.join(known)}{suggest(name, known)}")
    return split_dataset(dataset, config.val_fraction)


def fingerprint(dataset: Dataset) -> str:
    """Return a short text that changes with the classes and with the names of the training and validation pictures."""
    names = [[record.name for record in dataset.splits[split]] for split in ("train", "val")]
    return hashlib.sha256(json.dumps([dataset.semantic_classes, *names]).encode()).hexdigest()[:16]


def conventions_of(config: TrainConfig) -> Conventions:
    """Return what the semantic network of `config` reads and answers."""
    return Conventions(**config.input.model_dump(exclude={"resize"}), outputs=config.model.outputs)


def build_model(
    config: TrainConfig, num_classes: int, *, fresh: bool, conventions: Conventions | None = None
) -> tuple[nn.Module, list[str]]:
    """Return the network of `config` for `num_classes` classes, its random weights those of the seed, and notes on its start.

    `fresh`: with `config.model.weights`, or the pretrained ones of its encoder; they are not read where a state replaces them.
    `conventions`: None for a semantic network, whose config tells them.
    """
    conventions = conventions or conventions_of(config)
    options = {"in_channels": conventions.channels, **config.model.options}
    if options["in_channels"] != conventions.channels:
        raise ConfigError(
            f"model.options.in_channels is {options['in_channels']}, but input.color '{conventions.color}' has "
            f"{conventions.channels}; leave in_channels away"
        )
    if not fresh:
        options.pop("pretrained", None)
    torch.manual_seed(config.seed)
    model = create_model(config.model.name, conventions.output_channels(num_classes), **options)
    return model, start_from(model, config) if fresh and config.model.weights is not None else []


def start_from(model: nn.Module, config: TrainConfig) -> list[str]:
    """Give `model` the weights of the file `config.model.weights`, and return what should be said about it.

    Layers with an output channel for each class keep their random weights where the number of classes differs. Raises
    `ConfigError` where the file holds another network.
    """
    path = config.model.weights
    assert path is not None
    source: Any = load_model(path)
    ours: Any = model.architecture
    theirs = source.architecture
    if ours["name"] != theirs["name"] or ours["options"] != theirs["options"]:
        names = [k for k in ours["options"] | theirs["options"] if ours["options"].get(k) != theirs["options"].get(k)]
        differing = ", ".join(f"{k} {theirs['options'].get(k)!r} instead of {ours['options'].get(k)!r}" for k in names)
        raise ConfigError(
            f"{path}: holds the network '{theirs['name']}'{f' with {differing}' if differing else ''}, "
            f"the config asks for '{ours['name']}'; make model.name and model.options equal"
        )
    own, given = model.state_dict(), source.state_dict()
    heads = [name for name in own if own[name].shape != given[name].shape]
    model.load_state_dict({name: own[name] if name in heads else tensor for name, tensor in given.items()})
    if not heads:
        return [f"started from {path}"]
    return [
        f"started from {path}, but {', '.join(heads)} from random weights: it tells {theirs['num_classes']} outputs apart, "
        f"this run {ours['num_classes']}"
    ]


@contextmanager
def reproducible(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Draw random numbers of our own while active; with `config.deterministic`, use deterministic algorithms only."""
    former = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as CUDA's documentation asks
    torch.use_deterministic_algorithms(config.deterministic or former[0])
    torch.backends.cudnn.benchmark = not config.deterministic  # patches have one size, so searching the fastest kernel pays
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.use_deterministic_algorithms(former[0])
        torch.backends.cudnn.benchmark = former[1]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimiser step of one process, so that dropout depends on these three numbers only."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
