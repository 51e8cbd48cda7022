"""The confusion matrix: exact integer counts that stream over pictures and merge across processes, and the scores of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.errors import DataError
from delineate.metrics.overlap import Absent, Overlap, absent_score, nan_mean, ratio

Presence = Literal["union", "gt"]
Scores = NDArray[np.float64]


class ConfusionMatrix:
    """Pixels of each pair (true class, predicted class), and the scores of a segmentation.

    `counts` is int64 [truth, prediction], so it stays exact where a float32 would stop at 2^24 pixels. Pixels whose truth is
    `ignore_index` are not counted, whatever is predicted there.

    Two questions that packages answer differently are arguments of the scores:
    - `presence`: a class exists if it occurs in truth or prediction ("union": predicted but not true scores 0, as in
      Cityscapes' scripts and MMSegmentation), or only if it occurs in the truth ("gt": left out, as in Detectron2).
    - `absent`: what a class that does not exist scores: "nan" (left out of every mean), 0 or 1.

    The counts may have leading axes, one matrix a picture for example: scores then have them too (`from_counts`).

    >>> matrix = ConfusionMatrix(3)
    >>> matrix.update(prediction=np.array([0, 0, 1, 1]), truth=np.array([0, 0, 0, 255]))
    >>> matrix.iou()
    array([0.66666667, 0.        ,        nan])
    >>> float(matrix.mean_iou()), float(matrix.mean_iou(presence="gt"))
    (0.3333333333333333, 0.6666666666666666)
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if ignore_index is not None and not 0 <= ignore_index < 1 << 16:
            raise ValueError(f"ignore_index is {ignore_index}, expected None or 0..65535")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    @classmethod
    def from_counts(cls, counts: NDArray[Any], ignore_index: int | None = 255) -> ConfusionMatrix:
        """Wrap counts (..., K, K) [truth, prediction]; any leading axes stay in the scores.

        >>> per_image = np.array([[[2, 0], [0, 2]], [[1, 1], [0, 0]]])
        >>> ConfusionMatrix.from_counts(per_image).pixel_accuracy()
        array([1. , 0.5])
        """
        if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
            raise ValueError(f"counts have shape {counts.shape}, expected (..., K, K)")
        matrix = cls(counts.shape[-1], ignore_index)
        matrix.counts = counts
        return matrix

    def update(self, prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor) -> None:
        """Add the pixels of one or more pictures: two arrays or tensors of class ids, of one shape and any integer types.

        Raises DataError naming the value when a truth is neither a class nor `ignore_index`, or when a prediction where the
        truth counts is not a class; nothing is added then. Tensors on a GPU are counted there.
        """
        if tuple(prediction.shape) != tuple(truth.shape):
            raise DataError(
                f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}; both must be the same"
            )
        self.counts = self.counts + _count(prediction, truth, self.num_classes, self.ignore_index)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of `other`, made of other pictures or by another process."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                f"cannot merge {other.num_classes} classes (ignoring {other.ignore_index}) into "
                f"{self.num_classes} (ignoring {self.ignore_index})"
            )
        self.counts = self.counts + other.counts

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        total = ConfusionMatrix.from_counts(self.counts, self.ignore_index)
        total.merge(other)
        return total

    @property
    def state(self) -> Tensor:
        """The counts as an int64 tensor; assign what an all-reduce (sum) of it gives to merge the processes of a run."""
        return torch.from_numpy(self.counts)

    @state.setter
    def state(self, value: Tensor) -> None:
        counts = value.cpu().numpy()
        if counts.dtype != np.int64 or counts.shape != self.counts.shape:
            raise ValueError(f"state is {counts.dtype} {counts.shape}, expected int64 {self.counts.shape}")
        self.counts = counts

    @property
    def overlap(self) -> Overlap[NDArray[Any]]:
        """Intersection and cardinalities of each class, (..., K)."""
        intersection = np.diagonal(self.counts, axis1=-2, axis2=-1)
        return Overlap(intersection, self.counts.sum(axis=-2), self.counts.sum(axis=-1))

    def iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """IoU of each class, (..., K): n_cc / (sum_j n_cj + sum_i n_ic - n_cc)."""
        return self._of_existing(self.overlap.iou(), absent, presence)

    def dice(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Dice (F1) of each class, (..., K)."""
        return self._of_existing(self.overlap.dice(), absent, presence)

    def precision(self, *, absent: Absent = "nan") -> Scores:
        """Share of the pixels predicted as a class that are of it, (..., K); `absent` for a class that is never predicted."""
        return self.overlap.precision(empty=absent_score(absent))

    def recall(self, *, absent: Absent = "nan") -> Scores:
        """Share of the pixels of a class that are predicted as it (its accuracy), (..., K); `absent` without true pixels."""
        return self.overlap.recall(empty=absent_score(absent))

    def mean_iou(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `iou` over the classes that are not NaN, (...); NaN when all are."""
        return nan_mean(self.iou(absent=absent, presence=presence))

    def mean_dice(self, *, absent: Absent = "nan", presence: Presence = "union") -> Scores:
        """Mean of `dice` over the classes that are not NaN, (...)."""
        return nan_mean(self.dice(absent=absent, presence=presence))

    def mean_accuracy(self, *, absent: Absent = "nan") -> Scores:
        """Mean of `recall` over the classes that are not NaN, (...)."""
        return nan_mean(self.recall(absent=absent))

    def pixel_accuracy(self) -> Scores:
        """Share of the counted pixels whose class is right, (...); NaN without pixels."""
        return ratio(np.trace(self.counts, axis1=-2, axis2=-1), self.counts.sum(axis=(-2, -1)))

    def frequency_weighted_iou(self) -> Scores:
        """IoU averaged with each class's share of the true pixels as its weight, (...); NaN without pixels."""
        truth = self.overlap.truth
        return ratio((truth * self.overlap.iou(empty=0.0)).sum(axis=-1), truth.sum(axis=-1))

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class: name, iou, dice, precision, recall (NaN where not defined), truth_pixels, predicted_pixels."""
        self._check_names(classes)
        overlap = self.overlap
        columns = {
            "iou": self.iou(),
            "dice": self.dice(),
            "precision": self.precision(),
            "recall": self.recall(),
            "truth_pixels": overlap.truth,
            "predicted_pixels": overlap.prediction,
        }
        return [{"name": name} | {key: column[k].item() for key, column in columns.items()} for k, name in enumerate(classes)]

    def summary(self, classes: Sequence[str] | None = None) -> dict[str, float]:
        """The means under their names, and with `classes` also "iou/NAME" and "dice/NAME"; NaN where not defined."""
        means = {
            "mean_iou": self.mean_iou(),
            "mean_dice": self.mean_dice(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
        }
        flat = {name: float(value) for name, value in means.items()}
        if classes is not None:
            self._check_names(classes)
            flat |= {f"iou/{name}": float(value) for name, value in zip(classes, self.iou(), strict=True)}
            flat |= {f"dice/{name}": float(value) for name, value in zip(classes, self.dice(), strict=True)}
        return flat

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads back."""
        return json.dumps({"ignore_index": self.ignore_index, "counts": self.counts.tolist()})

    @classmethod
    def from_json(cls, text: str) -> ConfusionMatrix:
        """Rebuild from `to_json`'s text.

        >>> ConfusionMatrix.from_json(ConfusionMatrix(2).to_json()).counts.tolist()
        [[0, 0], [0, 0]]
        """
        content = json.loads(text)
        return cls.from_counts(np.array(content["counts"], np.int64), content["ignore_index"])

    def _of_existing(self, scores: Scores, absent: Absent, presence: Presence) -> Scores:
        if presence not in ("union", "gt"):
            raise ValueError(f"presence is {presence!r}, expected 'union' or 'gt'")
        exists = (self.overlap.union if presence == "union" else self.overlap.truth) > 0
        return np.where(exists, scores, absent_score(absent))

    def _check_names(self, classes: Sequence[str]) -> None:
        if len(classes) != self.num_classes or self.counts.ndim != 2:
            raise ValueError(f"{len(classes)} names for counts of shape {self.counts.shape}")


_CHUNK = 1 << 18
"""Pixels counted at a time: the intermediate arrays stay in the processor's cache."""


def _count(
    prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor, classes: int, ignore: int | None
) -> NDArray[np.int64]:
    """Counts (K, K) of one update.

    One histogram over all pairs of values that a byte can hold, ignored and illegal ones included, counts and checks at once;
    selecting the valid pixels first would take twice the time.
    """
    outside = max(256, classes, 0 if ignore is None else ignore + 1)  # stands for every value from there on, and below 0
    if (
        isinstance(prediction, Tensor)
        and isinstance(truth, Tensor)
        and prediction.device == truth.device != torch.device("cpu")
    ):
        joint = _joint_on_device(prediction, truth, outside)
    else:
        joint = _joint(_flat(prediction), _flat(truth), outside)
    strange = joint.sum(axis=1)
    strange[:classes] = 0
    if ignore is not None:
        joint[ignore] = strange[ignore] = 0
    if strange.any():
        raise DataError(
            f"the truth holds {_seen(truth, strange)}, but the classes are 0..{classes - 1} and {ignore} is ignored"
        )
    strange = joint.sum(axis=0)
    strange[:classes] = 0
    if strange.any():
        raise DataError(f"the prediction holds {_seen(prediction, strange)}, but the classes are 0..{classes - 1}")
    return joint[:classes, :classes].copy()


def _joint(prediction: NDArray[Any], truth: NDArray[Any], outside: int) -> NDArray[np.int64]:
    side = outside + 1
    joint = np.zeros(side * side, np.int64)
    chunk = max(_CHUNK, joint.size)
    for start in range(0, truth.size, chunk):
        codes = _codes(truth[start : start + chunk], outside)
        codes *= side
        codes += _codes(prediction[start : start + chunk], outside)
        joint += np.bincount(codes, minlength=joint.size)
    return joint.reshape(side, side)


def _codes(values: NDArray[Any], outside: int) -> NDArray[np.int64]:
    """A new array of the values, those that are negative or large replaced by `outside`."""
    codes = values.astype(np.int64)
    if values.itemsize > 1 or values.dtype.kind == "i":
        unsigned = codes.view(np.uint64)  # negative numbers are the largest of these
        np.minimum(unsigned, np.uint64(outside), out=unsigned)
    return codes


def _joint_on_device(prediction: Tensor, truth: Tensor, outside: int) -> NDArray[np.int64]:
    side = outside + 1
    p, t = (torch.where((x < 0) | (x.long() > outside), outside, x.long()) for x in (prediction, truth))
    return torch.bincount((t * side + p).flatten(), minlength=side * side).cpu().numpy().reshape(side, side)  # synchronises


def _flat(values: NDArray[Any] | Tensor) -> NDArray[Any]:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biu":
        raise DataError(f"class ids have dtype {array.dtype}, expected integers; take the arg-max of scores first")
    return array.reshape(-1)


def _seen(values: NDArray[Any] | Tensor, strange: NDArray[np.int64]) -> int:
    """The smallest value that a message should name: one with a count in `strange`, whose last entry stands for all others."""
    code = int(np.flatnonzero(strange)[0])
    if code < len(strange) - 1:
        return code
    flat = _flat(values)
    return int(flat[(flat < 0) | (flat >= code)][0])
