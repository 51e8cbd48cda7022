"""Two predictions of the same pictures, number by number: which is better, by how much, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from delineate.metrics.bootstrap import DEFAULT_RESAMPLING, Resampling, compare_scores
from delineate.metrics.evaluation import Evaluator, plain
from delineate.metrics.measures import lower_is_better

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, slots=True)
class ComparedScore:
    """One number of A and B."""

    a: float
    b: float
    difference: float  # a - b
    low: float  # ends of the interval of the difference
    high: float
    p_value: float  # two-sided, of a difference at least this large if both are equally good
    better: float  # share of resamples in which A is better (smaller, where that is better); a tie counts half

    @property
    def decided(self) -> bool:
        """Whether the interval of the difference leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class ComparedScores:
    """All numbers that two predictions of the same pictures both have; made by `compare_evaluators`."""

    a: str
    b: str
    split: str
    pictures: int
    classes: tuple[str, ...]
    scores: dict[str, ComparedScore]  # by flat name
    resampling: Resampling
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; numbers that are not defined or infinite become null."""
        return plain(asdict(self))

    def table(self) -> Group:
        """Return the comparison as a table for a terminal."""
        from delineate.metrics.tables import comparison_table

        return comparison_table(self)

    def print(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console

        Console().print(self.table())


def compare_evaluators(
    a: Evaluator,
    b: Evaluator,
    names: tuple[str, str] = ("A", "B"),
    split: str = "all",
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> ComparedScores:
    """Compare what two evaluators gathered by a paired bootstrap: each resample draws the same pictures for both.

    Raises ValueError where their pictures are not the same, in the same order.

    >>> import numpy as np
    >>> from delineate.metrics.measures import Labelling
    >>> truth, right, wrong = (np.array([[0, 1, 1]]), np.array([[0, 1, 1]]), np.array([[0, 1, 0]]))
    >>> a, b = Evaluator(("background", "cell")), Evaluator(("background", "cell"))
    >>> for evaluator, found in ((a, right), (b, wrong)):
    ...     _ = evaluator.add("x", Labelling(found), Labelling(truth))
    >>> compare_evaluators(a, b).scores["iou/cell"].difference
    0.5
    """
    if [image.name for image in a.images] != [image.name for image in b.images]:
        raise ValueError("the two evaluators have different pictures, or another order of them")
    of_a, of_b = a.summary(), b.summary()
    compared = compare_scores(
        a.scores, b.scores, len(a.images), resampling, lower_is_better={name for name in of_a if lower_is_better(name)}
    )
    scores = {name: ComparedScore(of_a[name], of_b[name], *found) for name, found in compared.items()}
    notes = [
        f"only {name} has {', '.join(lonely[:4])}{' and more' if len(lonely) > 4 else ''}"
        for name, lonely in zip(names, ([n for n in of_a if n not in of_b], [n for n in of_b if n not in of_a]), strict=True)
        if lonely
    ]
    return ComparedScores(*names, split, len(a.images), a.classes, scores, resampling, tuple(notes))
