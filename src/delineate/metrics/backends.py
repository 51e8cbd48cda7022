"""Who matches detections to truth: hotcoco, fast, or pycocotools, the reference; one protocol for both."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Literal, Protocol

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from delineate.errors import ConfigError, DataError, suggest
from delineate.metrics.average_precision import ANY_CATEGORY, ApSettings, Category, Curves
from delineate.metrics.boundary import min_boundary_iou_matrix
from delineate.metrics.coco_input import CocoData
from delineate.metrics.matches import Matches, matches_of, merge_matches

BackendName = Literal["hotcoco", "pycocotools"]
_ARRAYS = ("precision", "recall", "scores")


class Backend(Protocol):
    """Matches detections to truth and counts."""

    in_place: bool  # whether it reads files itself

    def curves(self, data: CocoData, settings: ApSettings) -> Curves:
        """Return precision and recall over all images."""
        ...

    def matches(self, data: CocoData, settings: ApSettings) -> Matches:
        """Return what each image adds."""
        ...


def backend_for(name: str, settings: ApSettings) -> Backend:
    """Return the backend of this name; boundaries, which hotcoco has not, always come from pycocotools.

    Raises `ConfigError` for another name.
    """
    names = ("hotcoco", "pycocotools")
    if name not in names:
        raise ConfigError(f"backend {name!r}: expected one of {', '.join(names)}{suggest(name, names)}")
    return HotcocoBackend() if name == "hotcoco" and settings.iou_type != "boundary" else PycocotoolsBackend()


class HotcocoBackend:
    """hotcoco: compiled, on all cores, the same arrays as pycocotools bit for bit (the tests hold it to that)."""

    in_place = True

    def curves(self, data: CocoData, settings: ApSettings) -> Curves:
        evaluator = self._evaluator(data, settings)
        evaluator.evaluate()
        evaluator.accumulate()
        return _curves(evaluator.eval, settings, data.categories)

    def matches(self, data: CocoData, settings: ApSettings) -> Matches:
        evaluator = self._evaluator(data, settings)
        parts = [Matches.empty(settings, data.categories)]
        for start in range(0, len(data.image_ids), _IMAGES):
            images = data.image_ids[start : start + _IMAGES]
            evaluator.params.img_ids = list(images)
            evaluator.evaluate()
            place = {image: index for index, image in enumerate(images)}
            entries = [_entry(entry, place, settings) for entry in evaluator.eval_imgs]
            parts.append(matches_of(entries, settings, data.categories, data.names[start : start + _IMAGES]))
        return merge_matches(parts)

    def _evaluator(self, data: CocoData, settings: ApSettings) -> Any:
        detections = data.detections
        try:
            truth = hotcoco.COCO(data.truth)
            found = truth.load_res(str(detections) if isinstance(detections, Path) else detections)
        except ValueError as error:  # what our checks leave to it, such as the counts of a run-length code
            where = f"{data.truth} or {detections}: " if isinstance(data.truth, Path) else ""
            raise DataError(f"{where}{error}") from error
        evaluator = hotcoco.COCOeval(truth, found, settings.iou_type, lvis_style=settings.federated)
        params = evaluator.params
        params.iou_thrs, params.rec_thrs = list(settings.iou_thresholds), list(settings.recalls)
        params.max_dets, params.use_cats = list(settings.max_detections), settings.per_class
        params.area_rng = [[low, high] for _, low, high in settings.areas]
        params.area_rng_lbl = [name for name, *_ in settings.areas]
        if settings.iou_type == "keypoints":
            params.kpt_oks_sigmas = list(settings.sigmas)
        return evaluator


_IMAGES = 256
"""Images matched at a time: hotcoco hands its matches over as Python's numbers, which take two hundred times their size."""


def _entry(entry: dict[str, Any], place: dict[int, int], settings: ApSettings) -> dict[str, Any]:
    """hotcoco's entry of a class, area and image under pycocotools' names; its -1 is that of 64 bits without a sign."""
    category = entry["category_id"] if settings.per_class else ANY_CATEGORY.id
    return entry | {"image_id": place[entry["image_id"]], "category_id": category, "matched": entry["dtMatched"]}


