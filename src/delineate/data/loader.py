"""From records to batches: decoding, random patches and targets, in worker processes whose number changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors

from delineate.config import TrainConfig
from delineate.data.batch import Batch, collate
from delineate.data.dataset import Dataset, Record
from delineate.data.intensity import image_statistics, normalize, to_color, type_factor
from delineate.data.load import load_sample
from delineate.data.sample import Sample
from delineate.data.samplers import (
    Draw,
    EpochSampler,
    Order,
    Places,
    aspect_grouped_order,
    class_centroids,
    class_uniform_order,
    even_order,
    repeat_factor_order,
)
from delineate.data.targets import border_band, border_weight_map, distance_map, find_objects, make_targets
from delineate.data.transforms import build_transforms
from delineate.errors import ConfigError, DataError, DelineateError
from delineate.guard import ADVICE, UNGUARDED
from delineate.weights.conventions import Conventions

CACHE_SHARE = 0.25  # of the free memory, over all workers of a loader


@dataclass(slots=True)
class Prepared:
    """A decoded picture with what is computed once from the whole of it."""

    sample: Sample
    statistics: tuple[Tensor, Tensor] | None  # for normalization="image"


class PictureSet(TorchDataset[Any], ABC):
    """Pictures of a data set, decoded and changed as draws say; `TrainingSet` and `InstanceSet` make batches of them.

    Draws are made by a sampler; the random changes of a draw depend on `config.seed` and its ticket only. Whole-picture work
    (decoding, weight map, distance map, statistics) is kept in memory with `config.data.cache`, as far as a share of the free
    memory goes; each worker keeps its own.
    """

    def __init__(
        self, dataset: Dataset, records: Sequence[Record], config: TrainConfig, conventions: Conventions, *, train: bool
    ) -> None:
        self.dataset, self.records, self.config, self.conventions = dataset, tuple(records), config, conventions
        self.train = train
        self._cache: dict[int, Prepared] = {}
        readers = max(config.workers, 1) * config.devices  # processes on this machine that keep their own copies
        self._room = CACHE_SHARE * psutil.virtual_memory().available / readers if config.data.cache else 0.0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Any:
        record = self.records[draw.picture]
        try:
            return self._drawn(draw)
        except DelineateError:
            raise
        except Exception as error:
            error.add_note(f"while {record.image} was made ready for training")
            raise

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        """Return one batch, or in place of an error that the user can act on what the main process needs to raise it."""
        try:
            with _one_thread():
                return self._joined([self[draw] for draw in draws])
        except DelineateError as error:
            return Failure(error, traceback.format_exc())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # workers read what they need

    def prepared(self, index: int) -> Prepared:
        """Return the decoded picture `index` with its whole-picture targets, from memory where it is kept."""
        if index in self._cache:
            return self._cache[index]
        prepared = self._prepare(self._load(self.records[index]))
        size = _memory(prepared.sample)
        if size <= self._room:
            self._room -= size
            self._cache[index] = prepared
        return prepared

    @abstractmethod
    def presence(self) -> np.ndarray:
        """Whether picture n shows class k, (N, K) bool; reads label files once where the classes are only there."""

    @abstractmethod
    def _load(self, record: Record) -> Sample:
        """Decode a picture and its truth."""

    @abstractmethod
    def _drawn(self, draw: Draw) -> Any:
        """One picture as the batch needs it."""

    @abstractmethod
    def _joined(self, pictures: list[Any]) -> Any:
        """The batch of these pictures."""

    def _prepare(self, sample: Sample) -> Prepared:
        """Compute what is needed once of the whole picture."""
        color, image = self.conventions.color, sample.image.as_subclass(Tensor)
        if color == "gray":
            image = to_color(image, "gray")
        if (factor := type_factor(str(image.dtype).removeprefix("torch."), self.conventions)) != 1:
            image = image.float() * factor
        sample = replace(sample, image=tv_tensors.Image(image))
        whole = self.conventions.normalization == "image"
        return Prepared(sample, image_statistics(sample.image.as_subclass(Tensor), color) if whole else None)


class TrainingSet(PictureSet):
    """Pictures as batches of one for a semantic network; with `train`, random patches of them."""

    def __init__(
        self, dataset: Dataset, records: Sequence[Record], config: TrainConfig, conventions: Conventions, *, train: bool
    ) -> None:
        super().__init__(dataset, records, config, conventions, train=train)
        self.num_classes = len(dataset.semantic_classes)
        self.weighted = any(term.name == "border_cross_entropy" for term in config.loss)
        transform = build_transforms(config.augment, value_range=conventions.value_range, keypoints=dataset.keypoints)
        self.transform = transform if train else None

    def presence(self) -> np.ndarray:
        """Whether picture n shows class k, (N, K) bool; reads all label files once."""
        presence = np.zeros((len(self), self.num_classes), np.bool_)
        for index, record in enumerate(self.records):
            presence[index] = np.bincount(self._labels(record).ravel(), minlength=256)[: self.num_classes] > 0
        return presence

    def places(self) -> Places:
        """Where the classes are in parts of the size of a patch; reads all label files once."""
        found = [class_centroids(self._labels(record), self.config.augment.patch, self.num_classes) for record in self.records]
        pictures = np.repeat(np.arange(len(found)), [len(classes) for classes, _ in found])
        return Places(pictures, np.concatenate([c for c, _ in found]), np.concatenate([points for _, points in found]))

    def _labels(self, record: Record) -> np.ndarray:
        sample = load_sample(self.dataset, record, ("semantic",))
        return make_targets(sample, Conventions(), self.num_classes)["labels"].numpy()

    def _load(self, record: Record) -> Sample:
        return load_sample(self.dataset, record, self._want())

    def _drawn(self, draw: Draw) -> Batch:
        prepared = self.prepared(draw.picture)
        sample = prepared.sample
        if self.transform is not None:
            sample = self.transform(sample, np.random.default_rng((self.config.seed, draw.ticket)), draw.point)
        return self._batch(sample, prepared.statistics)

    def _joined(self, pictures: list[Batch]) -> Batch:
        return collate(pictures)

    def _want(self) -> tuple[str, ...]:
        if self.dataset.kind == "semantic":
            return ("semantic",)
        if self.conventions.outputs == "multilabel":
            return ("semantic", "masks")
        objects = self.weighted or self.conventions.outputs in ("border", "distance")
        return ("semantic", "instance_map") if objects else ("semantic",)

    def _prepare(self, sample: Sample) -> Prepared:
        targets, outputs = self.config.targets, self.conventions.outputs
        if self.weighted or outputs in ("border", "distance"):
            objects = find_objects(sample, targets.object_class)
            sample = replace(sample, instance_map=tv_tensors.Mask(objects))
            if self.weighted:
                # The network is to separate what lies on both sides of the band, so the band is background here.
                apart = objects * ~border_band(objects, targets.border_width) if outputs == "border" else objects
                classes = sample.semantic if targets.balance else None
                sample.weight = tv_tensors.Mask(border_weight_map(apart, targets.w0, targets.sigma, classes=classes))
            if outputs == "distance":
                sample.distance = tv_tensors.Mask(distance_map(objects))
        return super()._prepare(sample)

    def _batch(self, sample: Sample, statistics: tuple[Tensor, Tensor] | None) -> Batch:
        settings = self.config.targets
        targets = make_targets(
            sample, self.conventions, self.num_classes, object_class=settings.object_class, border_width=settings.border_width
        )
        images = normalize(sample.image, self.conventions, statistics)
        return Batch(images[None], names=(sample.name,), **{name: target[None] for name, target in targets.items()})


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a worker on its way to the main process."""

    error: DelineateError
    trace: str


