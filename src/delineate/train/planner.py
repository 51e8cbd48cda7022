"""`plan`: read a data set and the machine, and propose a training with a reason for each choice."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from delineate.config import DataConfig, ModelConfig, TrainConfig
from delineate.data.dataset import Dataset
from delineate.data.loader import TrainingSet
from delineate.data.open import VARIANTS, split_dataset
from delineate.data.stats import DatasetStatistics, dataset_statistics
from delineate.devices import Precision, pick_device, pick_precision
from delineate.errors import ConfigError, DataError
from delineate.train import rules
from delineate.train.build import conventions_of
from delineate.train.memory import available_memory
from delineate.train.plan import Plan
from delineate.train.probe import PatchTime, StepProbe, patch_time
from delineate.train.start import adopt, is_weights
from delineate.train.task import finds_objects

CPU_MINUTES = 15.0
"""Length of a training on a CPU, unless given: with planning and a report, one command and twenty minutes."""
GPU_EPOCHS = 250
CPU_WIDTHS = (16, 24, 32)
ENOUGH_STEPS = 800  # a wider network is taken if this many steps still fit
FEW_STEPS = 100  # with fewer, a network from random weights has hardly begun to learn
TRAINING_SHARE = 0.9  # of the time; the rest is for the final evaluation and the report
VALIDATION_SHARE = 0.12  # of the training time, at most
MEMORY_SHARE = 0.6  # of what is free; a quarter is for pictures in the loaders' memory


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training runs on."""

    device: torch.device
    precision: Precision
    memory: int  # bytes free on the device
    cores: int

    @property
    def fast(self) -> bool:
        """Whether a full schedule can be afforded."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """What it is called in reasons."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.cores} CPU cores" if self.device.type == "cpu" else self.device.type


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured for one choice of network, patch and batch."""

    step: float  # seconds of the network's part of a step
    patches: PatchTime
    validation: float  # seconds of one validation
    cores: int
    shared: bool  # whether loading and computing share the cores

    def seconds(self, batch: int) -> float:
        """Seconds of a training step, loading included."""
        loading = batch * self.patches.each / self.cores
        return self.step + loading if self.shared else max(self.step, loading)


def plan(
    dataset: Dataset,
    *,
    path: str | Path | None = None,
    device: str = "auto",
    minutes: float | None = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    memory: int | None = None,
) -> Plan:
    """Propose model, patch, batch, augmentation, loss and schedule for `dataset` on this machine.

    `path`: what `dataset` was opened from (default: its folder). `device` as in `pick_device`. `minutes`: length of the
    training (default: 15 on a CPU; on a GPU 250 epochs, however long). `model`: a name of the zoo (default: "unet", for data of
    keypoints "keypoint_rcnn_resnet50_fpn"), or a file of weights to start from, whose network and input are kept. `options`:
    of the network of the zoo, to be kept. `memory`: bytes that are free on the device (default: measured). A few training
    steps are timed (under about 20 s); all else depends on the training pictures alone. Raises `DataError` for data without
    outlines or with a single picture, `ConfigError` for an unknown device or model, or where no picture fits in memory.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"minutes is {minutes}; give a length above 0, such as --minutes 15")
    dataset = split_dataset(dataset)
    statistics = dataset_statistics(dataset, split="train")
    torch_device = pick_device(device)
    free = available_memory(torch_device) if memory is None else memory
    machine = Machine(torch_device, pick_precision("auto", torch_device), free, _cores())
    path, model = Path(path or dataset.root), model or ("keypoint_rcnn_resnet50_fpn" if dataset.kind == "keypoint" else "unet")
    given = ModelConfig(weights=Path(model)) if is_weights(model) else ModelConfig(name=model, options=dict(options or {}))
    start = adopt(TrainConfig(data=DataConfig(path=path), model=given))
    if finds_objects(start.model.name):
        from delineate.train.instance_planner import plan_instances

        return plan_instances(dataset, statistics, machine, start, minutes)
    if not statistics.class_pixels:
        raise DataError(
            f"{dataset.root}: its truth has no outlines or masks to learn from; annotate polygons or label pictures"
        )
    config, reasons = _choices(start, dataset, statistics, machine)
    config, sized = _fit(config, statistics, machine)
    if minutes is None and not machine.fast:
        minutes = CPU_MINUTES
    config, pace, width = _choose_width(config, dataset, statistics, machine, minutes, start.model.options)
    config, scheduled, notes = schedule(config, statistics, pace, machine, minutes)
    optimizer, optimized = rules.choose_optimizer(start.model.name, config.batch, config.epochs * (config.steps_per_epoch or 1))
    config, reasons = with_changes(config, optimizer=optimizer), reasons | sized | width | optimized | scheduled
    config, reasons = with_given_weights(config, reasons)
    return Plan(config, in_order(config, reasons), (*dataset.notes, *_warnings(statistics), *notes))


