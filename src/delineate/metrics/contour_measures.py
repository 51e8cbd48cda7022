"""Numbers of outlines and centrelines over pictures, class by class, as measures for `Evaluator`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from delineate.errors import ConfigError, suggest
from delineate.metrics.bootstrap import Draws, mean_score
from delineate.metrics.centerline import centerline_overlap
from delineate.metrics.class_masks import Mask, class_masks
from delineate.metrics.overlap import nan_mean
from delineate.metrics.surface import Definition, Percentile, check_spacing, surface_distances

if TYPE_CHECKING:
    from delineate.metrics.measures import Labelling, Scores

Missing = Literal["diagonal", "inf", "nan"]

_NUMBERS = ("hd", "hd95", "assd", "nsd", "surface_missing")


class SurfaceMeasure:
    """Surface distances of each class: "hd", "hd95", "assd", "nsd" and "surface_missing", and the same as "hd95/NAME".

    A number is measured in each picture where the class occurs, in truth or prediction; that of a class is the mean over
    pictures, and the one without a name the mean over classes. A class called "background" is left out. Maps and ignored pixels
    as in `class_masks`, the definitions as in `surface_distances`.

    `spacing`: size of a pixel, (rows, columns) or one number; `tolerance`: of "nsd", in its unit. `missing`: what a distance is
    in a picture where truth or prediction lacks the class: the "diagonal" of the picture, "inf", or "nan", which leaves the
    picture out and so rewards a method for finding nothing. "nsd" is 0 there, and "surface_missing" the share of such pictures.

    >>> from delineate.metrics.measures import Labelling
    >>> truth = np.zeros((30, 40), int)
    >>> truth[5:20, 5:20] = 1
    >>> measure = SurfaceMeasure(("background", "cell"), tolerance=1)
    >>> picture = measure.update(Labelling(np.roll(truth, 2, axis=1)), Labelling(truth))
    >>> picture["hd95"], picture["surface_missing"]
    (2.0, 0.0)
    >>> measure.update(Labelling(np.zeros((30, 40), int)), Labelling(truth))["hd95/cell"]
    50.0
    >>> measure.scores(np.ones((1, 2)))["hd95"]
    array([26.])
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int = 255,
        *,
        spacing: float | Sequence[float] = 1.0,
        tolerance: float = 2.0,
        surface: Definition = "voxels",
        variant: Percentile = "directed",
        missing: Missing = "diagonal",
    ) -> None:
        if missing not in ("diagonal", "inf", "nan"):
            raise ConfigError(f"missing is {missing!r}, expected 'diagonal', 'inf' or 'nan'")
        if not tolerance >= 0:
            raise ConfigError(f"tolerance {tolerance}: expected a distance of at least 0")
        self.classes, self.ignore_index = tuple(classes), ignore_index
        self.spacing = check_spacing(spacing, 2)
        self.tolerance = tolerance
        self.surface: Definition = surface
        self.variant: Percentile = variant
        self.missing: Missing = missing
        self._values: list[NDArray[np.float64]] = []  # (K, 5) of each picture; NaN where the class is in neither map

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Measure the outlines of a picture; raises `DataError` where sizes differ or a value is no class."""
        values = np.full((len(self.classes), len(_NUMBERS)), np.nan)
        for k, p, t in class_masks(prediction.semantic, truth.semantic, len(self.classes), self.ignore_index):
            if self.classes[k] != "background":
                values[k] = self._measure(p, t)
        self._values.append(values)
        return {name: float(score[0]) for name, score in self._of(values[None], np.ones((1, 1))).items()}

    def scores(self, draws: Draws) -> Scores:
        """Means over pictures of each class, and over classes."""
        return self._of(np.stack(self._values), draws)

    def _measure(self, prediction: Mask, truth: Mask) -> list[float]:
        """The numbers of one class in one picture."""
        found = surface_distances(prediction, truth, spacing=self.spacing, surface=self.surface)
        distances = [found.hausdorff(), found.hausdorff(95, self.variant), found.average_symmetric()]
        if found.one_empty:
            diagonal = math.hypot(*(side * step for side, step in zip(truth.shape, self.spacing, strict=True)))
            distances = [{"diagonal": diagonal, "inf": math.inf, "nan": math.nan}[self.missing]] * 3
        return [*distances, found.normalised_surface_dice(self.tolerance), float(found.one_empty)]

    def _of(self, values: NDArray[np.float64], draws: Draws) -> Scores:
        """Scores (R,) of values (N, K, 5)."""
        scores: Scores = {}
        for m, number in enumerate(_NUMBERS):
            of_classes = np.stack([mean_score(draws, values[:, k, m]) for k in range(len(self.classes))], axis=-1)
            scores[number] = nan_mean(of_classes)
            named = [(k, name) for k, name in enumerate(self.classes) if name != "background"]
            scores |= {f"{number}/{name}": of_classes[:, k] for k, name in named}
        return scores


class CenterlineMeasure:
    """clDice of the classes that are tubes, as "cldice/NAME": the mean over the pictures where the class occurs.

    `tubes`: names of classes. A class in only one of truth and prediction scores 0 in that picture.

    >>> from delineate.metrics.measures import Labelling
    >>> truth = np.zeros((9, 20), int)
    >>> truth[3:6, 2:18] = 1
    >>> measure = CenterlineMeasure(("background", "vessel"), ["vessel"])
    >>> measure.update(Labelling(truth), Labelling(truth))
    {'cldice/vessel': 1.0}
    """

    def __init__(self, classes: Sequence[str], tubes: Sequence[str], ignore_index: int = 255) -> None:
        for name in tubes:
            if name not in classes:
                raise ConfigError(
                    f"clDice of '{name}': not a class; expected one of {', '.join(classes)}{suggest(name, list(classes))}"
                )
        self.classes, self.tubes, self.ignore_index = tuple(classes), tuple(dict.fromkeys(tubes)), ignore_index
        self._values: list[dict[str, float]] = []

    def update(self, prediction: Labelling, truth: Labelling) -> dict[str, float]:
        """Compare the centrelines of a picture; raises `DataError` where sizes differ or a value is no class."""
        row = {f"cldice/{name}": math.nan for name in self.tubes}
        for k, p, t in class_masks(prediction.semantic, truth.semantic, len(self.classes), self.ignore_index):
            if self.classes[k] in self.tubes:
                row[f"cldice/{self.classes[k]}"] = centerline_overlap(p, t).dice()
        self._values.append(row)
        return row

    def scores(self, draws: Draws) -> Scores:
        """Means over pictures."""
        names = [f"cldice/{name}" for name in self.tubes]
        return {name: mean_score(draws, np.array([row[name] for row in self._values])) for name in names}