class PycocotoolsBackend:
    """pycocotools, with boundaries and LVIS's federated rules added: slow, and the reference."""

    in_place = False

    def curves(self, data: CocoData, settings: ApSettings) -> Curves:
        evaluator = self._evaluator(data, settings)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
        return _curves(evaluator.eval, settings, data.categories)

    def matches(self, data: CocoData, settings: ApSettings) -> Matches:
        evaluator = self._evaluator(data, settings)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
        entries = [entry | {"matched": entry["dtMatches"] != 0} for entry in evaluator.evalImgs if entry is not None]
        return matches_of(entries, settings, data.categories, data.names)

    def _evaluator(self, data: CocoData, settings: ApSettings) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth = _indexed(data.truth)
            assert not isinstance(data.detections, Path)  # only with `in_place`
            detections = [dict(d) for d in data.detections]
            found = truth.loadRes(detections) if detections else _indexed({**truth.dataset, "annotations": []})
        evaluator = _Evaluator(truth, found, settings)
        params: Any = evaluator.params
        params.iouThrs, params.recThrs = np.array(settings.iou_thresholds), np.array(settings.recalls)
        params.maxDets, params.useCats = list(settings.max_detections), int(settings.per_class)
        params.areaRng = [[low, high] for _, low, high in settings.areas]
        params.areaRngLbl = [name for name, *_ in settings.areas]
        if settings.iou_type == "keypoints":
            params.kpt_oks_sigmas = np.array(settings.sigmas)
        return evaluator


_COCOeval: Any = COCOeval  # its types say less than it has


class _Evaluator(_COCOeval):
    """pycocotools' evaluation with two of its steps extended."""

    def __init__(self, truth: Any, found: Any, settings: ApSettings) -> None:
        super().__init__(truth, found, "segm" if settings.iou_type == "boundary" else settings.iou_type)
        self.settings = settings

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        """pycocotools' IoU, or the smaller of it and that of the boundaries."""
        if self.settings.iou_type != "boundary":
            return super().computeIoU(imgId, catId)
        categories = [catId] if self.settings.per_class else self.params.catIds
        truths, found = ([o for c in categories for o in side[imgId, c]] for side in (self._gts, self._dts))
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[: self.params.maxDets[-1]]
        masks = ([found[i]["segmentation"] for i in order], [t["segmentation"] for t in truths])
        crowd = [t["iscrowd"] for t in truths]
        return min_boundary_iou_matrix(*masks, crowd, dilation_ratio=self.settings.dilation_ratio)

    def _prepare(self) -> None:
        super()._prepare()
        if not self.settings.federated:
            return
        images: dict[int, dict[str, Any]] = self.cocoGt.imgs
        judged = {(i, c) for i, image in images.items() for c in image["neg_category_ids"]} | {
            k for k, v in self._gts.items() if v
        }
        for key in [key for key in self._dts if key not in judged]:
            del self._dts[key]

    def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:  # noqa: N802, N803
        """pycocotools' matching; in LVIS, what is not matched counts only where all objects of the class are annotated."""
        entry: Any = super().evaluateImg(imgId, catId, aRng, maxDet)
        if entry is not None and self.settings.federated and catId in self.cocoGt.imgs[imgId]["not_exhaustive_category_ids"]:
            entry["dtIgnore"] = entry["dtIgnore"] | (entry["dtMatches"] == 0)
        return entry


def _indexed(dataset: Any) -> Any:
    coco: Any = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _curves(arrays: Any, settings: ApSettings, categories: tuple[Category, ...]) -> Curves:
    """The arrays of a COCO-like evaluation."""
    values: list[NDArray[np.float64]] = [np.asarray(arrays[key], np.float64) for key in _ARRAYS]
    return Curves(settings, categories if settings.per_class else (ANY_CATEGORY,), *values)