def with_steps(proposal: Plan, epochs: int, steps_per_epoch: int, reason: str) -> Plan:
    """Return the plan with another length, for `reason`, and the optimiser's schedule that goes with it."""
    total = epochs * steps_per_epoch
    optimizer, reasons = rules.choose_optimizer(proposal.config.model.name, proposal.config.batch, total)
    reasons |= {"epochs": reason, "steps_per_epoch": f"{total} steps in all"}
    config = with_changes(proposal.config, epochs=epochs, steps_per_epoch=steps_per_epoch, optimizer=optimizer)
    return Plan(config, {key: reasons.get(key, why) for key, why in proposal.reasons.items()})


def _choices(
    start: TrainConfig, dataset: Dataset, statistics: DatasetStatistics, machine: Machine
) -> tuple[TrainConfig, rules.Reasons]:
    """Everything that the data alone decide, with a first guess of what the machine does; `start` says from which network."""
    model, given = start.model.name, start.model.weights is not None
    inputs, reasons = (start.input, {}) if given else rules.choose_input(statistics)
    outputs, why_outputs = (start.model.outputs, {}) if given else rules.choose_outputs(statistics, model)
    patch = rules.choose_patch(statistics, fast=machine.fast)
    options: dict[str, Any] = start.model.options
    if model == "unet" and not given and options.get("encoder", "plain") == "plain":
        depth, why_depth = rules.choose_depth(patch, fast=machine.fast)
        options = {"width": 32, "depth": depth, "norm": "instance"} | options
        reasons["model.options.depth"] = why_depth
        reasons["model.options.norm"] = (
            "a few unlike pictures a batch: each is normalised by itself, in training as in prediction"
        )
        reasons["augment.patch"] = rules.reason_for_patch(statistics, patch, 2 ** (options["depth"] - 1))
    elif model == "unet_original":
        side = 572 if machine.fast else 380
        patch = (side, side)
        reasons["augment.patch"] = f"valid convolutions take 16 k + 60 pixels: {side} in, {side - 184} out"
    reasons |= {} if given else {f"model.options.{option}": "as asked" for option in start.model.options}
    orientation = rules.find_orientation(dataset, statistics, dataset.splits["train"])
    augment, why_augment = rules.choose_augmentation(statistics, patch, orientation)
    loss, why_loss = rules.choose_loss(statistics, outputs, model)
    reasons["model.name"] = "U-Net learns from few pictures" if model == "unet" else "as asked"
    config = TrainConfig(
        data=DataConfig(path=start.data.path.resolve(), format=format_of(dataset)),
        input=inputs,
        model=ModelConfig(name=model, options=options, outputs=outputs, weights=start.model.weights),
        augment=augment,
        loss=loss,
        optimizer=rules.choose_optimizer(model, 1, 1000)[0],
        epochs=1,
        batch=1,
        precision=machine.precision,
        device="auto" if machine.device == pick_device("auto") else str(machine.device),
        workers=min(8, max(1, machine.cores)),
    )
    return config, reasons | why_outputs | why_augment | why_loss


