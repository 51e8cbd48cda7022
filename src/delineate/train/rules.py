"""The rules of the planner: from the numbers of a data set to settings, each with the reason that it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from delineate.config import AugmentConfig, InputConfig, LossTerm, OptimizerConfig
from delineate.data.dataset import Dataset, Record
from delineate.data.stats import DatasetStatistics
from delineate.weights.conventions import Outputs

Reasons = dict[str, str]

UPRIGHT_FORMATS = ("voc", "cityscapes")
UPRIGHT_WORDS = frozenset(
    (
        "person",
        "people",
        "pedestrian",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "bicycle",
        "bicyclist",
        "motorcycle",
        "road",
        "sidewalk",
        "pavement",
        "sky",
        "building",
        "house",
        "tree",
        "fence",
        "wall",
        "traffic",
        "dog",
        "cat",
        "horse",
        "cow",
        "sheep",
        "bird",
        "chair",
        "table",
        "sofa",
        "bottle",
        "cup",
        "tv",
        "monitor",
        "boat",
        "aeroplane",
    )
)
"""Words in the names of classes that photographs show upright."""


def choose_input(statistics: DatasetStatistics) -> tuple[InputConfig, Reasons]:
    """Colour, value range and normalisation."""
    s = statistics
    grey = s.colourless == 1.0
    top = _white(s)
    reasons = {
        "input.color": f"{s.colourless:.0%} of {s.sampled} pictures are colourless, so "
        + ("one channel holds all" if grey else "three channels are kept"),
        "input.value_range": f"values are {'/'.join(s.dtypes)} from {s.value_range[0]:.6g} to {s.value_range[1]:.6g}",
    }
    unit = f"the mean brightness of pictures varies by {s.brightness_spread:.2f} of the pixels' deviation"
    if len(s.dtypes) > 1:
        why = f"pictures are stored as {' and '.join(s.dtypes)}, so each is brought to mean 0 and deviation 1"
    elif "uint8" not in s.dtypes:
        why = f"{'/'.join(s.dtypes)} has no common white, so each picture is brought to mean 0 and deviation 1"
    elif s.sampled < 3:
        why = f"{s.sampled} picture(s) do not tell how bright the next will be, so each is brought to mean 0 and deviation 1"
    elif s.brightness_spread > 0.35:
        why = unit + " (more than 0.35), so each picture is brought to mean 0 and deviation 1"
    else:
        why = unit + " (at most 0.35), so all pictures share one mean and deviation"
    fixed = why.endswith("share one mean and deviation")
    reasons["input.normalization"] = why
    channels = 1 if grey else 3
    mean = _per_channel(s.mean, channels, top) if fixed else (0.0,) * channels
    std = _per_channel(s.std, channels, top) if fixed else (1.0,) * channels
    if fixed:
        reasons["input.mean"] = reasons["input.std"] = f"measured over {s.sampled} pictures"
    color: Literal["gray", "rgb"] = "gray" if grey else "rgb"
    normalization: Literal["fixed", "image"] = "fixed" if fixed else "image"
    return InputConfig(color=color, value_range=top, normalization=normalization, mean=mean, std=std), reasons


def choose_outputs(statistics: DatasetStatistics, model: str) -> tuple[Outputs, Reasons]:
    """What the network's channels mean: classes alone, or also the border between objects."""
    objects = statistics.objects
    if statistics.kind == "semantic" or objects is None or objects.count == 0:
        return "classes", {"model.outputs": f"the truth has {len(statistics.classes)} classes and no single objects"}
    if objects.touching <= 0.01:
        return "classes", {"model.outputs": f"{objects.touching:.1%} of objects touch another, so each connected piece is one"}
    touching = f"{objects.touching:.0%} of {objects.count} objects touch another"
    if model == "unet_original":
        return "classes", {"model.outputs": f"{touching}; as in the paper, a weight map in the loss keeps them apart"}
    return "border", {"model.outputs": f"{touching}, so the border between them is learned as a class of its own"}


def choose_patch(statistics: DatasetStatistics, *, fast: bool) -> tuple[int, int]:
    """Height and width of what the network sees in training: 256 (512 where `fast`), or what the pictures have.

    Multiples of 16 (32), the largest stride. Where objects are large, up to twice that: an object and its surroundings should
    fit, four times the diameter that three quarters of the objects stay below.
    """
    target, unit = (512, 32) if fast else (256, 16)
    if statistics.objects is not None and statistics.objects.count:
        wanted = 4 * statistics.objects.diameter[3]
        target = min(2 * target, max(target, 64 * math.ceil(wanted / 64)))
    height, width = (min(target, unit * math.ceil(side / unit)) for side in statistics.size_median)
    return height, width


