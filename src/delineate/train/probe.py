"""Short measurements that a plan rests on: the seconds and the memory of a training step, the seconds of a training patch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from delineate.config import TrainConfig
from delineate.data.batch import Batch
from delineate.data.dataset import Dataset, Record
from delineate.data.loader import CACHE_SHARE, TrainingSet
from delineate.data.samplers import Draw
from delineate.devices import DTYPES, Precision
from delineate.losses import build_loss
from delineate.train.build import build_model, conventions_of
from delineate.train.memory import StepMemory, step_memory

TIMED_STEPS, TIMED_SECONDS = 3, 4.0  # steps are timed until there are so many, or so much time has gone
SMALL = 256  # memory is measured on patches of at most this side, because activations grow with the number of pixels


class StepProbe:
    """Training steps of the network and loss of `config`, on random pictures of its patch size."""

    def __init__(self, config: TrainConfig, num_classes: int, device: torch.device, precision: Precision) -> None:
        self.config, self.num_classes, self.device = config, num_classes, device
        self.conventions = conventions_of(config)
        self.model = build_model(config, num_classes, fresh=False)[0].to(device).train()
        self.loss = build_loss(config.loss, self.conventions, num_classes)
        self.autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def seconds(self, count: int) -> float:
        """Seconds of a training step with `count` pictures: the median of up to three, after one that warms up.

        The first step prepares kernels and memory, and may take ten times as long as any other, so it never counts.
        """
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        batch = self._batch(count, self.config.augment.patch)

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
        height, width = self.config.augment.patch
        small = (height, width) if self.model.margin else (min(height, SMALL), min(width, SMALL))
        return step_memory(
            lambda: self._forward(self._batch(1, small)),
            self.model,
            scale=height * width / (small[0] * small[1]),
            optimizer_slots=1 if self.config.optimizer.name == "sgd" else 2,
            averaged=self.config.optimizer.ema is not None,
        )

    def _forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        with self.autocast:
            output = self.model(batch.images)
        return self.loss(apply_to_collection(output, Tensor, Tensor.float), batch)[0]

    def _batch(self, count: int, patch: tuple[int, int]) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, self.conventions.channels, *patch, generator=generator)
        multilabel = self.conventions.outputs == "multilabel"
        shape = (count, self.num_classes, *patch) if multilabel else (count, *patch)
        labels = torch.randint(0, 2 if multilabel else self.num_classes, shape, generator=generator)
        ones = torch.ones(count, *patch)
        images = images.to(memory_format=torch.channels_last)
        return Batch(images, labels.float() if multilabel else labels, weight=ones, distance=ones).to(self.device)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


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


def patch_time(dataset: Dataset, records: Sequence[Record], config: TrainConfig) -> PatchTime:
    """Measure on up to three pictures, evenly spread, what the loader does for a patch."""
    chosen = records[:: max(1, len(records) // 3)][:3]
    pictures = TrainingSet(dataset, chosen, config, conventions_of(config), train=True)
    prepare, draw, size = [], [], 0
    for index in range(len(chosen)):
        prepare.append(_timed(lambda index=index: pictures.prepared(index)))
        draw += [_timed(lambda index=index, ticket=ticket: pictures[Draw(index, ticket)]) for ticket in range(2)]
        sample = pictures.prepared(index).sample
        size += sum(x.nbytes for x in (sample.image, sample.semantic, sample.instance_map) if x is not None)
    room = CACHE_SHARE * psutil.virtual_memory().available / max(1, config.workers)  # every worker keeps its own copies
    fits = size / len(chosen) * len(records) < room
    return PatchTime(statistics.median(prepare), statistics.median(draw), cached=config.data.cache and fits)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
