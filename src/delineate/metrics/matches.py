"""`Matches`: what each picture adds to average precision, so that any set or draw of pictures can be scored without matching.

From it come COCO's curves, and the average precision of thousands of resampled sets of pictures: a cumulative sum in which
each detection weighs as often as its picture was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DataError
from delineate.metrics.average_precision import ANY_CATEGORY, ApSettings, Category, Curves
from delineate.metrics.bootstrap import Draws
from delineate.metrics.drawn_precision import EPSILON, drawn_scores

ImageId = int | str
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """N detections, each a hit, a miss or not counted at T thresholds and A areas, and the true objects of I pictures.

    Detections are sorted by class, picture and rank; at most the largest `max_detections` of a class in a picture are kept.
    """

    settings: ApSettings
    categories: tuple[Category, ...]  # K
    images: tuple[ImageId, ...]  # I, ascending: their order decides between equal scores, as in COCO
    image: Ints  # (N,) index into images
    category: Ints  # (N,) index into categories
    rank: Ints  # (N,) place among the detections of its class in its picture, from 0
    score: NDArray[np.float64]  # (N,)
    hit: Bools  # (N, A, T) matched to a true object that counts
    miss: Bools  # (N, A, T) a false positive; neither: not counted
    truth_image: Ints  # (E,) pictures and classes with true objects or detections
    truth_category: Ints  # (E,)
    truths: Ints  # (E, A) true objects that count

    @classmethod
    def empty(cls, settings: ApSettings, categories: Sequence[Category], images: Sequence[ImageId] = ()) -> Matches:
        """No objects at all, in the pictures `images`."""
        none = np.zeros(0, np.int64)
        areas, thresholds = len(settings.areas), len(settings.iou_thresholds)
        flags = np.zeros((0, areas, thresholds), bool)
        return cls(
            settings,
            _told_apart(categories, settings),
            tuple(sorted(images)),
            none,
            none,
            none,
            np.zeros(0),
            flags,
            flags,
            none,
            none,
            np.zeros((0, areas), np.int64),
        )

    def merge(self, other: Matches) -> Matches:
        """Return what both know together.

        A picture that both know, as when a sampler pads the last batch, counts once. Raises `DataError` where the two differ
        about it, ValueError where settings or classes differ.
        """
        return merge_matches([self, other])

    def with_categories(self, categories: Sequence[Category]) -> Matches:
        """Return the same among `categories`, by id, which must hold those known so far."""
        if not self.settings.per_class:
            return self
        place = {category.id: k for k, category in enumerate(categories)}
        moved = np.array([place[category.id] for category in self.categories], np.int64)
        columns = {"category": moved[self.category], "truth_category": moved[self.truth_category]}
        return replace(self, categories=tuple(categories), **columns)

    def of_images(self, images: Sequence[ImageId]) -> Matches:
        """Return the part about these pictures, each of which must be known."""
        wanted = set(images)
        kept = np.array([image in wanted for image in self.images], bool)
        place = np.cumsum(kept) - 1
        rows, truth = kept[self.image], kept[self.truth_image]
        picked: dict[str, Any] = {name: getattr(self, name)[rows] for name in _OF_DETECTIONS}
        picked |= {name: getattr(self, name)[truth] for name in _OF_TRUTHS}
        picked["image"], picked["truth_image"] = place[picked["image"]], place[picked["truth_image"]]
        return replace(self, images=tuple(i for i in self.images if i in wanted), **picked)

    def curves(self) -> Curves:
        """Return precision, recall and scores, bit for bit those of pycocotools."""
        s = self.settings
        thresholds, recalls, areas, counts = map(len, (s.iou_thresholds, s.recalls, s.areas, s.max_detections))
        shape = (thresholds, recalls, len(self.categories), areas, counts)
        precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
        recall = np.full((thresholds, *shape[2:]), -1.0)
        positives = self._positives()
        for k, rows in enumerate(self.rows()):
            for m, limit in enumerate(s.max_detections):
                ranked = self.ranked(rows, limit)
                for a in np.flatnonzero(positives[k]):
                    curve = _curve(self, ranked, int(a), int(positives[k, a]))
                    precision[:, :, k, a, m], recall[:, k, a, m], scores[:, :, k, a, m] = curve
        return Curves(s, self.categories, precision, recall, scores)

    def scores(self, draws: Draws) -> dict[str, NDArray[np.float64]]:
        """Return the numbers of `Curves.summary` of each draw of the pictures, (R,) by name; NaN where nothing counts.

        `draws` (R, I): how often each picture of `images` is drawn. A draw of one each gives `curves().summary()`. Where
        detections of a picture have equal scores, all copies of one come before those of the next.
        """
        return drawn_scores(self, draws)

    def _positives(self) -> Ints:
        """(K, A) true objects that count."""
        total = np.zeros((len(self.categories), len(self.settings.areas)), np.int64)
        np.add.at(total, self.truth_category, self.truths)
        return total

    def rows(self) -> Iterator[Ints]:
        """The rows of each class."""
        ends = np.searchsorted(self.category, np.arange(len(self.categories) + 1))
        for start, end in pairwise(ends):
            yield np.arange(start, end)

    def ranked(self, rows: Ints, limit: int) -> Ints:
        """The rows that count among `limit` of a picture, from the best score down; equal scores in the order of pictures."""
        rows = rows[self.rank[rows] < limit]
        return rows[np.argsort(-self.score[rows], kind="stable")]


_OF_DETECTIONS = ("image", "category", "rank", "score", "hit", "miss")
_OF_TRUTHS = ("truth_image", "truth_category", "truths")


def merge_matches(parts: Sequence[Matches]) -> Matches:
    """Return what all `parts`, at least one, know together; see `Matches.merge`."""
    first = parts[0]
    if any((part.settings, part.categories) != (first.settings, first.categories) for part in parts):
        raise ValueError("only matches of the same settings and classes can be merged")
    known: set[ImageId] = set()
    fresh = []
    for number, part in enumerate(parts):
        if repeated := known.intersection(part.images):
            _check_repeated(parts[:number], part, repeated)
            part = part.of_images([image for image in part.images if image not in repeated])
        known.update(part.images)
        fresh.append(part)
    images = tuple(sorted(known, key=lambda image: (isinstance(image, str), image)))
    place = {image: index for index, image in enumerate(images)}
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in fresh]) for name in (*_OF_DETECTIONS, *_OF_TRUTHS)
    }
    for name in ("image", "truth_image"):
        moved = [np.array([place[i] for i in part.images], np.int64)[getattr(part, name)] for part in fresh]
        joined[name] = np.concatenate(moved)
    order = np.lexsort((joined["rank"], joined["image"], joined["category"]))
    joined |= {name: joined[name][order] for name in _OF_DETECTIONS}
    return Matches(first.settings, first.categories, images, **joined)


def _check_repeated(earlier: Sequence[Matches], part: Matches, repeated: set[ImageId]) -> None:
    for image in repeated:
        before = next(p for p in earlier if image in p.images).of_images([image])
        now = part.of_images([image])
        if not all(np.array_equal(getattr(before, n), getattr(now, n)) for n in (*_OF_DETECTIONS, *_OF_TRUTHS)):
            raise DataError(f"image {image!r} was measured twice, with different objects; give each picture once")


def _curve(matches: Matches, ranked: Ints, area: int, positives: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Precision (T, R), recall (T,) and scores (T, R) of one class, as pycocotools' `accumulate` defines them."""
    wanted = np.array(matches.settings.recalls)
    hits = np.cumsum(matches.hit[ranked, area], axis=0, dtype=np.float64).T  # (T, n)
    misses = np.cumsum(matches.miss[ranked, area], axis=0, dtype=np.float64).T
    precision = hits / (misses + hits + EPSILON)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / positives
    at, scores = np.zeros((len(hits), len(wanted))), np.zeros((len(hits), len(wanted)))
    for t, reached in enumerate(recall):
        place = np.searchsorted(reached, wanted, side="left")
        inside = place < len(ranked)
        at[t, inside] = envelope[t, place[inside]]
        scores[t, inside] = matches.score[ranked[place[inside]]]
    return at, recall[:, -1] if len(ranked) else np.zeros(len(hits)), scores