def reason_for_patch(statistics: DatasetStatistics, patch: tuple[int, int], stride: int) -> str:
    """Why the patch has its size."""
    smallest, median, largest = ("x".join(map(str, size)) for size in _sizes(statistics))
    why = f"pictures have {smallest} to {largest} pixels (median {median})"
    if statistics.objects is not None and statistics.objects.count:
        why += f", three quarters of the objects a diameter below {statistics.objects.diameter[3]:.0f}"
    if statistics.size_min[0] < patch[0] or statistics.size_min[1] < patch[1]:
        why += "; smaller pictures are mirrored at their edges"
    return f"{why}; divisible by the stride {stride}"


def choose_depth(patch: tuple[int, int], *, fast: bool) -> tuple[int, str]:
    """Number of U-Net's levels: the coarsest map keeps at least 8 pixels a side."""
    levels = 1 + max(1, math.floor(math.log2(max(16, min(patch)) / 8)))
    depth = min(levels, 6 if fast else 5)
    coarsest = " x ".join(str(side >> (depth - 1)) for side in patch)
    return depth, f"the coarsest of {depth} maps then has {coarsest} pixels in a patch"


@dataclass(frozen=True, slots=True)
class Orientation:
    """Whether pictures have an upper side that must stay up."""

    upright: bool
    reason: str


