"""The planner's rules for detectors: from the numbers of a data set to settings, each with the reason that it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from delineate.config import AugmentConfig, OptimizerConfig, ResizeConfig
from delineate.data.dataset import Dataset, Record
from delineate.data.objects import listed_labels
from delineate.data.stats import DatasetStatistics
from delineate.train.instance_truth import without_outline
from delineate.train.rules import Orientation, Reasons, ema_decay, warmup

SEEN = 16.0  # pixels of diameter that an object should have: four pixels of the finest map
MANY_STEPS = 20_000  # from which the published schedule pays

Sampling = Literal["even", "repeat_factor"]


def choose_resize(statistics: DatasetStatistics, *, fast: bool) -> tuple[ResizeConfig, Reasons]:
    """The shorter side: 320 (800 where `fast`), up to twice that for small objects, at most twice the pictures' own."""
    s, usual = statistics, 800 if fast else 320
    height, width = s.size_median
    shorter, ratio = min(height, width), max(height, width) / min(height, width)
    side, why = min(usual, 2 * shorter), f"pictures have a median of {height}x{width} pixels"
    if s.objects is not None and s.objects.count:
        diameter = s.objects.diameter[1]
        wanted = SEEN / max(diameter, 1e-9) * shorter
        side = round(min(2 * usual, 2 * shorter, max(usual, wanted)))
        why += f", a quarter of the objects a diameter below {diameter:.0f}, in training below {diameter * side / shorter:.0f}"
    longest = round(side * min(max(ratio, 1.0) * 1.25, 4.0))
    return ResizeConfig(shortest=side, longest=longest), {"input.resize": why}


def choose_anchors(statistics: DatasetStatistics, resize: ResizeConfig, usual: Sequence[int]) -> tuple[list[int], Reasons]:
    """Sizes of the anchors: those of the network, halved until a quarter of the objects at most are smaller than the smallest.

    Of an object that no anchor covers to 0.7 (IoU), as a square of 32 pixels cannot one of 20, only the best anchor learns.
    """
    if statistics.objects is None or not statistics.objects.count:
        return list(usual), {}
    diameter = statistics.objects.diameter[1] * resize.shortest / min(statistics.size_median)
    halvings = min(2, max(0, math.ceil(math.log2(usual[0] / max(diameter, 1e-9)))))
    if not halvings:
        return list(usual), {}
    why = f"a quarter of the objects have a diameter below {diameter:.0f} pixels in training; the usual smallest is {usual[0]}"
    return [size >> halvings for size in usual], {"model.options.anchors": why}


def choose_options(
    dataset: Dataset, statistics: DatasetStatistics, resize: ResizeConfig, defaults: dict[str, Any]
) -> tuple[dict[str, Any], Reasons]:
    """Options of the network: what the data have nothing of is not sought; `defaults` are the network's own."""
    options: dict[str, Any] = {}
    reasons: Reasons = {}
    records = (*dataset.splits["train"], *dataset.splits["val"])
    if defaults.get("norm") == "batch":
        options["norm"] = "group"
        reasons["model.options.norm"] = "from random weights; a few pictures a batch are too few for statistics of the batch"
    if defaults.get("masks") and (bare := without_outline(records)):
        options["masks"] = False
        reasons["model.options.masks"] = f"{len(bare)} objects have no outline, such as {bare[0]}"
    if defaults.get("num_keypoints") and dataset.keypoints is not None:
        options["num_keypoints"] = len(dataset.keypoints.names)
        reasons["model.options.num_keypoints"] = f"the data mark {len(dataset.keypoints.names)} points of an object"
    if "anchors" in defaults:
        anchors, why = choose_anchors(statistics, resize, defaults["anchors"])
        if why:
            options["anchors"], reasons = anchors, reasons | why
    if defaults.get("num_stuff") and dataset.stuff:
        options["num_stuff"] = len(dataset.stuff)
        reasons["model.options.num_stuff"] = f"the data tell {len(dataset.stuff)} kinds of stuff apart"
    return options, reasons


