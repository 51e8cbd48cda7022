"""Time a training step and a prediction of our U-Net and of smp's, same architecture and weights, in one run.

    python benchmarks/unet_speed.py --batch 8 --size 256 --repeats 15

Contestants: segmentation_models.pytorch (smp) as its users run it (eager, contiguous, autocast for bf16) and at its best
(channels last, torch.compile); ours as `delineate train` and `delineate predict` run it, and compiled. They take turns, so that
a busy moment of the machine hits all; medians are compared. The numbers go to benchmarks/results/unet_speed.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import delineate as dl
from _environment import environment
from delineate.files import write_json
from delineate.models import fuse_for_inference
from delineate.weights.smp import rename_unet

RESULTS = Path(__file__).parent / "results" / "unet_speed.json"
GOALS = {"fp32": 1.0, "bf16": 1.3}  # times as fast as smp as its users run it
Step = Callable[[], object]


def build(encoder: str, classes: int) -> tuple[nn.Module, nn.Module]:
    """Return smp's U-Net and ours with the same random weights."""
    theirs: nn.Module = smp.Unet(encoder, encoder_weights=None, classes=classes)
    ours = dl.create_model("unet", classes, encoder=encoder)
    ours.load_state_dict(rename_unet(theirs.state_dict()))
    return theirs, ours


def training_step(model: nn.Module, run: Any, x: Tensor, labels: Tensor, bf16: bool) -> Step:
    """Forward, cross-entropy, backward, AdamW; `run` is `model`, or `model` compiled."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model.train()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(run(x).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prediction(run: Any, x: Tensor, autocast: bool) -> Step:
    def step() -> None:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            run(x).argmax(1)

    return step


def channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def training_contestants(
    theirs: nn.Module, ours: nn.Module, x: Tensor, labels: Tensor, bf16: bool, compiled: bool
) -> dict[str, Step]:
    """The steps to time; the fastest layout of the input is each network's own."""
    fast_x = x.contiguous(memory_format=torch.channels_last)
    plain, mine = copy.deepcopy(theirs), copy.deepcopy(ours)
    steps = {
        "smp": training_step(plain, plain, x, labels, bf16),
        "delineate": training_step(mine, mine, fast_x, labels, bf16),
    }
    if compiled:
        best, mine = channels_last(theirs), copy.deepcopy(ours)
        steps["smp, channels last, compiled"] = training_step(best, torch.compile(best), fast_x, labels, bf16)
        steps["delineate, compiled"] = training_step(mine, torch.compile(mine), fast_x, labels, bf16)
    return steps


def prediction_contestants(theirs: nn.Module, ours: nn.Module, x: Tensor, bf16: bool, compiled: bool) -> dict[str, Step]:
    """As `training_contestants`; for bf16 smp runs under autocast, ours has bf16 weights, as `Predictor` makes them."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    fast_x = x.contiguous(memory_format=torch.channels_last)
    fused = fuse_for_inference(ours).to(dtype)
    steps = {
        "smp": prediction(copy.deepcopy(theirs).eval(), x, bf16),
        "delineate": prediction(fused, fast_x.to(dtype), False),
    }
    if compiled:
        best: Any = torch.compile(channels_last(theirs).eval(), options={"freezing": True})
        mine: Any = torch.compile(copy.deepcopy(fused), options={"freezing": True})
        steps["smp, channels last, compiled"] = prediction(best, fast_x, bf16)
        steps["delineate, compiled"] = prediction(mine, fast_x.to(dtype), False)
    return steps


def measure(steps: dict[str, Step], repeats: int, images: int, synchronize: Callable[[], object]) -> dict[str, dict[str, Any]]:
    """Let the contestants take turns; return median and quartiles of their milliseconds."""
    for step in steps.values():  # compiles, and fills the caches
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    rows = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        rate = round(1000 * images / median, 2)
        rows[name] = {"median_ms": round(median, 2), "quartiles_ms": [round(low, 2), round(high, 2)], "images_per_second": rate}
    return rows


def agreement(theirs: nn.Module, ours: nn.Module, x: Tensor) -> float:
    """Largest difference of the logits, as a share of the largest logit."""
    with torch.no_grad():
        expected = copy.deepcopy(theirs).eval()(x)
        return ((copy.deepcopy(ours).eval()(x) - expected).abs().max() / expected.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    theirs, ours = (model.to(arguments.device) for model in build(arguments.encoder, arguments.classes))
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=arguments.device)
    labels = torch.randint(arguments.classes, (arguments.batch, arguments.size, arguments.size), device=arguments.device)
    synchronize = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    report: dict[str, Any] = {
        "environment": environment(),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "out"},
        "relative_logit_difference": agreement(theirs, ours, x),
        "times": {},
        "speed_up_over_smp": {},
    }
    assert report["relative_logit_difference"] < 1e-4, report["relative_logit_difference"]
    for precision, goal in GOALS.items():
        bf16 = precision == "bf16"
        tasks = {
            "train": training_contestants(theirs, ours, x, labels, bf16, arguments.compiled),
            "predict": prediction_contestants(theirs, ours, x, bf16, arguments.compiled),
        }
        for task, steps in tasks.items():
            rows = measure(steps, arguments.repeats, arguments.batch, synchronize)
            report["times"][f"{task} {precision}"] = rows
            base = rows["smp"]["median_ms"]
            ratios = {name: round(base / row["median_ms"], 3) for name, row in rows.items() if name != "smp"}
            report["speed_up_over_smp"][f"{task} {precision}"] = ratios | {"goal": goal}
            print(
                f"{task} {precision} (goal {goal}): smp {base:.0f} ms; "
                + ", ".join(f"{n} {r:.2f}x" for n, r in ratios.items()),
                flush=True,
            )
    write_json(arguments.out, report)
    print(arguments.out)


if __name__ == "__main__":
    main()
