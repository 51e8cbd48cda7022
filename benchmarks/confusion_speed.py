"""Time the confusion matrix of one picture against NumPy's masked bincount, in one run.

    python benchmarks/confusion_speed.py --threads 2

The picture has 1024 x 2048 pixels and 19 classes, in regions as of street scenes, and 5 % ignored pixels. Both sides take turns
and medians are compared; the counts are checked to be equal. The numbers go to benchmarks/results/confusion_speed.json.
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

from _environment import environment
from delineate.files import write_json
from delineate.metrics import ConfusionMatrix
from delineate.ops import native

RESULTS = Path(__file__).parent / "results" / "confusion_speed.json"
GOAL = 4.0  # times as fast as the masked bincount
CLASSES, IGNORE = 19, 255


def picture(dtype: str, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return prediction and truth: blocks of one class, every tenth pixel predicted wrong."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, CLASSES, (16, 32)), np.ones((64, 64), int))
    prediction = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, CLASSES, truth.shape), truth)
    truth[rng.random(truth.shape) < 0.05] = IGNORE
    return prediction.astype(dtype), truth.astype(dtype)


def masked_bincount(prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.int64]:
    """The usual way: select the pixels that count, then one bincount. It checks nothing."""
    valid = truth != IGNORE
    codes = CLASSES * truth[valid].astype(np.int64) + prediction[valid]
    return np.bincount(codes, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def ours(prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.int64]:
    matrix = ConfusionMatrix(CLASSES, IGNORE)
    matrix.update(prediction, truth)
    return matrix.counts


def medians(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each; they take turns, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="the confusion matrix against NumPy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not native.available:
        raise SystemExit("the native kernels are not built: install with a compiler")
    rows = []
    for dtype in ("uint8", "int64"):
        pair = picture(dtype)
        np.testing.assert_array_equal(ours(*pair), masked_bincount(*pair))
        times = medians({"bincount": lambda p=pair: masked_bincount(*p), "delineate": lambda p=pair: ours(*p)}, options.repeats)
        rows.append({"dtype": dtype, "milliseconds": times, "times_as_fast": round(times["bincount"] / times["delineate"], 2)})
        print(rows[-1])
    write_json(RESULTS, {"goal": GOAL, "size": [1024, 2048], "classes": CLASSES, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