def matches_of(
    entries: Sequence[dict[str, Any]], settings: ApSettings, categories: Sequence[Category], images: Sequence[ImageId]
) -> Matches:
    """Gather what a COCO-like evaluator found: an entry for each class, area and picture that has objects.

    `entries` bear COCOeval's names: image_id (index into `images`), category_id, aRng, dtScores, `matched` and dtIgnore (T, D),
    gtIgnore. A class and picture has an entry for each area, or none.
    """
    categories = _told_apart(categories, settings)
    by_area: list[list[dict[str, Any]]] = [[] for _ in settings.areas]
    index = {(low, high): a for a, (_, low, high) in enumerate(settings.areas)}
    place = {category.id: k for k, category in enumerate(categories)}
    for entry in sorted(entries, key=lambda entry: (place[entry["category_id"]], entry["image_id"])):
        by_area[index[tuple(entry["aRng"])]].append(entry)
    first = by_area[0]
    if not first:
        return Matches.empty(settings, categories, images)
    found = np.array([len(e["dtScores"]) for e in first], np.int64)
    truth_image = np.array([e["image_id"] for e in first], np.int64)
    truth_category = np.array([place[e["category_id"]] for e in first], np.int64)
    starts = np.cumsum(found) - found
    size = (len(settings.iou_thresholds), int(found.sum()))
    matched, ignored = (np.stack([_flags(area, key, size) for area in by_area], axis=1) for key in ("matched", "dtIgnore"))
    counted = [[np.count_nonzero(np.logical_not(e["gtIgnore"])) for e in area] for area in by_area]
    return Matches(
        settings,
        categories,
        tuple(images),
        np.repeat(truth_image, found),
        np.repeat(truth_category, found),
        np.arange(found.sum()) - np.repeat(starts, found),
        np.concatenate([np.asarray(e["dtScores"], np.float64) for e in first]),
        matched & ~ignored,
        ~matched & ~ignored,
        truth_image,
        truth_category,
        np.array(counted, np.int64).T,
    )


def _told_apart(categories: Sequence[Category], settings: ApSettings) -> tuple[Category, ...]:
    return tuple(categories) if settings.per_class else (ANY_CATEGORY,)


def _flags(entries: Sequence[dict[str, Any]], key: str, size: tuple[int, int]) -> Bools:
    """(N, T) flags of the detections of all entries; `size` (T, N)."""
    flags = np.empty(size, bool)
    for t in range(len(flags)):
        flags[t] = np.fromiter(chain.from_iterable(e[key][t] for e in entries), bool, count=size[1])
    return flags.T