def find_orientation(dataset: Dataset, statistics: DatasetStatistics, records: Sequence[Record]) -> Orientation:
    """Tell photographs, which have an upper side, from micrographs, which have none.

    Upright are data of keypoints, of street and everyday formats, of classes named like everyday things, and colour pictures
    whose upper, or lower, halves are the brighter ones in nine of ten (of at least 16) pictures.
    """
    if dataset.kind == "keypoint" or dataset.format in UPRIGHT_FORMATS:
        return Orientation(True, f"{dataset.format} data of {dataset.kind} kind are photographs with an upper side")
    if named := [name for name in statistics.classes if UPRIGHT_WORDS & set(name.lower().replace("_", " ").split())]:
        return Orientation(True, f"class '{named[0]}' stands upright in photographs")
    if statistics.colourless == 1.0:
        return Orientation(False, "colourless pictures of unnamed things, as from a microscope, have no upper side")
    upper = _brighter_upper_halves(records[:: max(1, len(records) // 32)][:32])
    share = max(upper, 1 - upper)
    if len(records) >= 16 and share >= 0.9:
        return Orientation(True, f"the same half, upper or lower, is the brighter one in {share:.0%} of the pictures")
    return Orientation(False, f"neither class names nor brightness (upper half brighter in {upper:.0%}) tell an upper side")


def choose_augmentation(
    statistics: DatasetStatistics, patch: tuple[int, int], orientation: Orientation
) -> tuple[AugmentConfig, Reasons]:
    """Random changes that leave the pictures plausible."""
    s = statistics
    turns = "all flips and turns" if not orientation.upright else "only left and right are exchanged, and small angles"
    strength = min(0.4, max(0.1, round(0.2 + s.brightness_spread / 2, 2)))
    deviation = s.std[0] / max(_white(s), 1e-12)
    background = max(s.class_pixels, default=1.0)
    reasons = {
        "augment.rotate90": f"{orientation.reason}: {turns}",
        "augment.elastic": "tissue and cells bend (the paper deforms a 3x3 grid by 10 pixels)"
        if not orientation.upright
        else "photographed things are rigid",
        "augment.brightness": f"pictures differ in brightness by {s.brightness_spread:.2f} of the deviation of {deviation:.2f}",
        "augment.foreground": f"the most frequent class has {background:.0%} of the pixels, so patches are drawn by class too",
    }
    augment = AugmentConfig(
        patch=patch,
        flip_horizontal=0.5,
        flip_vertical=0.0 if orientation.upright else 0.5,
        rotate90=not orientation.upright and patch[0] == patch[1],
        rotate=10.0 if orientation.upright else 15.0,
        scale=(0.75, 1.33) if orientation.upright else (0.8, 1.25),
        elastic=0.0 if orientation.upright else min(10.0, min(patch) / 25),
        brightness=strength,
        contrast=strength,
        gamma=(0.8, 1.25),
        noise=round(min(0.05, deviation / 8), 4),
        blur=1.0 if min(patch) >= 64 else 0.0,
        foreground=0.0 if background >= 1.0 else 0.33 if background < 0.95 else 0.5,
    )
    return augment, reasons


def choose_loss(statistics: DatasetStatistics, outputs: Outputs, model: str) -> tuple[tuple[LossTerm, ...], Reasons]:
    """Cross-entropy with Dice; class weights where classes are very unequal, border weights for `unet_original`."""
    s = statistics
    options: dict[str, Any] = {}
    name: Literal["cross_entropy", "border_cross_entropy"] = "cross_entropy"
    why = "cross-entropy has a gradient everywhere, Dice counts overlap whatever the size of a class"
    present = [share for share in s.class_pixels if share > 0]
    if model == "unet_original" and s.objects is not None and s.objects.touching > 0.01:
        name = "border_cross_entropy"
        why = f"{s.objects.touching:.0%} of objects touch, so the pixels between them weigh more, as in the paper"
    elif outputs == "classes" and len(present) > 2 and max(present) / min(present) > 50:
        options = {"class_weights": class_weights(s.class_pixels)}
        why = f"class shares range from {min(present):.2%} to {max(present):.0%}, so rare classes weigh more"
    terms = [LossTerm(name=name, options=options)]
    if len(present) < 2:
        why = "the truth shows a single class, for which Dice says nothing"
    elif len(s.classes) > 100:
        why += f"; no Dice, because most of {len(s.classes)} classes are absent from any one batch"
    else:
        terms.append(LossTerm(name="dice"))
    return tuple(terms), {"loss": why}


def class_weights(shares: Sequence[float]) -> list[float]:
    """Square root of median share over share (median-frequency balancing, softened), within 0.25 to 8; 1 for unseen classes.

    >>> class_weights([0.9, 0.09, 0.01, 0.0])
    [0.32, 1.0, 3.0, 1.0]
    """
    present = sorted(share for share in shares if share > 0)
    median = present[len(present) // 2]
    return [round(min(8.0, max(0.25, math.sqrt(median / share))), 2) if share > 0 else 1.0 for share in shares]


def choose_optimizer(model: str, batch: int, total_steps: int) -> tuple[OptimizerConfig, Reasons]:
    """Optimiser, schedule and averaging of weights for a run of `total_steps`."""
    steps = warmup(total_steps)
    reasons = {"optimizer.schedule": f"the rate rises for {steps} steps, then falls to 0 over the {total_steps} of the run"}
    if model == "unet_original":
        reasons["optimizer.name"] = "SGD with momentum 0.99, as in the paper"
        optimizer = OptimizerConfig(name="sgd", lr=1e-3, momentum=0.99, weight_decay=3e-5, warmup_steps=steps, clip_norm=12.0)
        return optimizer, reasons
    decay = ema_decay(total_steps)
    reasons["optimizer.name"] = "AdamW learns fast from random weights, without tuning its rate to the data"
    reasons["optimizer.lr"] = f"1e-3 suits batches of {batch} in a network with normalised activations"
    reasons["optimizer.ema"] = (
        f"the mean of the weights over about {1 / (1 - decay):.0f} steps is validated and kept: it is steadier"
    )
    return OptimizerConfig(name="adamw", lr=1e-3, weight_decay=1e-2, warmup_steps=steps, clip_norm=12.0, ema=decay), reasons


def ema_decay(total_steps: int) -> float:
    """Decay that averages over about the last 2 % of the run, from 10 to 1000 steps.

    >>> ema_decay(1000), ema_decay(100), ema_decay(10**6)
    (0.95, 0.9, 0.999)
    """
    return round(1 - 1 / min(1000.0, max(10.0, 0.02 * total_steps)), 4)


def warmup(total_steps: int) -> int:
    """5 % of the steps, at most 500."""
    return min(500, total_steps // 20)


def _white(statistics: DatasetStatistics) -> float:
    """The stored value of white: 255; of uint16 that of the bits in use (4095 of a 12-bit camera); of floats the largest."""
    if "uint16" in statistics.dtypes:
        bits = max(8, math.ceil(math.log2(statistics.value_range[1] + 1)))
        return float(2 ** min(16, bits + bits % 2) - 1)
    if "uint8" in statistics.dtypes:
        return 255.0
    return max(1.0, abs(statistics.value_range[0]), abs(statistics.value_range[1]))


def _per_channel(values: tuple[float, ...], channels: int, top: float) -> tuple[float, ...]:
    """Values of each channel as a share of white; never 0, because deviations are divided by."""
    expanded = values if len(values) == channels else values[:1] * channels
    return tuple(max(1e-4, round(value / top, 4)) for value in expanded)


def _sizes(statistics: DatasetStatistics) -> tuple[tuple[int, int], ...]:
    return statistics.size_min, statistics.size_median, statistics.size_max


def _brighter_upper_halves(records: Sequence[Record]) -> float:
    """Share of the pictures whose upper half has the larger mean."""
    from delineate.data.decode import decode_image

    brighter = 0
    for record in records:
        image = decode_image(record.image, record.frame).float()
        half = image.shape[1] // 2
        brighter += bool(image[:, :half].mean() > image[:, image.shape[1] - half :].mean())
    return brighter / max(1, len(records))
