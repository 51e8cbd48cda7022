"""Average precision as COCO and LVIS define it, from COCO's JSON or its like in Python, with the traps of that form closed.

Closed: no detections at all (every AP is then 0), annotation id 0, which pycocotools takes for "no match", a missing `iscrowd`,
`area` or `num_keypoints`, scores that are not finite, ids that do not exist, masks of another size than their picture
(`DataError`).
"""

from __future__ import annotations

from delineate.metrics.average_precision import COCO_NAMES, ApSettings, Curves, IouType
from delineate.metrics.backends import BackendName, backend_for
from delineate.metrics.coco_checks import check_detections
from delineate.metrics.coco_input import Detections, Truth, coco_data
from delineate.metrics.matches import Matches

__all__ = ["COCO_NAMES", "IouType", "check_detections", "coco_curves", "coco_matches", "coco_scores"]


def coco_scores(
    truth: Truth, detections: Detections, settings: ApSettings | IouType = "bbox", *, backend: BackendName = "hotcoco"
) -> dict[str, float]:
    """Return COCO's numbers for `detections` (COCO's results list) against `truth` (COCO's annotation dict), or for files.

    `settings`: "bbox" (IoU of boxes, xywh in pixels; of the masks' boxes where there are only masks), "segm", "boundary",
    "keypoints", or an `ApSettings`; by default thresholds 0.50 to 0.95 in steps of 0.05, and 101 recalls. A number without any
    truth to count, such as APs without small objects, is -1, as in COCO. Names as in `Curves.summary`.
    Raises `DataError` that names the file and the record for anything missing, unknown or not finite.

    Source: Lin et al. 2014, "Microsoft COCO"; cocodataset/cocoapi's `COCOeval`.

    >>> truth = {"images": [{"id": 1, "height": 8, "width": 8}], "categories": [{"id": 3, "name": "cell"}],
    ...          "annotations": [{"id": 0, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4]}]}
    >>> scores = coco_scores(truth, [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}], "bbox")
    >>> round(scores["AP50"], 6), scores["APl"]
    (1.0, -1.0)
    """
    return coco_curves(truth, detections, settings, backend=backend).summary()


def coco_curves(
    truth: Truth, detections: Detections, settings: ApSettings | IouType = "bbox", *, backend: BackendName = "hotcoco"
) -> Curves:
    """Return precision and recall of each class, of which `coco_scores` is the summary; arguments and errors as there."""
    settings = _settings(settings)
    chosen = backend_for(backend, settings)
    return chosen.curves(coco_data(truth, detections, settings, in_place=chosen.in_place), settings)


def coco_matches(
    truth: Truth, detections: Detections, settings: ApSettings | IouType = "bbox", *, backend: BackendName = "hotcoco"
) -> Matches:
    """Return what each picture adds to the numbers of `coco_scores`, for intervals and comparisons; arguments as there.

    >>> from delineate.metrics.bootstrap import score_intervals
    >>> truth = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 3}],
    ...          "annotations": [{"image_id": i, "category_id": 3, "bbox": [1, 1, 4, 4]} for i in (1, 2)]}
    >>> matches = coco_matches(truth, [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}])
    >>> score_intervals(matches.scores, len(matches.images))["AR100"]
    Interval(low=0.0, high=1.0)
    """
    settings = _settings(settings)
    chosen = backend_for(backend, settings)
    return chosen.matches(coco_data(truth, detections, settings, in_place=chosen.in_place), settings)


def _settings(settings: ApSettings | IouType) -> ApSettings:
    return settings if isinstance(settings, ApSettings) else ApSettings.coco(settings)
