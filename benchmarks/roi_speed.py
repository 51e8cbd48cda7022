"""Time RoIAlign on a pyramid, forward and backward, against torchvision's, in one run.

    python benchmarks/roi_speed.py --threads 2

1000 boxes, 7 x 7 bins of 2 x 2 points, 256 channels, the four levels of a picture of 800 x 1216 pixels. Sizes of boxes are
spread evenly over their logarithm, from 16 to 600 pixels. torchvision runs as its users run it: on planes, the only layout that
it computes in, and in float32, to which autocast converts bfloat16 there. Ours runs in the layout and type that the maps have,
and both layouts are timed. All take turns, medians are compared, and the results are checked to be equal. The numbers go to
benchmarks/results/roi_speed.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from _environment import environment
from delineate.files import write_json
from delineate.ops import multilevel_roi_align, native

RESULTS = Path(__file__).parent / "results" / "roi_speed.json"
GOALS = {"fp32 forward": 8.0, "bf16 forward": 12.0, "fp32 backward": 4.0, "bf16 backward": 4.0}  # times as fast as torchvision
SIZE, STRIDES, CHANNELS, BOXES = (800, 1216), (4, 8, 16, 32), 256, 1000
Step = Callable[[], Any]


def random_boxes() -> Tensor:
    """Boxes (K, 4) xyxy inside the picture, of sides from 16 to 600 pixels and ratios from 1/2 to 2."""
    generator = torch.Generator().manual_seed(0)
    scale, ratio, *place = torch.rand(4, BOXES, generator=generator)
    side, stretch = torch.exp(math.log(16) + scale * math.log(600 / 16)), torch.exp((ratio - 0.5) * math.log(2))
    extent = torch.stack([side * stretch, side / stretch], dim=1).minimum(torch.tensor(SIZE[::-1]) * 0.95)
    corner = torch.stack(place, dim=1) * (torch.tensor(SIZE[::-1]) - extent)
    return torch.cat([corner, corner + extent], dim=1)


def torchvision_steps(maps: list[Tensor], boxes: Tensor, grad: Tensor) -> tuple[Step, Step]:
    """Forward and backward; the maps are planes."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)

    def forward(maps: list[Tensor]) -> Tensor:
        return pool({str(i): m.float() for i, m in enumerate(maps)}, [boxes], [SIZE]).to(maps[0].dtype)

    return steps_of(forward, maps, grad)


def delineate_steps(maps: list[Tensor], boxes: Tensor, grad: Tensor) -> tuple[Step, Step]:
    return steps_of(lambda maps: multilevel_roi_align(maps, [boxes], 7, [1 / s for s in STRIDES], 2), maps, grad)


def steps_of(forward: Callable[[list[Tensor]], Tensor], maps: list[Tensor], grad: Tensor) -> tuple[Step, Step]:
    leaves = [m.detach().requires_grad_() for m in maps]
    result = forward(leaves)
    return lambda: forward(maps), lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)


def contestants(dtype: torch.dtype, boxes: Tensor) -> dict[str, tuple[Step, Step]]:
    torch.manual_seed(0)
    planes = [torch.randn(1, CHANNELS, SIZE[0] // s, SIZE[1] // s).to(dtype) for s in STRIDES]
    grad = torch.randn(BOXES, CHANNELS, 7, 7).to(dtype)
    last = [m.contiguous(memory_format=torch.channels_last) for m in planes]
    return {
        "torchvision": torchvision_steps(planes, boxes, grad),
        "delineate, channels last": delineate_steps(last, boxes, grad.contiguous(memory_format=torch.channels_last)),
        "delineate, planes": delineate_steps(planes, boxes, grad),
    }


def check(steps: dict[str, tuple[Step, Step]], dtype: torch.dtype) -> None:
    """Raise unless all give torchvision's numbers, up to rounding."""
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    forward, backward = steps["torchvision"]
    expected = [forward(), *backward()]
    for name in ("delineate, channels last", "delineate, planes"):
        forward, backward = steps[name]
        for mine, other in zip([forward(), *backward()], expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * 4)


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each; they take turns, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="RoIAlign against torchvision's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not native.available:
        raise SystemExit("the native kernels are not built: install with a compiler")
    boxes, rows = random_boxes(), []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        steps = contestants(dtype, boxes)
        check(steps, dtype)
        for i, direction in enumerate(("forward", "backward")):
            times = medians({contestant: pair[i] for contestant, pair in steps.items()}, options.repeats)
            faster = {c: round(times["torchvision"] / t, 2) for c, t in times.items() if c != "torchvision"}
            rows.append({"step": f"{name} {direction}", "milliseconds": times, "times_as_fast": faster})
            print(rows[-1])
    write_json(RESULTS, {"goals": GOALS, "boxes": BOXES, "channels": CHANNELS, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
