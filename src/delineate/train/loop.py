"""`train`: the one training loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from delineate.config import TrainConfig
from delineate.data import Dataset
from delineate.errors import ConfigError, DelineateError
from delineate.files import write_json
from delineate.guard import end_process_that_starts
from delineate.train.build import prepare_dataset, reproducible, seed_step
from delineate.train.logging import peak_memory
from delineate.train.optim import learning_rate, set_learning_rate
from delineate.train.processes import Stop, first_process, launch, under_torchrun
from delineate.train.run import Job, Run
from delineate.train.runfolder import RunFolder
from delineate.train.start import adopt
from delineate.train.step import training_step
from delineate.train.task import make_task

if TYPE_CHECKING:
    from delineate.train.plan import Plan


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a finished run put what it made, and its numbers."""

    folder: Path
    best: Path  # weights of the best validation
    last: Path  # weights after the last epoch
    report: Path | None  # None in all but the first of several processes
    evaluation: dict[str, float]  # summary of the best weights on the validation pictures


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
    end_process_that_starts()
    if plan is not None and under_torchrun():
        raise ConfigError("the processes of torchrun would each make their own plan; write one: delineate plan DATA --out FILE")
    config = adopt(config) if model is None else _naming(config, model)
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


def _naming(config: TrainConfig, model: Any) -> TrainConfig:
    """Return `config` with the name and the options of `model`, so that the run folder says what was trained."""
    named: dict[str, Any] = {key: model.architecture[key] for key in ("name", "options")}
    return config.model_copy(update={"model": config.model.model_copy(update=named)})


def _run(fabric: Fabric, stop: Stop, job: Job) -> None:
    """The part of a run that happens in each of its processes."""
    with reproducible(job.config, fabric.device):
        run = Run(fabric, stop, job)
        with run.opened():
            while run.goes_on():
                _train_epoch(run)
                row = _validate_epoch(run)
                run.end_epoch(row)


def _train_epoch(run: Run) -> None:
    """Do the optimiser steps of the current epoch that are not done yet."""
    config, progress = run.config.optimizer, run.progress
    run.module.train()
    run.sampler.set_epoch(progress.epoch, skip=progress.batch)
    batches = iter(run.loader)
    start = time.monotonic()
    while group := list(islice(batches, config.accumulate)):
        seed_step(run.config.seed, progress.step, run.fabric.global_rank)
        set_learning_rate(run.optimizer, learning_rate(config, progress.step, run.config.epochs * run.steps))
        result = training_step(
            run.fabric, run.module, run.optimizer, run.task.loss, group, clip_norm=config.clip_norm, stop=run.stop.requested
        )
        if run.average and result.finite:
            run.average.update(run.model)
        elapsed, start = time.monotonic() - start, time.monotonic()
        run.count(result, group, elapsed)


def _validate_epoch(run: Run) -> dict[str, Any]:
    """Measure the network, if it is time to, and return the epoch's row of results.csv."""
    progress, config = run.progress, run.config
    number, start = progress.epoch + 1, time.monotonic()
    due = number % config.validate_every == 0 or number == config.epochs
    numbers = run.validation(run.kept, run.interrupt_alone) if due else {}
    progress.seconds += time.monotonic() - start
    return {
        "epoch": number,
        "step": progress.step,
        "lr": float(run.optimizer.param_groups[0]["lr"]),
        **{f"train/{name}": value / max(1, progress.steps) for name, value in progress.sums.items()},
        **{f"val/{name}": value for name, value in numbers.items()},
        "images_per_second": progress.speed,
        "memory_mb": peak_memory(run.fabric.device),
        "seconds": progress.seconds,
        "skipped_steps": progress.skipped,
    }


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
        task = make_task(job.config, dataset, model=weights, fresh=False)
        weights.classes, weights.conventions = task.classes, task.conventions
    predictor = Predictor(weights, device=job.config.device, precision=job.config.precision)
    previews = folder.path / "previews"
    evaluation = evaluate(predictor, dataset, dataset.splits["val"], split="val", previews=previews)
    write_json(folder.path / "evaluation.json", evaluation.to_json())
    return RunResult(folder.path, folder.best, folder.last, write_report(folder.path), evaluation.summary)
