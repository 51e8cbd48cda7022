"""What a run is made of, from its config: data with both splits, the network with its starting weights, repeatability."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from delineate.config import DataConfig, TrainConfig
from delineate.data import Dataset, open_dataset, split_dataset
from delineate.errors import ConfigError, suggest
from delineate.models.zoo import create_model
from delineate.train.start import start_from
from delineate.weights.conventions import Conventions


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
    weights = config.model.weights
    return model, start_from(model, weights, conventions) if fresh and weights is not None else []


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