def _fit(config: TrainConfig, statistics: DatasetStatistics, machine: Machine) -> tuple[TrainConfig, rules.Reasons]:
    """Choose the batch so that a step is a sensible piece of work and fits in memory; halve the patch where nothing fits."""
    budget = MEMORY_SHARE * machine.memory
    patch = config.augment.patch
    while True:
        config = with_changes(config, augment=config.augment.model_copy(update={"patch": patch}))
        need = StepProbe(config, len(statistics.classes), machine.device, machine.precision).memory()
        fitting = need.largest_batch(budget)
        if fitting or config.model.name == "unet_original" or min(patch) <= 32:
            break
        patch = (max(16, patch[0] // 2), max(16, patch[1] // 2))
    if not fitting:
        raise ConfigError(
            f"not even one patch of {patch[0]} x {patch[1]} fits: a step takes {gibibytes(need.total(1))}, "
            f"{gibibytes(budget)} may be used; free some memory, or choose a smaller model"
        )
    wanted = _wanted_batch(config, statistics, machine)
    batch = min(wanted, fitting)
    room = f"{gibibytes(need.total(batch))} of the {gibibytes(machine.memory)} that are free"
    why = f"{batch * patch[0] * patch[1] / 1e3:.0f} thousand pixels a step, with {room}"
    if batch < wanted:
        why = f"the most that fits: {room}"
    reasons = {"batch": why}
    if patch != rules.choose_patch(statistics, fast=machine.fast) and config.model.name != "unet_original":
        reasons["augment.patch"] = f"larger ones do not fit in the {gibibytes(machine.memory)} that are free"
    return with_changes(config, batch=batch), reasons


def _wanted_batch(config: TrainConfig, statistics: DatasetStatistics, machine: Machine) -> int:
    """Patches that make a step of 2^18 pixels (on a GPU 2^21), 2 to 16 (32), but at most four of each picture."""
    if config.model.name == "unet_original":
        return 1  # "we favor large input tiles over a large batch size"
    pixels, most = (1 << 21, 32) if machine.fast else (1 << 18, 16)
    height, width = config.augment.patch
    train = statistics.pictures["train"]
    return max(2, min(most, 4 * train, round(pixels / (height * width))))


def _choose_width(
    config: TrainConfig,
    dataset: Dataset,
    statistics: DatasetStatistics,
    machine: Machine,
    minutes: float | None,
    asked: Mapping[str, Any],
) -> tuple[TrainConfig, Pace, rules.Reasons]:
    """Measure the pace of one or more widths of `unet`, and take the widest that still makes enough steps in the time.

    `asked`: options of the network that are not to be chosen.
    """
    pictures = TrainingSet(dataset, dataset.splits["train"], config, conventions_of(config), train=True)
    patches = patch_time(pictures)

    def pace_of(candidate: TrainConfig) -> Pace:
        probe = StepProbe(candidate, len(statistics.classes), machine.device, machine.precision)
        step = probe.seconds(candidate.batch)
        trained = candidate.batch * math.prod(candidate.augment.patch)
        validated = statistics.pictures["val"] * math.prod(statistics.size_median)
        validation = step / 3 * validated / trained  # the forward pass is about a third of a step
        return Pace(step, patches, validation, machine.cores, shared=machine.device.type == "cpu")

    if config.model.name != "unet" or config.model.weights is not None or not asked.keys().isdisjoint(("width", "encoder")):
        return config, pace_of(config), {}
    if machine.fast or minutes is None:
        why = "wide enough for hundreds of epochs"
        return config, pace_of(config), {"model.options.width": why}
    chosen, why = None, ""
    for width in CPU_WIDTHS:
        options = config.model.options | {"width": width}
        candidate = with_changes(config, model=config.model.model_copy(update={"options": options}))
        pace = pace_of(candidate)
        steps = int(60 * minutes * TRAINING_SHARE / pace.seconds(config.batch))
        if chosen is None or steps >= ENOUGH_STEPS:
            chosen = candidate, pace
            why = f"a step takes {pace.seconds(config.batch):.2f} s, so about {steps} fit in {minutes:g} minutes"
        if steps < ENOUGH_STEPS:  # a wider network is slower still
            break
    assert chosen is not None
    return *chosen, {"model.options.width": why}


def schedule(
    config: TrainConfig, statistics: DatasetStatistics, pace: Pace, machine: Machine, minutes: float | None
) -> tuple[TrainConfig, rules.Reasons, tuple[str, ...]]:
    """Choose epochs and steps from the time; returns the config, reasons and notes."""
    train = statistics.pictures["train"]
    step = pace.seconds(config.batch)
    if minutes is None:
        epochs, steps = GPU_EPOCHS, max(50, math.ceil(train / config.batch))
        why = f"a full schedule; a step takes {step:.3f} s on {machine.name}"
    else:
        time = 60 * minutes * TRAINING_SHARE
        wanted = max(3, min(50, int(VALIDATION_SHARE * time / max(pace.validation, 1e-9))))
        total = max(1, int((time - min(wanted * pace.validation, time / 2)) / step))
        epochs = min(wanted, total)
        steps = total // epochs
        why = f"{minutes:g} minutes at {step:.2f} s a step and {pace.validation:.1f} s a validation on {machine.name}"
    patches = epochs * steps * config.batch
    reasons = {
        "epochs": why,
        "steps_per_epoch": f"{epochs * steps} steps in all; each of {train} pictures is seen {patches / train:.0f} times",
    }
    reasons["precision"] = (
        f"{machine.name} compute bfloat16 fast" if machine.precision == "bf16" else f"{machine.name}: no fast bfloat16"
    )
    reasons["workers"] = f"{machine.cores} cores; a patch takes {1e3 * pace.patches.each:.0f} ms of one"
    seconds = epochs * (steps * step + pace.validation)
    notes = [f"about {seconds / 60:.0f} minutes on {machine.name}"]
    if (total := epochs * steps) < FEW_STEPS:
        notes.append(
            f"warning: {total} step{'s' * (total > 1)} will not teach much; give more time (--minutes), or choose a smaller "
            "network or narrower layers (model.options)"
        )
    return with_changes(config, epochs=epochs, steps_per_epoch=steps), reasons, tuple(notes)


def _warnings(statistics: DatasetStatistics) -> tuple[str, ...]:
    """What the user should know about the truth."""
    empty = [name for name, count in zip(statistics.classes, statistics.class_pictures, strict=True) if count == 0]
    present = len(statistics.classes) - len(empty)
    if present < 2:
        return (f"warning: the truth shows {'only one class' if present else 'no class'}; there is nothing to learn from it",)
    if not empty:
        return ()
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (f"warning: no pixel of {shown} in {statistics.sampled} pictures; a network cannot learn what it never sees",)


def with_changes(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return the config with other values, which are not checked."""
    return config.model_copy(update=changes)


def with_given_weights(config: TrainConfig, reasons: rules.Reasons) -> tuple[TrainConfig, rules.Reasons]:
    """Where it starts from given weights: the plan with a rate that does not undo what they know, and the reasons for that."""
    if config.model.weights is None:
        return config, reasons
    optimizer = config.optimizer.model_copy(update={"lr": config.optimizer.lr / 10})
    reasons |= {"model.name": "that of the weights", "input": "as the weights are used to"}
    reasons |= {"optimizer.lr": "a tenth of that from random weights, so that what the weights know is not undone"}
    return with_changes(config, optimizer=optimizer), reasons


def format_of(dataset: Dataset) -> str:
    """The format with its variant, so that the data are read again as they were read now."""
    return f"{dataset.format}:{dataset.kind}" if dataset.kind in VARIANTS.get(dataset.format, ()) else dataset.format


def in_order(config: TrainConfig, reasons: rules.Reasons) -> rules.Reasons:
    """Return the reasons in the order of the config's keys."""

    def keys(content: dict[str, Any], prefix: str) -> list[str]:
        found: list[str] = []
        for key, value in content.items():
            found.append(prefix + key)
            if isinstance(value, dict):
                found += keys(value, f"{prefix}{key}.")
        return found

    return {key: reasons[key] for key in keys(config.model_dump(mode="json"), "") if key in reasons}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gibibytes(count: float) -> str:
    """A number of bytes as text."""
    return f"{count / 2**30:.1f} GiB"
