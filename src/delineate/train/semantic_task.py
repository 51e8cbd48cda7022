"""The training of a network that gives each pixel a class."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from delineate.config import TrainConfig
from delineate.data import Dataset, make_loader
from delineate.data.batch import Batch
from delineate.data.loader import PatchLoader
from delineate.errors import ConfigError
from delineate.losses import build_loss
from delineate.train.build import build_model, conventions_of
from delineate.train.validate import Validation

ONLY_DETECTORS = ("augment.jitter", "augment.shortest", "augment.copy_paste", "input.resize", "loss_weights")


class SemanticTask:
    """Random patches, the loss terms of the config, and a confusion matrix over whole pictures."""

    monitor = "mean_iou"

    def __init__(self, config: TrainConfig, dataset: Dataset, *, model: nn.Module | None, fresh: bool) -> None:
        _check(config)
        self.config, self.dataset = config, dataset
        self.classes, self.conventions = dataset.semantic_classes, conventions_of(config)
        self.pixel_loss = build_loss(config.loss, self.conventions, len(self.classes))
        self.notes: tuple[str, ...] = ()
        if model is None:
            model, start = build_model(config, len(self.classes), fresh=fresh)
            self.notes = tuple(start)
        self.model = model

    def loader(self, *, rank: int, world: int) -> PatchLoader:
        """Return the loader of random patches of the training pictures."""
        return self._loader("train", rank, world)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its terms."""
        return self.pixel_loss(model(batch.images), batch)

    def measure(self, fabric: Fabric) -> Validation:
        """Return the validation on whole pictures."""
        loader = self._loader("val", fabric.global_rank, fabric.world_size)
        return Validation(fabric, loader, self.pixel_loss, self.conventions, self.classes)

    def _loader(self, split: str, rank: int, world: int) -> PatchLoader:
        records = self.dataset.splits[split]
        return make_loader(self.dataset, records, self.config, self.conventions, train=split == "train", rank=rank, world=world)


def _check(config: TrainConfig) -> None:
    """Refuse settings that would be passed over in silence."""
    if config.model.outputs == "instances":
        raise ConfigError(f"model.outputs 'instances' is what detectors give, '{config.model.name}' is none; leave it away")
    for key in ONLY_DETECTORS:
        group, _, name = key.rpartition(".")
        value = getattr(getattr(config, group) if group else config, name)
        if value:
            raise ConfigError(f"{key} is {value}, but '{config.model.name}' is no detector; leave it away")
