"""Short measurements that a plan rests on: the seconds and the memory of a training step, the seconds of a training patch."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from delineate.config import TrainConfig
from delineate.data.batch import Batch, InstanceBatch
from delineate.data.loader import CACHE_SHARE, PictureSet
from delineate.data.samplers import Draw
from delineate.devices import DTYPES, Precision
from delineate.losses import build_loss
from delineate.ops.instances import InstanceTargets
from delineate.train.build import build_model, conventions_of
from delineate.train.memory import StepMemory, step_memory

if TYPE_CHECKING:
    from delineate.train.instance_task import InstanceTask

TIMED_STEPS, TIMED_SECONDS = 3, 4.0  # steps are timed until there are so many, or so much time has gone
SMALL = 256  # memory is measured on patches of at most this side, because activations grow with the number of pixels


class Probe(ABC):
    """Training steps on random pictures of one size; `StepProbe` and `InstanceProbe` say which network, loss and batch."""

    model: nn.Module

    def __init__(self, config: TrainConfig, device: torch.device, precision: Precision) -> None:
        self.config, self.device = config, device
        self.autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def seconds(self, count: int) -> float:
        """Seconds of a training step with `count` pictures: the median of up to three, after one that warms up.

        The first step prepares kernels and memory, and may take ten times as long as any other, so it never counts.
        """
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        batch = self._batch(count, self._size())

        def step() -> None:
            optimizer.zero_grad()
            self._forward(batch).backward()
            optimizer.step()
            self._synchronize()

        step()
        times = [_timed(step)]
        while len(times) < TIMED_STEPS and sum(times) < TIMED_SECONDS:
            times.append(_timed(step))
        return statistics.median(times)

    def memory(self) -> StepMemory:
        """Memory of training steps."""
        (height, width), small = self._size(), self._small_size()
        return step_memory(
            lambda: self._forward(self._batch(1, small)),
            self.model,
            scale=height * width / (small[0] * small[1]),
            optimizer_slots=1 if self.config.optimizer.name == "sgd" else 2,
            averaged=self.config.optimizer.ema is not None,
        )

    def _size(self) -> tuple[int, int]:
        """Height and width of what the network sees in training."""
        return self.config.augment.patch

    def _small_size(self) -> tuple[int, int]:
        """The size that memory is measured on."""
        height, width = self._size()
        return min(height, SMALL), min(width, SMALL)

    @abstractmethod
    def _forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""

    @abstractmethod
    def _batch(self, count: int, size: tuple[int, int]) -> Any:
        """Random pictures with a truth."""

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


class StepProbe(Probe):
    """Training steps of the semantic network and loss of `config`, on random pictures of its patch size."""

    def __init__(self, config: TrainConfig, num_classes: int, device: torch.device, precision: Precision) -> None:
        super().__init__(config, device, precision)
        self.num_classes, self.conventions = num_classes, conventions_of(config)
        self.model = build_model(config, num_classes, fresh=False)[0].to(device).train()
        self.loss = build_loss(config.loss, self.conventions, num_classes)

    def _small_size(self) -> tuple[int, int]:
        return self._size() if self.model.margin else super()._small_size()

    def _forward(self, batch: Batch) -> Tensor:
        with self.autocast:
            output = self.model(batch.images)
        return self.loss(apply_to_collection(output, Tensor, Tensor.float), batch)[0]

    def _batch(self, count: int, size: tuple[int, int]) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, self.conventions.channels, *size, generator=generator)
        multilabel = self.conventions.outputs == "multilabel"
        shape = (count, self.num_classes, *size) if multilabel else (count, *size)
        labels = torch.randint(0, 2 if multilabel else self.num_classes, shape, generator=generator)
        ones = torch.ones(count, *size)
        images = images.to(memory_format=torch.channels_last)
        return Batch(images, labels.float() if multilabel else labels, weight=ones, distance=ones).to(self.device)


class InstanceProbe(Probe):
    """Training steps of a detector on random pictures of `size`, each with `objects` objects."""

    def __init__(
        self, task: InstanceTask, size: tuple[int, int], objects: int, device: torch.device, precision: Precision
    ) -> None:
        super().__init__(task.config, device, precision)
        self.task, self.objects, self.size = task, max(1, objects), size
        self.model = task.model.to(device).train()

    def _size(self) -> tuple[int, int]:
        return self.size

    def _forward(self, batch: InstanceBatch) -> Tensor:
        with self.autocast:
            return self.task.loss(self.model, batch)[0]

    def _batch(self, count: int, size: tuple[int, int]) -> InstanceBatch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, self.task.conventions.channels, *size, generator=generator)
        rows, (height, width) = (count, self.objects), size
        corners = torch.rand(*rows, 2, generator=generator) * 0.7
        boxes = torch.cat([corners, corners + 0.3], -1) * torch.tensor([width, height, width, height])
        points = torch.ones(*rows, self.task.model.num_keypoints, 3) * boxes[..., None, :2].mean(-1, keepdim=True)
        points[..., 2] = 2
        stuff = self.task.model.num_stuff
        targets = InstanceTargets(
            boxes,
            labels=torch.randint(0, len(self.task.classes), rows, generator=generator),
            valid=torch.ones(rows, dtype=torch.bool),
            crowd=torch.zeros(rows, dtype=torch.bool),
            masks=torch.ones(*rows, *size, dtype=torch.bool) if self.task.model.has_masks else None,
            keypoints=points if self.task.model.num_keypoints else None,
            semantic=torch.randint(0, stuff + 1, (count, *size), generator=generator) if stuff else None,
        )
        images = images.to(memory_format=torch.channels_last)
        return InstanceBatch(images, torch.tensor([size] * count), targets).to(self.device)


@dataclass(frozen=True, slots=True)
class PatchTime:
    """Seconds of one processor core."""

    prepare: float  # to decode a picture and what is computed once from the whole of it
    draw: float  # to cut and change a patch of a picture in memory
    cached: bool  # whether all pictures fit in the loaders' memory, so that each is prepared once

    @property
    def each(self) -> float:
        """Seconds of a patch in the long run."""
        return self.draw if self.cached else self.draw + self.prepare


def patch_time(pictures: PictureSet) -> PatchTime:
    """Measure on up to three pictures, evenly spread, what the loader does for a patch."""
    chosen = range(0, len(pictures), max(1, len(pictures) // 3))[:3]
    prepare, draw, size = [], [], 0
    for index in chosen:
        prepare.append(_timed(lambda index=index: pictures.prepared(index)))
        draw += [_timed(lambda index=index, ticket=ticket: pictures[Draw(index, ticket)]) for ticket in range(2)]
        sample = pictures.prepared(index).sample
        size += sum(x.nbytes for x in (sample.image, sample.semantic, sample.instance_map) if x is not None)
    room = (
        CACHE_SHARE * psutil.virtual_memory().available / max(1, pictures.config.workers)
    )  # every worker keeps its own copies
    fits = size / len(chosen) * len(pictures) < room
    return PatchTime(statistics.median(prepare), statistics.median(draw), cached=pictures.config.data.cache and fits)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
