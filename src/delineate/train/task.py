"""What a network is trained for: `SemanticTask` and `InstanceTask` say what the loop itself need not know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from lightning_fabric import Fabric
from torch import Tensor, nn

from delineate.config import TrainConfig
from delineate.data import Dataset
from delineate.data.loader import PatchLoader
from delineate.models.instance import InstanceModel
from delineate.models.zoo import MODELS
from delineate.weights.conventions import Conventions


class Measure(Protocol):
    """Measures a network on the validation pictures of one process."""

    def names(self) -> list[str]:
        """The names of the numbers that a validation gives; "loss" may be among them."""
        ...

    def __call__(self, model: nn.Module, check: Callable[[], None] = ...) -> dict[str, float]:
        """Return the numbers over the pictures of all processes; `check` is called before each picture and may raise."""
        ...


class Task(Protocol):
    """A network with the data that it learns from, its loss and how it is measured."""

    classes: tuple[str, ...]
    conventions: Conventions
    notes: tuple[str, ...]  # what should be said when the run starts

    @property
    def model(self) -> nn.Module:
        """The network, with the weights that training starts from."""
        ...

    @property
    def monitor(self) -> str:
        """The validation number that picks the best weights, unless the config names one."""
        ...

    def loader(self, *, rank: int, world: int) -> PatchLoader:
        """Return the training batches of process `rank` of `world`."""
        ...

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Call `model`, the network as it was set up, on `batch`; return the loss and its terms, detached."""
        ...

    def measure(self, fabric: Fabric) -> Measure:
        """Return what measures the network on the validation pictures."""
        ...


def make_task(config: TrainConfig, dataset: Dataset, *, model: nn.Module | None = None, fresh: bool) -> Task:
    """Return the task of `config` on `dataset`, which has the splits "train" and "val".

    `model`: a network to train instead of the one that `config` names. `fresh`: its first weights matter, because no state
    replaces them. Raises `ConfigError` for settings that do not go with the kind of network.
    """
    from delineate.train.instance_task import InstanceTask
    from delineate.train.semantic_task import SemanticTask

    if isinstance(model, InstanceModel) or (model is None and finds_objects(config.model.name)):
        return InstanceTask(config, dataset, model=model, fresh=fresh)
    return SemanticTask(config, dataset, model=model, fresh=fresh)


def finds_objects(name: str) -> bool:
    """Whether the network `name` of the zoo is a detector: whether its function returns an `InstanceModel`.

    >>> finds_objects("mask_rcnn_resnet50_fpn"), finds_objects("unet"), finds_objects("no such network")
    (True, False, False)
    """
    build = MODELS.get(name)
    return build is not None and issubclass(inspect.signature(build, eval_str=True).return_annotation, InstanceModel)
