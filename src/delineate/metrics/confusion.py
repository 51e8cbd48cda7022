"""The confusion matrix: exact integer counts that stream over pictures and merge across processes, and the scores of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delineate.errors import DataError
from delineate.metrics.overlap import Overlap, ratio
from delineate.metrics.scores import ClassScores, Scores
from delineate.ops import native


class ConfusionMatrix(ClassScores):
    """Pixels of each pair (true class, predicted class), and the scores of a segmentation.

    `counts` is int64 [truth, prediction], so it stays exact where a float32 would stop at 2^24 pixels. Pixels whose truth is
    `ignore_index` are not counted, whatever is predicted there.

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
        settings = {"num_classes": num_classes, "ignore_index": ignore_index}
        super().__init__(np.zeros((num_classes, num_classes), np.int64), settings)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @classmethod
    def from_counts(cls, counts: NDArray[Any], ignore_index: int | None = 255) -> ConfusionMatrix:
        """Wrap counts (..., K, K) [truth, prediction]; any leading axes stay in the scores.

        >>> per_image = np.array([[[2, 0], [0, 2]], [[1, 1], [0, 0]]])
        >>> ConfusionMatrix.from_counts(per_image).pixel_accuracy()
        array([1. , 0.5])
        """
        return cls(counts.shape[-1], ignore_index).with_sums(counts)

    def update(self, prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor) -> None:
        """Add the pixels of one or more pictures: two arrays or tensors of class ids, of one shape and any integer types.

        Raises DataError naming the value when a truth is neither a class nor `ignore_index`, or when a prediction where the
        truth counts is not a class; nothing is added then. Tensors on a GPU are counted there.
        """
        if tuple(prediction.shape) != tuple(truth.shape):
            raise DataError(
                f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}; both must be the same"
            )
        self.sums = self.sums + _count(prediction, truth, self.num_classes, self.ignore_index)

    def __add__(self, other: Self) -> Self:
        total = self.with_sums(self.sums)
        total.merge(other)
        return total

    @property
    def overlap(self) -> Overlap[NDArray[Any]]:
        """Intersection and cardinalities of each class, (..., K)."""
        intersection = np.diagonal(self.counts, axis1=-2, axis2=-1)
        return Overlap(intersection, self.counts.sum(axis=-2), self.counts.sum(axis=-1))

    @property
    def counted(self) -> NDArray[Any]:
        """Counted pixels, (..., 1): the same for every class."""
        return self.counts.sum(axis=(-2, -1))[..., None]

    def pixel_accuracy(self) -> Scores:
        """Share of the counted pixels whose class is right, (...); NaN without pixels."""
        return ratio(np.trace(self.counts, axis1=-2, axis2=-1), self.counts.sum(axis=(-2, -1)))

    def normalised(self, by: Literal["truth", "prediction"] = "truth") -> Scores:
        """Shares (..., K, K): of the pixels of each true class where they were put, or of each prediction what they are.

        Rows sum to 1 with "truth" (recall on the diagonal), columns with "prediction" (precision); NaN where there are none.

        >>> ConfusionMatrix.from_counts(np.array([[3, 1], [0, 0]])).normalised()
        array([[0.75, 0.25],
               [ nan,  nan]])
        """
        if by not in ("truth", "prediction"):
            raise ValueError(f"by is {by!r}, expected 'truth' or 'prediction'")
        return ratio(self.counts, self.counts.sum(axis=-1 if by == "truth" else -2, keepdims=True))

    def confusions(self, classes: Sequence[str], limit: int = 10) -> list[dict[str, Any]]:
        """The most frequent errors, one row a pair of classes, the most pixels first.

        A row holds truth and prediction (names), pixels, share_of_class (of the true class's pixels) and share_of_errors (of
        all wrong pixels). Pairs without a pixel are left out.

        >>> matrix = ConfusionMatrix.from_counts(np.array([[90, 10, 0], [0, 40, 0], [5, 0, 5]]))
        >>> [(row["truth"], row["prediction"], row["share_of_class"]) for row in matrix.confusions(["sky", "sea", "sand"])]
        [('sky', 'sea', 0.1), ('sand', 'sky', 0.5)]
        """
        self._check_names(classes)
        wrong = self.counts * (1 - np.eye(self.num_classes, dtype=np.int64))
        total, of_class = int(wrong.sum()), self.counts.sum(axis=1)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = [(int(t), int(p)) for t, p in zip(*np.unravel_index(order, wrong.shape), strict=True)]
        return [
            {
                "truth": classes[t],
                "prediction": classes[p],
                "pixels": int(wrong[t, p]),
                "share_of_class": float(wrong[t, p] / of_class[t]),
                "share_of_errors": float(wrong[t, p] / total),
            }
            for t, p in pairs
            if wrong[t, p]
        ]

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


_CHUNK = 1 << 18
"""Pixels counted at a time: the intermediate arrays stay in the processor's cache."""


def _count(
    prediction: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor, classes: int, ignore: int | None
) -> NDArray[np.int64]:
    """Counts (K, K) of one update.

    One histogram over all pairs of values that a byte can hold, ignored and illegal ones included, counts and checks at once;
    selecting the valid pixels first would take twice the time. The native kernel knows the classes and needs fewer bins, but
    cannot name an illegal value.
    """
    outside = max(256, classes, 0 if ignore is None else ignore + 1)  # stands for every value from there on, and below 0
    if (
        isinstance(prediction, Tensor)
        and isinstance(truth, Tensor)
        and prediction.device == truth.device != torch.device("cpu")
    ):
        joint = _joint_on_device(prediction, truth, outside)
    else:
        p, t = _flat(prediction), _flat(truth)
        if native.available and classes <= native.MOST_CLASSES:
            known = native.joint_histogram(t, p, classes, ignore)
            if not known[-1].any() and not known[:classes, -1].any():
                return known[:classes, :classes].copy()
        joint = _joint(p, t, outside)
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