def choose_augmentation(
    statistics: DatasetStatistics, resize: ResizeConfig, orientation: Orientation, *, fast: bool, masks: bool
) -> tuple[AugmentConfig, Reasons]:
    """Random changes: several sizes, or where a long training can be afforded large-scale jitter and copy-paste."""
    s, side = statistics, resize.shortest
    strength = min(0.4, max(0.1, round(0.2 + s.brightness_spread / 2, 2)))
    turns = "only left and right are exchanged" if orientation.upright else "all flips and quarter turns"
    reasons = {
        "augment.flip_horizontal": f"{orientation.reason}: {turns}",
        "augment.brightness": f"pictures differ in brightness by {s.brightness_spread:.2f} of their deviation",
    }
    changes: dict[str, Any] = {}
    if fast:
        target = -(-resize.longest // 32) * 32
        changes = {"patch": (target, target), "jitter": (0.1, 2.0), "copy_paste": 0.5 if masks else 0.0}
        reasons["augment.jitter"] = "a long training gains from objects of all sizes (large-scale jitter)"
        reasons["augment.copy_paste"] = (
            "objects of other pictures in new surroundings: the outlines are there" if masks else "needs outlines"
        )
    else:
        changes = {"shortest": tuple(round(side * factor) for factor in (0.8, 0.9, 1.0, 1.1, 1.2))}
        reasons["augment.shortest"] = "sizes around that of prediction; larger changes need a longer training"
    return AugmentConfig(
        flip_horizontal=0.5,
        flip_vertical=0.0 if orientation.upright else 0.5,
        rotate90=not orientation.upright,
        brightness=strength,
        contrast=strength,
        **changes,
    ), reasons


def choose_sampling(records: Sequence[Record], classes: Sequence[str]) -> tuple[Sampling, float, Reasons]:
    """How pictures are drawn, and the share of the pictures from which a class counts as rare: a tenth of the median class'."""
    pictures = [set(labels) for record in records if (labels := listed_labels(record)) is not None]
    if not pictures:
        return "even", 1e-3, {"data.sampling": "the classes of a picture are painted, not listed, and were not counted"}
    counts = [sum(label in labels for labels in pictures) for label in range(len(classes))]
    shares = sorted(count / len(pictures) for count in counts if count)
    if len(shares) < 2 or shares[0] >= 0.1 * shares[len(shares) // 2]:
        return "even", 1e-3, {"data.sampling": "no class is in far fewer pictures than the others"}
    threshold, rare = 0.1 * shares[len(shares) // 2], classes[counts.index(min(c for c in counts if c))]
    why = f"'{rare}' is in {shares[0]:.2%} of the pictures, the median class in {shares[len(shares) // 2]:.1%}"
    return "repeat_factor", round(threshold, 6), {"data.sampling": why, "data.repeat_threshold": "a tenth of the median class"}


def choose_optimizer(batch: int, total_steps: int) -> tuple[OptimizerConfig, Reasons]:
    """SGD and steps, as detectors are published, for long runs; AdamW for short ones."""
    if total_steps >= MANY_STEPS:
        rate = 0.02 * batch / 16
        reasons = {
            "optimizer.name": f"SGD with momentum 0.9, as detectors are published, which {total_steps} steps leave time for",
            "optimizer.lr": f"0.02 for a batch of 16, here {batch}",
            "optimizer.schedule": "a tenth of the rate from two thirds of the steps on, and again from eight ninths",
        }
        return OptimizerConfig(
            name="sgd",
            lr=rate,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            schedule="multi_step",
            warmup_steps=1000,
            warmup_factor=1e-3,
        ), reasons
    steps, decay = warmup(total_steps), ema_decay(total_steps)
    reasons = {
        "optimizer.name": f"AdamW learns faster in as few as {total_steps} steps",
        "optimizer.lr": f"1e-3 suits batches of {batch} in a network with normalised activations",
        "optimizer.schedule": f"the rate rises for {steps} steps, then falls to 0",
        "optimizer.ema": f"the mean of the weights over about {1 / (1 - decay):.0f} steps is steadier",
    }
    return OptimizerConfig(
        name="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine", warmup_steps=steps, clip_norm=5.0, ema=decay
    ), reasons
