"""`Run`: what a training is made of in one process, and the books it keeps; the loop itself is in `loop.py`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from delineate.config import TrainConfig
from delineate.data import Dataset
from delineate.data.batch import Batch, InstanceBatch
from delineate.data.samplers import EpochSampler
from delineate.devices import compiled
from delineate.errors import ConfigError, DataError, DelineateError, suggest
from delineate.train.build import fingerprint, prepare_dataset
from delineate.train.checkpoint import Progress, load_state, save_state
from delineate.train.ema import AverageModel
from delineate.train.logging import Display, TensorBoard, peak_memory
from delineate.train.optim import build_optimizer
from delineate.train.processes import Stop, over_processes
from delineate.train.runfolder import RunFolder
from delineate.train.step import StepResult
from delineate.train.task import make_task
from delineate.weights.files import save_model

SAVE_SECONDS = 300.0  # at most so much of an epoch is lost when a run is killed
BAD_STEPS = 3  # in a row without a finite loss and gradient end a run


@dataclass(frozen=True, slots=True)
class Job:
    """What `train` was asked for, as it goes to every process."""

    config: TrainConfig
    folder: RunFolder
    resume: bool
    quiet: bool
    plan: dict[str, Any] | None
    model: nn.Module | None
    dataset: Dataset | None


class Run:
    """One run in one of its processes."""

    def __init__(self, fabric: Fabric, stop: Stop, job: Job) -> None:
        config = job.config
        self.fabric, self.stop, self.job, self.config, self.folder = fabric, stop, job, config, job.folder
        dataset = prepare_dataset(config.data, job.dataset)
        resumed = job.resume and job.folder.state.exists()
        own = copy.deepcopy(job.model) if fabric.world_size > 1 else job.model  # processes would share its memory
        self.task = make_task(config, dataset, model=own, fresh=not resumed)
        self.monitor = config.monitor or self.task.monitor
        self.model: nn.Module = self.task.model
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        module = compiled(self.model, fabric.device) if config.compile else self.model
        self.module, self.optimizer = fabric.setup(module, build_optimizer(self.model, config.optimizer))
        self.average = AverageModel(self.model, config.optimizer.ema) if config.optimizer.ema else None
        self.loader = self.task.loader(rank=fabric.global_rank, world=fabric.world_size)
        self.sampler = cast("EpochSampler", self.loader.sampler)
        self.validation = self.task.measure(fabric)
        self.steps = -(-len(self.loader) // config.optimizer.accumulate)  # optimiser steps of an epoch
        self.progress = load_state(self.folder.state, self.parts()) if resumed else Progress(data=fingerprint(dataset))
        self._check(dataset)
        self.notes, self.saved, self.warm = (*dataset.notes, *self.task.notes), time.monotonic(), False

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, if there is one."""
        return self.average.model if self.average else self.model

    def parts(self) -> dict[str, Any]:
        """All that has a state beside the progress."""
        scaler = {"scaler": self.fabric.strategy.precision}
        average = {"average": self.average} if self.average else {}
        return {"model": self.model, "optimizer": self.optimizer.optimizer, **average, **scaler}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Have the run folder, the display and TensorBoard ready."""
        config, progress, first = self.config, self.progress, self.fabric.is_global_zero
        if first:
            self.folder.begin(config, self.job.plan)
            self.folder.clean()
            self.folder.write_history(progress.log)
        quiet = self.job.quiet or not first
        display = Display(epochs=config.epochs, steps=self.steps, done=progress.step, monitor=self.monitor, quiet=quiet)
        with display:
            self.display = display
            for note in self.notes:
                display.note(note)
            enabled = config.tensorboard and first
            self.board = TensorBoard(self.folder.path / "tensorboard", enabled=enabled, step=progress.step, display=display)
            yield
            self.board.close()

    def goes_on(self) -> bool:
        """Whether there is another epoch to train."""
        patience, progress = self.config.patience, self.progress
        if progress.epoch >= self.config.epochs:
            return False
        if patience is None or progress.best is None or progress.epoch - progress.best_epoch < patience:
            return True
        self.display.note(f"{self.monitor} has not risen for {patience} epochs: ended after epoch {progress.epoch}")
        return False

    def count(self, result: StepResult, group: Sequence[Batch | InstanceBatch], elapsed: float) -> None:
        """Add a step to the progress and show it; save the state from time to time, and end if asked to."""
        progress = self.progress
        progress.step += 1
        progress.batch += len(group)
        progress.seconds += elapsed
        if self.warm:  # the first step waited for the loader's processes to start, and perhaps for a compiler
            progress.pictures += sum(map(len, group)) * self.fabric.world_size
            progress.train_seconds += elapsed
        self.warm = True
        if result.finite:
            progress.steps, progress.skipped_in_a_row = progress.steps + 1, 0
            for name, value in result.values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        else:
            self._skip(result, group)
        loss = progress.sums.get("loss", math.nan) / max(1, progress.steps)
        self.display.step(progress.epoch + 1, progress.step, loss, progress.speed, peak_memory(self.fabric.device))
        if result.stop:
            self._interrupt()
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self._save()

    def _skip(self, result: StepResult, group: Sequence[Batch | InstanceBatch]) -> None:
        """Note a step that left the weights as they were; too many in a row are an error."""
        progress = self.progress
        progress.skipped, progress.skipped_in_a_row = progress.skipped + 1, progress.skipped_in_a_row + 1
        names = [name for batch in group for name in batch.names]
        if self.fabric.world_size > 1:
            everywhere: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everywhere, names)
            names = [name for part in everywhere for name in part]
        loss, norm = result.values["loss"], result.norm
        event = {"event": "skipped step", "epoch": progress.epoch + 1, "step": progress.step, "pictures": names}
        progress.log.append(event | {"loss": str(loss), "gradient_norm": str(norm)})
        what = f"epoch {progress.epoch + 1}, step {progress.step}: loss {loss}, gradient norm {norm}"
        self.display.note(f"{what}: step skipped; pictures {', '.join(names)}")
        if progress.skipped_in_a_row >= BAD_STEPS:
            rate, precision = self.config.optimizer.lr, self.config.precision
            raise DelineateError(
                f"{what}, {BAD_STEPS} times in a row, last for the pictures {', '.join(names)}; lower optimizer.lr (now "
                f"{rate:g}), set optimizer.clip_norm: 1 or precision: fp32 (now {precision}), and check these pictures"
            )

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Finish the epoch: keep the weights if they are the best, save all, and say so; end the run if asked to."""
        progress = self.progress
        value = row.get(f"val/{self.monitor}")
        better = value is not None and (progress.best is None or value > progress.best or math.isnan(progress.best))
        if better:
            progress.best, progress.best_epoch = value, row["epoch"]
        progress.log.append({"event": "epoch", **row})
        progress.begin_epoch()
        if self.fabric.is_global_zero:
            for path in (self.folder.last, *([self.folder.best] if better else [])):
                extra = {"epoch": row["epoch"], self.monitor: None if value is None or math.isnan(value) else value}
                save_model(self.kept, path, classes=self.task.classes, conventions=self.task.conventions, extra=extra)
        self._save()
        self.display.epoch(row, progress.step)
        self.board.epoch(row)
        if over_processes(self.fabric, torch.tensor(float(self.stop.requested)), "mean") > 0:
            self._interrupt()

    def _save(self) -> None:
        """Write the state and what it says of the run; the first process does."""
        self.saved = time.monotonic()
        if self.fabric.is_global_zero:
            save_state(self.folder.state, self.progress, self.parts())
            self.folder.write_history(self.progress.log)

    def _interrupt(self) -> None:
        """End a run that all processes agree to end."""
        self._save()
        self.display.note(f"stopped after step {self.progress.step}; go on with: delineate train --resume {self.folder.path}")
        raise KeyboardInterrupt

    def interrupt_alone(self) -> None:
        """End a run of one process; of several, the others would wait for this one."""
        if self.stop.requested and self.fabric.world_size == 1:
            self._interrupt()

    def _check(self, dataset: Dataset) -> None:
        """Raise `ConfigError` for settings that only the parts can judge, `DataError` where it is no longer the same data."""
        names = [name for name in self.validation.names() if name != "loss"]
        if self.monitor not in names:
            hint = suggest(self.monitor, names) or f"; it is one of {', '.join(names)}"
            raise ConfigError(f"monitor '{self.monitor}' is no number of the validation{hint}")
        if self.progress.epoch > self.config.epochs:
            raise ConfigError(f"epochs is {self.config.epochs}, but {self.progress.epoch} are done; give at least as many")
        if self.progress.data != fingerprint(dataset):
            raise DataError(
                f"{dataset.root}: other pictures or classes than when the run in {self.folder.path} began; restore them, or "
                f"start a new run, with --set model.weights={self.folder.last}"
            )
