"""Time COCO's mask AP of 5000 pictures in files, ours and pycocotools', each in a process of its own, and their peak memory.

    python benchmarks/coco_speed.py --images 5000

The files are made here: 480 x 640, about seven polygons a picture and five scored run-length codes for each, 80 classes.
Reading the JSON counts; importing packages does not, neither in time nor in memory. Each side runs `--repeats` times, in turns,
and the fastest run counts. Both must give the same number. The results go to benchmarks/results/coco_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.random import Generator

RESULTS = Path(__file__).parent / "results" / "coco_speed.json"
GOALS = {"times_as_fast": 20.0, "share_of_memory": 1 / 3}
SIZE = (480, 640)
CORNERS = 24


def make_files(folder: Path, images: int, seed: int = 0) -> dict[str, int]:
    """Write truth.json and found.json and return how many objects they hold."""
    from pycocotools import mask

    coco: Any = mask
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    found = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "height": SIZE[0], "width": SIZE[1], "file_name": f"{image:012d}.jpg"})
        for _ in range(rng.poisson(7.2)):
            radius = float(np.exp(rng.uniform(np.log(8), np.log(150))))
            axes, centre = np.array([radius, radius * rng.uniform(0.4, 1)]), rng.uniform(0, 1, 2) * SIZE[::-1]
            form = (rng.uniform(0, np.pi), 1 + rng.normal(0, 0.12, CORNERS))
            outline, category = _blob(centre, axes, *form), int(rng.integers(1, 81))
            code = coco.frPyObjects([outline], *SIZE)[0]
            shape = {"segmentation": [outline], "area": float(coco.area(code)), "bbox": coco.toBbox(code).tolist()}
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": 0, **shape}
            )
            found += [
                _detection(rng, coco, image, category, (centre, axes, form), blur) for blur in (0.05, 0.15, 0.25, 0.35, 0.45)
            ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    return {"images": images, "truths": len(truth["annotations"]), "detections": len(found)}


def _blob(centre: Any, axes: Any, turn: float, radii: Any) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    x, y = axes[:, None] * radii * [np.cos(angle), np.sin(angle)]
    points = centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return points.clip(0, SIZE[::-1]).ravel().round(2).tolist()


def _detection(rng: Generator, coco: Any, image: int, category: int, blob: Any, blur: float) -> dict[str, Any]:
    """A moved and stretched copy of a true object; one in five of any class."""
    centre, axes, form = blob
    outline = _blob(centre + rng.normal(0, blur * axes[0], 2), axes * rng.uniform(0.8, 1.2, 2), *form)
    code = coco.frPyObjects([outline], *SIZE)[0]
    return {
        "image_id": image,
        "category_id": category if rng.random() < 0.8 else int(rng.integers(1, 81)),
        "segmentation": {"size": list(SIZE), "counts": code["counts"].decode()},
        "bbox": coco.toBbox(code).tolist(),
        "score": round(float(rng.random()), 3),
    }


def measure(side: str, truth: str, found: str) -> dict[str, float]:
    """Seconds, megabytes above those after the imports, and AP of one side in this process."""
    if side == "ours":
        from delineate.metrics.coco import coco_scores
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    if side == "ours":
        value = coco_scores(truth, found, "segm")["AP"]
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            coco: Any = COCO(truth)
            evaluation: Any = COCOeval(coco, coco.loadRes(found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        value = float(evaluation.stats[0])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "megabytes": (_peak() - before) / 2**20, "AP": value}


def _peak() -> int:
    """Bytes of memory that this process held at most."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def run(side: str, folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", side, str(folder / "truth.json"), str(folder / "found.json")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "TRUTH", "FOUND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return

    from _environment import environment
    from delineate.files import write_json

    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counts = folder / "counts.json"
        if not counts.exists():
            folder.mkdir(exist_ok=True)
            counts.write_text(json.dumps(make_files(folder, arguments.images)))
        rounds = [{side: run(side, folder) for side in ("ours", "pycocotools")} for _ in range(arguments.repeats)]
        content = {"data": json.loads(counts.read_text())}
    best = {side: min((r[side] for r in rounds), key=lambda row: row["seconds"]) for side in ("ours", "pycocotools")}
    ratios = {
        "times_as_fast": best["pycocotools"]["seconds"] / best["ours"]["seconds"],
        "share_of_memory": best["ours"]["megabytes"] / best["pycocotools"]["megabytes"],
    }
    assert best["ours"]["AP"] == best["pycocotools"]["AP"], best
    content |= {"rounds": rounds, "best": best, **ratios, "goals": GOALS, "environment": environment()}
    print(json.dumps({"best": best, **ratios}, indent=1))
    write_json(RESULTS, content)


if __name__ == "__main__":
    main()