class PatchLoader(DataLoader[Any]):
    """A DataLoader whose workers' errors are raised as they were: one line, the worker's traceback as the cause."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            for item in super().__iter__():
                if isinstance(item, Failure):
                    raise item.error from RuntimeError(f"in a loader process:\n{item.trace}")
                yield item
        except (RuntimeError, EOFError, OSError) as error:  # what torch raises for a lost worker depends on what it was doing
            if codes := self._exit_codes():
                raise _end_of_workers(codes) from error
            raise

    def _exit_codes(self) -> set[int]:
        """How workers ended that have ended without being asked to."""
        workers = getattr(self._iterator, "_workers", ())
        for worker in workers:
            worker.join(timeout=1)  # the fork server tells of an end a little later
        return {worker.exitcode for worker in workers if worker.exitcode}


def _end_of_workers(codes: set[int]) -> DelineateError:
    if UNGUARDED in codes:
        return ConfigError(ADVICE)
    ended = ", ".join(f"signal {-code}" if code < 0 else f"exit code {code}" for code in sorted(codes))
    return DelineateError(
        f"a loader process ended ({ended}), often because memory ran out; set workers lower, or data.cache: false"
    )


def make_loader(
    dataset: Dataset,
    records: Sequence[Record],
    config: TrainConfig,
    conventions: Conventions,
    *,
    train: bool,
    rank: int = 0,
    world: int = 1,
) -> PatchLoader:
    """Return a loader of `Batch` over `records`, for process `rank` of `world`; see `load_pictures`."""
    _check_records(dataset, records, train=train)
    return load_pictures(TrainingSet(dataset, records, config, conventions, train=train), rank=rank, world=world)


def load_pictures(
    pictures: PictureSet, *, rank: int = 0, world: int = 1, shapes: NDArray[np.float64] | None = None
) -> PatchLoader:
    """Return a loader of batches of `pictures`, for process `rank` of `world`.

    In training: batches of `config.batch` draws, `config.steps_per_epoch` of them in an epoch, or as many as show each picture
    once (the last ones filled up from the next round, so that all have one size); call `loader.sampler.set_epoch(epoch)` before
    each epoch. Else: whole pictures, one a batch, in order, each once; processes take every `world`-th. The batches depend on
    the seed and the epoch only, not on the number of workers. `shapes` (N,), the aspect ratio of each picture: batches are made
    of pictures of like shape. Raises DataError, while iterating, for a picture that cannot be used, with the message of its
    first cause and the name of its file.
    """
    config, train = pictures.config, pictures.train
    if train:
        steps = config.steps_per_epoch or -(-len(pictures) // (config.batch * world))
        order, places = choose_order(pictures)
        if shapes is not None:
            order = aspect_grouped_order(order, shapes, config.batch * world, config.seed)
        sampler = EpochSampler(order, steps=steps, batch=config.batch, rank=rank, world=world, places=places)
    else:
        sampler = [Draw(index, index) for index in range(rank, len(pictures), world)]
    return PatchLoader(
        pictures,
        batch_size=config.batch if train else 1,
        sampler=sampler,
        num_workers=config.workers,
        collate_fn=_as_is,
        pin_memory=config.device != "cpu" and torch.cuda.is_available(),
        multiprocessing_context=_context() if config.workers else None,
        worker_init_fn=_start_worker,
        persistent_workers=config.workers > 0,
    )


def choose_order(pictures: PictureSet) -> tuple[Order, Places | None]:
    """Return the order in which the config wants the pictures to be drawn, or places in them."""
    data, seed = pictures.config.data, pictures.config.seed
    if data.sampling == "class_uniform" and isinstance(pictures, TrainingSet):
        places = pictures.places()
        if not len(places.classes):
            raise DataError(
                f"{pictures.dataset.root}: no picture shows a class that 'class_uniform' could draw; check the masks"
            )
        return class_uniform_order(places.classes, seed), places
    if data.sampling == "repeat_factor":
        return repeat_factor_order(pictures.presence(), data.repeat_threshold, seed), None
    return even_order(len(pictures), seed), None


def _check_records(dataset: Dataset, records: Sequence[Record], *, train: bool) -> None:
    if not records:
        raise DataError(f"{dataset.root}: no pictures for {'training' if train else 'validation'}; check its splits")


def _memory(sample: Sample) -> int:
    values = (getattr(sample, field.name) for field in fields(sample))
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _context() -> Any:
    """Processes that do not inherit the threads of this one: a fork of a process with running torch threads can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["delineate.data.fork_server", __name__])  # torch is imported once, not once a worker
    return context


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the main process is gone: torch's own guard watches the fork server, which stays."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_is(item: Any) -> Any:
    return item


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, as workers do, so that sums have the same order in the main process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
