"""The plan of a detector's training."""

from __future__ import annotations

import inspect

from delineate.config import DataConfig, ModelConfig, TrainConfig
from delineate.data.dataset import Dataset
from delineate.data.instance_loader import InstanceSet
from delineate.data.stats import DatasetStatistics
from delineate.devices import pick_device
from delineate.errors import ConfigError, DataError
from delineate.models.zoo import MODELS
from delineate.train import instance_rules, rules
from delineate.train.instance_task import InstanceTask
from delineate.train.plan import Plan
from delineate.train.planner import (
    CPU_MINUTES,
    MEMORY_SHARE,
    Machine,
    Pace,
    format_of,
    gibibytes,
    in_order,
    schedule,
    with_changes,
    with_given_weights,
)
from delineate.train.probe import InstanceProbe, patch_time
from delineate.weights.conventions import Resize

WANTED = {True: 16, False: 4}  # pictures in a batch, where the machine is fast and where it is not


def plan_instances(
    dataset: Dataset, statistics: DatasetStatistics, machine: Machine, start: TrainConfig, minutes: float | None
) -> Plan:
    """Propose the training of the detector that `start` names on `dataset`, which has the splits "train" and "val"."""
    if statistics.objects is None or not statistics.objects.count:
        name = start.model.name
        raise DataError(f"{dataset.root}: its truth shows no objects for '{name}' to learn; `delineate data check` tells why")
    config, reasons = _choices(dataset, statistics, machine, start)
    config, pace, sized = _fit(config, dataset, statistics, machine)
    if minutes is None and not machine.fast:
        minutes = CPU_MINUTES
    config, scheduled, notes = schedule(config, statistics, pace, machine, minutes)
    optimizer, optimized = instance_rules.choose_optimizer(config.batch, config.epochs * (config.steps_per_epoch or 1))
    config, reasons = with_changes(config, optimizer=optimizer), reasons | sized | scheduled | optimized
    config, reasons = with_given_weights(config, reasons)
    advice = "it starts from random weights: with --model FILE.safetensors it would learn from far fewer pictures"
    return Plan(config, in_order(config, reasons), (*dataset.notes, *notes, *([] if config.model.weights else [advice])))


def _choices(
    dataset: Dataset, statistics: DatasetStatistics, machine: Machine, start: TrainConfig
) -> tuple[TrainConfig, rules.Reasons]:
    """Everything that the data alone decide; with weights to start from, their network and input stay as they are."""
    given = start.model.weights is not None
    inputs, reasons = (start.input, {}) if given else rules.choose_input(statistics)
    resize, why_resize = instance_rules.choose_resize(statistics, fast=machine.fast)
    if given and inputs.resize is not None:
        resize = resize.model_copy(update={"filter": inputs.resize.filter})
    signature = inspect.signature(MODELS[start.model.name]).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()} | start.model.options
    options, why_options = (
        (start.model.options, {}) if given else instance_rules.choose_options(dataset, statistics, resize, defaults)
    )
    options = options | start.model.options  # what was asked for
    orientation = rules.find_orientation(dataset, statistics, dataset.splits["train"])
    masks = bool(defaults.get("masks")) and options.get("masks", True)
    augment, why_augment = instance_rules.choose_augmentation(statistics, resize, orientation, fast=machine.fast, masks=masks)
    sampling, threshold, why_sampling = instance_rules.choose_sampling(dataset.splits["train"], dataset.classes)
    path = start.data.path.resolve()
    config = TrainConfig(
        data=DataConfig(path=path, format=format_of(dataset), sampling=sampling, repeat_threshold=threshold),
        input=inputs.model_copy(update={"resize": resize}),
        model=ModelConfig(name=start.model.name, options=options, weights=start.model.weights),
        augment=augment,
        optimizer=instance_rules.choose_optimizer(1, 1000)[0],
        epochs=1,
        batch=1,
        precision=machine.precision,
        device="auto" if machine.device == pick_device("auto") else str(machine.device),
        workers=min(8, max(1, machine.cores)),
    )
    reasons |= why_resize | why_options | why_augment | why_sampling
    return config, reasons | {"model.name": f"it finds {_what(config, dataset)}"}


def _what(config: TrainConfig, dataset: Dataset) -> str:
    if config.model.options.get("num_stuff"):
        return "objects and stuff"
    return "objects and their points" if dataset.keypoints is not None else "single objects, which may overlap"


def _fit(
    config: TrainConfig, dataset: Dataset, statistics: DatasetStatistics, machine: Machine
) -> tuple[TrainConfig, Pace, rules.Reasons]:
    """Choose the batch that fits in memory and measure the pace; where not even one picture fits, say so."""
    assert config.input.resize is not None
    assert statistics.objects is not None
    size = Resize(**config.input.resize.model_dump()).new_size(statistics.size_median)
    padded = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
    task = InstanceTask(config, dataset, model=None, fresh=False)
    probe = InstanceProbe(task, padded, round(statistics.objects.per_picture[1]), machine.device, machine.precision)
    need, budget = probe.memory(), MEMORY_SHARE * machine.memory
    fitting, wanted = need.largest_batch(budget), WANTED[machine.fast]
    if not fitting:
        raise ConfigError(
            f"not even one picture of {padded[0]} x {padded[1]} fits: a step takes {gibibytes(need.total(1))}, "
            f"{gibibytes(budget)} may be used; free some memory, lower input.resize.shortest, or choose a smaller model"
        )
    batch = min(wanted, fitting, len(dataset.splits["train"]))
    room = f"{gibibytes(need.total(batch))} of the {gibibytes(machine.memory)} that are free"
    why = f"pictures of {padded[0]} x {padded[1]} with {room}"
    config = with_changes(config, batch=batch)
    stuff = task.model.num_stuff > 0
    records = dataset.splits["train"]
    pictures = InstanceSet(dataset, records, config, task.conventions, masks=task.model.has_masks, stuff=stuff)
    step = probe.seconds(batch)
    validation = step / (2 * batch) * statistics.pictures["val"]  # a forward pass, of more regions than in training
    pace = Pace(step, patch_time(pictures), validation, machine.cores, shared=machine.device.type == "cpu")
    return config, pace, {"batch": f"the most that fits: {room}" if fitting < wanted else why}
