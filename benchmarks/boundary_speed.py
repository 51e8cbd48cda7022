"""Time boundary IoU against boundary-iou-api, and HD95 against whole distance transforms, in one run.

    python benchmarks/boundary_speed.py --peer ../boundary-iou-api --data ../shared/data

`--peer`: a checkout of bowenc0221/boundary-iou-api, which needs `pip install opencv-python-headless`; without it that
comparison is left out. `--data`: the folder that holds reference_eval/cocoapi, for the objects of COCO pictures.

Both sides start from two masks and end with a number. The peer makes two boundary regions and their IoU from run lengths, as
its evaluation does; "counted" is the same with the pixels counted by NumPy, a faster way that it does not have. SciPy erodes
both masks for their borders and makes two distance transforms of the picture, as MedPy does; "borders given" is without the
erosion, which our time includes. All take turns, the values are checked to be equal, and the numbers go to
benchmarks/results/boundary_speed.json. The last case, noise, is the worst for our way to HD95.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import binary_erosion, distance_transform_edt

from _environment import environment
from delineate.files import write_json
from delineate.metrics import boundary_iou, surface_distances

RESULTS = Path(__file__).parent / "results" / "boundary_speed.json"
GOALS = {"boundary_iou": 3.0, "hd95": 10.0}  # times as fast
Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]
Step = Callable[[Mask, Mask], Any]


def blob(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> Mask:
    """A round outline with seven bays."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    angle = np.arctan2(y - centre[0], x - centre[1])
    return np.hypot(y - centre[0], x - centre[1]) < radius * (1 + 0.15 * np.sin(7 * angle))


def drawn(shape: tuple[int, int], radius: float) -> list[Pair]:
    """An object in the middle of a picture, and a prediction of it that is a little larger and moved."""
    centre = shape[0] / 2, shape[1] / 2
    return [(blob(shape, (centre[0] + 4, centre[1] - 5), 1.03 * radius), blob(shape, centre, radius))]


def coco_objects(data: Path) -> list[Pair]:
    """Detections of cocoapi's example results, each with the true object of its picture and class that it overlaps most."""
    folder = data / "reference_eval" / "cocoapi"
    truth = COCO(folder / "instances_val2014_100.json")
    found = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    pairs = []
    for detection in found:
        ids = truth.getAnnIds(imgIds=[detection["image_id"]], catIds=[detection["category_id"]], iscrowd=False)
        rles = [truth.annToRLE(annotation) for annotation in truth.loadAnns(ids)]
        ious = coco_mask.iou([detection["segmentation"]], rles, [0] * len(rles))
        if len(rles) and ious.max() > 0:
            masks = (coco_mask.decode(rle).astype(bool, order="C") for rle in (detection["segmentation"], rles[ious.argmax()]))
            pairs.append(tuple(masks))
    return pairs


def peer_steps(checkout: Path | None) -> dict[str, Step]:
    """Boundary IoU by boundary-iou-api, or nothing where it is not there."""
    if checkout is None:
        print("--peer is not given: boundary IoU is not compared")
        return {}
    sys.path.insert(0, str(checkout))
    try:
        from boundary_iou.utils.boundary_utils import mask_to_boundary
    except ImportError as error:
        message = f"--peer {checkout}: {error}; give a checkout of boundary-iou-api, with opencv-python-headless"
        raise SystemExit(message) from error

    def counted(prediction: Mask, truth: Mask) -> float:
        p, t = (mask_to_boundary(mask.view(np.uint8)) for mask in (prediction, truth))
        return np.count_nonzero(p & t) / np.count_nonzero(p | t)

    def run_lengths(prediction: Mask, truth: Mask) -> float:
        regions = (mask_to_boundary(mask.view(np.uint8)) for mask in (prediction, truth))
        rles = [coco_mask.encode(np.array(region[:, :, None], order="F", dtype=np.uint8))[0] for region in regions]
        return coco_mask.iou(rles[:1], rles[1:], [0])[0, 0]

    return {"boundary-iou-api": run_lengths, "boundary-iou-api, counted": counted}


def hd95(prediction: Mask, truth: Mask) -> float:
    return surface_distances(prediction, truth).hausdorff(95)


def borders_of(prediction: Mask, truth: Mask) -> Pair:
    return prediction & ~binary_erosion(prediction), truth & ~binary_erosion(truth)


def whole_transforms(borders: Pair) -> float:
    """HD95 from distance transforms of both pictures."""
    of_p, of_t = borders
    to_p, to_t = (np.asarray(distance_transform_edt(~border)) for border in borders)
    return max(np.percentile(to_t[of_p], 95), np.percentile(to_p[of_t], 95))


def compare(pairs: list[Pair], steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Milliseconds a pair: the median of `repeats` passes over all pairs. The steps take turns and must agree."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        values = {}
        for name, step in steps.items():
            start = time.perf_counter()
            values[name] = [step(*pair) for pair in pairs]
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start) / len(pairs))
        for found in values.values():
            np.testing.assert_allclose(found, values["delineate"], rtol=1e-12)
    return {name: round(statistics.median(taken), 4) for name, taken in times.items()}


def row(measure: str, case: str, pairs: list[Pair], times: dict[str, float]) -> dict[str, Any]:
    """A line of the results."""
    ratios = {name: round(taken / times["delineate"], 2) for name, taken in times.items() if name != "delineate"}
    reached = {name: value >= GOALS[measure] for name, value in ratios.items()}
    print(f"{measure:12} {case:30} {ratios} {times}")
    about = {"measure": measure, "case": case, "pairs": len(pairs), "shape": list(pairs[0][0].shape)}
    return about | {"milliseconds": times, "times_as_fast_as": ratios, "goal": GOALS[measure], "reached": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of boundary-iou-api")
    parser.add_argument("--data", type=Path, help="folder that holds reference_eval/cocoapi")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    cases = {
        "1024 x 2048, radius 60": drawn((1024, 2048), 60),
        "1024 x 2048, radius 250": drawn((1024, 2048), 250),
        "1024 x 2048, radius 430": drawn((1024, 2048), 430),
        "480 x 640, radius 40": drawn((480, 640), 40),
        "480 x 640, radius 200": drawn((480, 640), 200),
    }
    if options.data is None:
        print("--data is not given: the objects of COCO are left out")
    else:
        cases["COCO val2014, all detections"] = coco_objects(options.data)
    rng = np.random.default_rng(0)
    cases["512 x 512, noise"] = [(rng.random((512, 512)) < 0.5, rng.random((512, 512)) < 0.5)]
    peer = peer_steps(options.peer)
    rows = []
    for case, pairs in cases.items():
        many = len(pairs) > 1
        repeats = max(3, options.repeats // 3) if many else options.repeats
        if peer:
            rows.append(row("boundary_iou", case, pairs, compare(pairs, {**peer, "delineate": boundary_iou}, repeats)))
        some = pairs[:: max(1, len(pairs) // 40)]
        given = {id(p): borders_of(p, t) for p, t in some}
        steps: dict[str, Step] = {
            "scipy": lambda p, t: whole_transforms(borders_of(p, t)),
            "scipy, borders given": lambda p, t, g=given: whole_transforms(g[id(p)]),
            "delineate": hd95,
        }
        rows.append(row("hd95", case, some, compare(some, steps, 3)))
    write_json(RESULTS, {"environment": environment(), "repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
