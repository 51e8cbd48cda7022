"""`train`: the one training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from delineate.config import TrainConfig
from delineate.data import Dataset, make_loader
from delineate.data.batch import Batch
from delineate.errors import ConfigError, DataError, DelineateError, suggest
from delineate.files import write_json
from delineate.losses import build_loss
from delineate.train.build import build_model, compiled, conventions_of, fingerprint, prepare_dataset, reproducible, seed_step
from delineate.train.checkpoint import Progress, load_state, save_state
from delineate.train.ema import AverageModel
from delineate.train.logging import Display, TensorBoard, peak_memory
from delineate.train.optim import build_optimizer, learning_rate, set_learning_rate
from delineate.train.processes import Stop, first_process, launch, over_processes, under_torchrun
from delineate.train.runfolder import RunFolder
from delineate.train.step import StepResult, training_step
from delineate.train.validate import Validation
from delineate.weights.files import save_model

if TYPE_CHECKING:
    from delineate.train.plan import Plan

SAVE_SECONDS = 300.0  # at most so much of an epoch is lost when a run is killed
BAD_STEPS = 3  # in a row without a finite loss and gradient end a run


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a finished run put what it made, and its numbers."""

    folder: Path
    best: Path  # weights of the best validation
    last: Path  # weights after the last epoch
    report: Path | None  # None in all but the first of several processes
    evaluation: dict[str, float]  # summary of the best weights on the validation pictures


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


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    plan: Plan | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> RunResult:
    """Train a network as `config` says, in the run folder `out`, and measure its best weights on the validation pictures.

    resume: go on with the run in `out` from its last state. plan: written beside the config, for the report.
    model: a network to train instead of the one that `config` names; it has the best weights afterwards. dataset: read already,
    instead of that at `config.data.path`. Raises `ConfigError`, `DataError` or another `DelineateError` of one line, and
    KeyboardInterrupt after Ctrl-C or SIGTERM, when its state is saved.
    """
    if plan is not None and under_torchrun():
        raise ConfigError("the processes of torchrun would each make their own plan; write one: delineate plan DATA --out FILE")
    folder = RunFolder(Path(out))
    folder.check(config, resume=resume)
    job = Job(config, folder, resume, quiet, None if plan is None else plan.to_json(), model, dataset)
    try:
        launch(config, partial(_run, job=job))
    except DelineateError:
        if not folder.state.exists():  # nothing was trained, so the name is free again
            folder.discard()
        raise
    return _finish(job)


def _run(fabric: Fabric, stop: Stop, job: Job) -> None:
    """The part of a run that happens in each of its processes."""
    with reproducible(job.config, fabric.device):
        Run(fabric, stop, job).train()


