"""Time panoptic quality, ours and torchmetrics', on the same made pictures in one run.

    python benchmarks/panoptic_speed.py --pictures 5 --height 480 --width 640

Both get a map of classes and a map of objects for each picture, as torchmetrics takes them; ours starts with making segments of
them. The two go over all pictures in turns, so that a busy moment of the machine hits both, and must agree. Medians of pictures
are compared, and go to benchmarks/results/panoptic_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.detection import PanopticQuality as TheirPanopticQuality

from _environment import environment
from delineate.data.panoptic import panoptic_map
from delineate.files import write_json
from delineate.metrics import PanopticQuality

RESULTS = Path(__file__).parent / "results" / "panoptic_speed.json"
GOAL = 100  # times as fast as torchmetrics, for each picture
Maps = tuple[NDArray[np.int64], NDArray[np.int64]]  # classes and objects (H, W)


def picture(rng: np.random.Generator, height: int, width: int, things: int, stuff: int, objects: int) -> Maps:
    """Bands of stuff with ellipses of things on them; stuff has the object 0."""
    classes = np.repeat(things + rng.integers(0, stuff, 6), -(-height // 6))[:height, None].repeat(width, axis=1)
    instances = np.zeros((height, width), np.int64)
    y, x = np.mgrid[:height, :width]
    for number in range(1, objects + 1):
        center, radii = rng.uniform(0, 1, 2) * (height, width), rng.uniform(0.03, 0.15, 2) * (height, width)
        inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1
        classes[inside], instances[inside] = rng.integers(0, things), number
    return classes, instances


def as_tensor(maps: Maps) -> torch.Tensor:
    """What torchmetrics takes: (1, H, W, 2)."""
    return torch.from_numpy(np.stack(maps, axis=-1))[None]


def milliseconds(values: list[float]) -> dict[str, Any]:
    low, median, high = (round(1000 * value, 3) for value in statistics.quantiles(values, n=4, method="inclusive"))
    return {"median_ms": median, "quartiles_ms": [low, high], "first_ms": round(1000 * values[0], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--things", type=int, default=80)
    parser.add_argument("--stuff", type=int, default=53)
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    things, stuff = arguments.things, arguments.stuff
    truths = [
        picture(rng, arguments.height, arguments.width, things, stuff, arguments.objects) for _ in range(arguments.pictures)
    ]
    pairs = [((np.roll(classes, 5, 1), np.roll(objects, 5, 1)), (classes, objects)) for classes, objects in truths]
    ours = PanopticQuality(things + stuff, range(things))
    theirs = TheirPanopticQuality(things=set(range(things)), stuffs=set(range(things, things + stuff)))
    kinds = range(things)
    tensors = [(as_tensor(found), as_tensor(wanted)) for found, wanted in pairs]
    steps: dict[str, Callable[[int], object]] = {
        "torchmetrics": lambda i: theirs.update(*tensors[i]),
        "delineate": lambda i: ours.update(*(panoptic_map(*maps, things=kinds) for maps in pairs[i])),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            for i in range(len(pairs)):
                start = time.perf_counter()
                step(i)
                times[name].append(time.perf_counter() - start)
    ours_pq, theirs_pq = float(ours.mean_pq()), float(theirs.compute())
    assert abs(ours_pq - theirs_pq) < 1e-9, (ours_pq, theirs_pq)
    rows = {name: milliseconds(values) for name, values in times.items()}
    speed_up = round(rows["torchmetrics"]["median_ms"] / rows["delineate"]["median_ms"], 1)
    report = {
        "environment": environment(),
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "pq": ours_pq,
        "times": rows,
        "speed_up_over_torchmetrics": {"median": speed_up, "goal": GOAL},
    }
    print(f"torchmetrics {rows['torchmetrics']['median_ms']} ms, delineate {rows['delineate']['median_ms']} ms: {speed_up}x")
    write_json(arguments.out, report)
    print(arguments.out)


if __name__ == "__main__":
    main()
