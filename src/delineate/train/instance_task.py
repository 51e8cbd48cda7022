"""The training of a network that finds objects."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from delineate.config import TrainConfig
from delineate.data import Dataset
from delineate.data.batch import InstanceBatch
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.data.loader import PatchLoader
from delineate.errors import ConfigError, DataError
from delineate.models.instance import InstanceModel
from delineate.models.zoo import MODELS
from delineate.train.build import build_model
from delineate.train.instance_truth import check_truth, truth_notes
from delineate.train.validate_instances import InstanceValidation, measures_panoptic
from delineate.weights.conventions import Conventions, Resize


class InstanceTask:
    """Randomly resized pictures with their objects, the sum of the detector's losses, and COCO's average precision."""

    def __init__(self, config: TrainConfig, dataset: Dataset, *, model: nn.Module | None, fresh: bool) -> None:
        _check(config, dataset)
        self.config, self.dataset, self.classes = config, dataset, dataset.classes
        start: list[str] = []
        if model is None:
            config = _with_options(config, detector_options(config, dataset))
            model, start = build_model(config, len(self.classes), fresh=fresh, conventions=_conventions(config, dataset))
        self.model = cast("InstanceModel", model)
        self.conventions = _conventions(config, dataset, points=self.model.num_keypoints, stuff=self.model.num_stuff)
        check_truth(self.model, dataset)
        self.notes: tuple[str, ...] = (*truth_notes(dataset, masks=self.model.has_masks), *start)

    @property
    def monitor(self) -> str:
        """The average precision of the most that is found of an object; of panoptic networks their quality."""
        if measures_panoptic(self.model):
            return "pq"
        return "keypoint_AP" if self.model.num_keypoints else "mask_AP" if self.model.has_masks else "box_AP"

    def loader(self, *, rank: int, world: int) -> PatchLoader:
        """Return the loader of the training pictures."""
        conventions = self.model.detector_conventions
        pictures = InstanceSet(
            self.dataset,
            self.dataset.splits["train"],
            self.config,
            self.conventions,
            masks=self.model.has_masks,
            stuff=self.model.num_stuff > 0,
            keypoint_offset=conventions.keypoint_offset,
        )
        return make_instance_loader(pictures, rank=rank, world=world)

    def loss(self, model: Any, batch: InstanceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the detector's losses, and each before its weight."""
        losses: dict[str, Tensor] = model(batch.images, batch.sizes, batch.targets)
        weights = cast("dict[str, float]", self.config.loss_weights)
        total = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        return total, {name: value.detach() for name, value in losses.items()}

    def measure(self, fabric: Fabric) -> InstanceValidation:
        """Return the validation through `Predictor`."""
        return InstanceValidation(fabric, self.dataset, self.dataset.splits["val"], self.model, self.conventions)


def detector_options(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return `config.model.options` with as many keypoints and kinds of stuff as the data have, where it finds some."""
    options = dict(config.model.options)
    usual = {name: parameter.default for name, parameter in inspect.signature(MODELS[config.model.name]).parameters.items()}
    if dataset.keypoints is not None and usual.get("num_keypoints"):
        options.setdefault("num_keypoints", len(dataset.keypoints.names))
    if dataset.stuff and usual.get("num_stuff"):
        options.setdefault("num_stuff", len(dataset.stuff))
    return options


def _with_options(config: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"options": options})})


def _conventions(config: TrainConfig, dataset: Dataset, points: int = 0, stuff: int = 0) -> Conventions:
    """What the detector reads and answers."""
    content = config.input.model_dump()
    resize = content.pop("resize")
    return Conventions(
        **content,
        outputs="instances",
        resize=Resize(**resize) if resize is not None else Resize(),
        keypoints=dataset.keypoints if points else None,
        stuff=dataset.stuff if stuff else (),
    )


def _check(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse what cannot be, and settings that would be passed over in silence."""
    name, augment = config.model.name, config.augment
    if dataset.kind == "semantic":
        raise DataError(f"{dataset.root}: has classes of pixels and no objects, from which '{name}' learns; choose unet")
    if config.model.outputs not in ("classes", "instances"):
        raise ConfigError(f"model.outputs is '{config.model.outputs}', but '{name}' finds objects; leave it away")
    if config.data.sampling == "class_uniform":
        raise ConfigError(f"data.sampling 'class_uniform' is for classes of pixels; '{name}' has repeat_factor")
    for key, off in (("rotate", 0.0), ("elastic", 0.0), ("scale", (1.0, 1.0))):
        if getattr(augment, key) != off:
            raise ConfigError(
                f"augment.{key} is {getattr(augment, key)}, but pictures for '{name}' are resized, cut, flipped and turned by "
                "quarters; leave it away, or set augment.jitter for a random zoom"
            )