class Run:
    """One run in one of its processes: what it is made of, and the loop."""

    def __init__(self, fabric: Fabric, stop: Stop, job: Job) -> None:
        config = job.config
        self.fabric, self.stop, self.job, self.config, self.folder = fabric, stop, job, config, job.folder
        dataset = prepare_dataset(config.data, job.dataset)
        self.classes, self.conventions = dataset.semantic_classes, conventions_of(config)
        self.loss = build_loss(config.loss, self.conventions, len(self.classes))
        resumed = job.resume and job.folder.state.exists()
        notes = list(dataset.notes)
        self.model = copy.deepcopy(job.model) if fabric.world_size > 1 else job.model  # processes would share its memory
        if self.model is None:
            self.model, start = build_model(config, len(self.classes), fresh=not resumed)
            notes += start
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        module = compiled(self.model, fabric.device) if config.compile else self.model
        self.module, self.optimizer = fabric.setup(module, build_optimizer(self.model, config.optimizer))
        self.average = AverageModel(self.model, config.optimizer.ema) if config.optimizer.ema else None
        place: dict[str, Any] = {"rank": fabric.global_rank, "world": fabric.world_size}
        train_records, val_records = dataset.splits["train"], dataset.splits["val"]
        self.loader = make_loader(dataset, train_records, config, self.conventions, train=True, **place)
        val_loader = make_loader(dataset, val_records, config, self.conventions, train=False, **place)
        self.validation = Validation(fabric, val_loader, self.loss, self.conventions, self.classes)
        self.steps = -(-len(self.loader) // config.optimizer.accumulate)  # optimiser steps of an epoch
        self.progress = load_state(self.folder.state, self.parts()) if resumed else Progress(data=fingerprint(dataset))
        self._check(dataset)
        self.notes, self.saved = notes, time.monotonic()

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the averaged one, if there is one."""
        return self.average.model if self.average else cast("nn.Module", self.model)

    def parts(self) -> dict[str, Any]:
        """All that has a state beside the progress."""
        scaler = {"scaler": self.fabric.strategy.precision}
        average = {"average": self.average} if self.average else {}
        return {"model": self.model, "optimizer": self.optimizer.optimizer, **average, **scaler}

    def train(self) -> None:
        """Train epoch after epoch, from where the progress is."""
        config, progress, first = self.config, self.progress, self.fabric.is_global_zero
        if first:
            self.folder.begin(config, self.job.plan)
            self.folder.clean()
            self.folder.write_history(progress.log)
        quiet = self.job.quiet or not first
        with Display(
            epochs=config.epochs, steps=self.steps, done=progress.step, monitor=config.monitor, quiet=quiet
        ) as self.display:
            for note in self.notes:
                self.display.note(note)
            board = TensorBoard(
                self.folder.path / "tensorboard", enabled=config.tensorboard and first, step=progress.step, display=self.display
            )
            while progress.epoch < config.epochs and not self._out_of_patience():
                self._train_epoch()
                row = self._validate_epoch()
                self._end_epoch(row)
                board.epoch(row)
                if over_processes(self.fabric, torch.tensor(float(self.stop.requested)), "mean") > 0:
                    self._interrupt()
            board.close()

    def _train_epoch(self) -> None:
        """Do the optimiser steps of the current epoch that are not done yet."""
        config, progress = self.config.optimizer, self.progress
        self.module.train()
        self.loader.sampler.set_epoch(progress.epoch, skip=progress.batch)  # pyright: ignore[reportAttributeAccessIssue]
        batches = iter(self.loader)
        start = time.monotonic()
        while group := list(islice(batches, config.accumulate)):
            seed_step(self.config.seed, progress.step, self.fabric.global_rank)
            set_learning_rate(self.optimizer, learning_rate(config, progress.step, self.config.epochs * self.steps))
            result = training_step(
                self.fabric, self.module, self.optimizer, self.loss, group, clip_norm=config.clip_norm, stop=self.stop.requested
            )
            if result.finite and self.average:
                self.average.update(cast("nn.Module", self.model))
            elapsed, start = time.monotonic() - start, time.monotonic()
            self._count(result, group, elapsed)
            if result.stop:
                self._interrupt()
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()

    def _count(self, result: StepResult, group: Sequence[Batch], elapsed: float) -> None:
        """Add a step to the progress, and show it."""
        progress = self.progress
        progress.step += 1
        progress.batch += len(group)
        progress.pictures += sum(map(len, group)) * self.fabric.world_size
        progress.train_seconds += elapsed
        progress.seconds += elapsed
        if result.finite:
            progress.steps, progress.skipped_in_a_row = progress.steps + 1, 0
            for name, value in result.values.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        else:
            self._skip(result, group)
        loss = progress.sums.get("loss", math.nan) / max(1, progress.steps)
        speed = progress.pictures / progress.train_seconds
        self.display.step(progress.epoch + 1, progress.step, loss, speed, peak_memory(self.fabric.device))

    def _skip(self, result: StepResult, group: Sequence[Batch]) -> None:
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

    def _validate_epoch(self) -> dict[str, Any]:
        """Measure the network, if it is time to, and return the epoch's row of results.csv."""
        progress, config = self.progress, self.config
        number = progress.epoch + 1
        start = time.monotonic()
        numbers: dict[str, float] = {}
        if number % config.validate_every == 0 or number == config.epochs:
            numbers = self.validation(self.kept, self._interrupt_alone)
        progress.seconds += time.monotonic() - start
        return {
            "epoch": number,
            "step": progress.step,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            **{f"train/{name}": value / max(1, progress.steps) for name, value in progress.sums.items()},
            **{f"val/{name}": value for name, value in numbers.items()},
            "images_per_second": progress.pictures / max(progress.train_seconds, 1e-9),
            "memory_mb": peak_memory(self.fabric.device),
            "seconds": progress.seconds,
            "skipped_steps": progress.skipped,
        }

    def _end_epoch(self, row: dict[str, Any]) -> None:
        """Finish the epoch: keep the weights if they are the best, save all, and print the line."""
        progress = self.progress
        value = row.get(f"val/{self.config.monitor}")
        better = value is not None and (progress.best is None or value > progress.best or math.isnan(progress.best))
        if better:
            progress.best, progress.best_epoch = value, row["epoch"]
        progress.log.append({"event": "epoch", **row})
        progress.begin_epoch()
        if self.fabric.is_global_zero:
            for path in (self.folder.last, *([self.folder.best] if better else [])):
                extra = {"epoch": row["epoch"], self.config.monitor: None if value is None or math.isnan(value) else value}
                save_model(self.kept, path, classes=self.classes, conventions=self.conventions, extra=extra)
        self._save()
        self.display.epoch(row, progress.step)

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

    def _interrupt_alone(self) -> None:
        """End a run of one process; of several, the others would wait for this one."""
        if self.stop.requested and self.fabric.world_size == 1:
            self._interrupt()

    def _out_of_patience(self) -> bool:
        patience, progress = self.config.patience, self.progress
        if patience is None or progress.epoch - progress.best_epoch < patience or progress.best is None:
            return False
        self.display.note(f"{self.config.monitor} has not risen for {patience} epochs: ended after epoch {progress.epoch}")
        return True

    def _check(self, dataset: Dataset) -> None:
        """Raise `ConfigError` for settings that only the parts can judge, `DataError` where it is no longer the same data."""
        names = [name for name in self.validation.names() if name != "loss"]
        if self.config.monitor not in names:
            hint = suggest(self.config.monitor, names) or f"; it is one of {', '.join(names)}"
            raise ConfigError(f"monitor '{self.config.monitor}' is no number of the validation{hint}")
        if self.progress.epoch > self.config.epochs:
            raise ConfigError(f"epochs is {self.config.epochs}, but {self.progress.epoch} are done; give at least as many")
        if self.progress.data != fingerprint(dataset):
            raise DataError(
                f"{dataset.root}: other pictures or classes than when the run in {self.folder.path} began; restore them, or "
                f"start a new run, with --set model.weights={self.folder.last}"
            )


def _finish(job: Job) -> RunResult:
    """Measure the best weights on the validation pictures, and write evaluation.json and the report."""
    folder = job.folder
    if not first_process():
        return RunResult(folder.path, folder.best, folder.last, None, {})
    from delineate.predict.evaluate import evaluate
    from delineate.predict.predictor import Predictor
    from delineate.report.html import write_report

    dataset = prepare_dataset(job.config.data, job.dataset)
    weights: Any = folder.best
    if job.model is not None:  # perhaps none of the zoo's, so it cannot be built anew
        weights = cast("Any", job.model)
        weights.load_state_dict(load_file(folder.best))
        weights.classes, weights.conventions = dataset.semantic_classes, conventions_of(job.config)
    predictor = Predictor(weights, device=job.config.device, precision=job.config.precision)
    previews = folder.path / "previews"
    evaluation = evaluate(predictor, dataset, dataset.splits["val"], split="val", previews=previews)
    write_json(folder.path / "evaluation.json", evaluation.to_json())
    return RunResult(folder.path, folder.best, folder.last, write_report(folder.path), evaluation.summary)
