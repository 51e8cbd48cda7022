"""`delineate demo`: a real photograph, start to finish, on the same path as a user's own data."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DelineateError
from delineate.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from delineate.config import TrainConfig

CUT = 150
"""The row of the photograph between the second and the third row of coins: above it is trained, below it nothing is seen."""

EPOCH = 10
"""Steps of an epoch: the unseen half is measured after each, for the curves."""

_WEIGHTS_NOTE = "Measured with the weights of the last epoch: nothing was chosen by looking at this half of the photograph."


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where everything lies, and how good it is."""

    data: Path
    run: Path
    predictions: Path
    report: Path
    iou: float  # of the coins' pixels in the unseen half
    found: int  # coins of the unseen half that a predicted object matches with IoU > 0.5
    coins: int  # in the unseen half
    seconds: float


def run_demo(out: str | Path = "delineate-demo", steps: int = 120, *, device: str = "auto", quiet: bool = False) -> DemoResult:
    """Train on the upper half of a photograph of coins, predict and score the lower half, write a report; say where it all is.

    The training has `steps` steps, whatever the machine, so that the demo is as good everywhere. The data are written to disk
    and go through `open_dataset`, `plan`, `train`, `Predictor` and `evaluate` as anybody's would. The weights of the last epoch
    are used, not the best ones: then nothing was chosen by looking at the lower half. Raises `DelineateError` where `out`
    exists.
    """
    start, out = time.perf_counter(), Path(out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise DelineateError(f"{out}: exists already; remove it, or choose another folder with --out")

    from delineate.data import open_dataset
    from delineate.train import train
    from delineate.train.planner import plan, with_steps

    say = partial(_say, quiet)
    dataset = open_dataset(write_demo_data(out / "coins"))
    say("Data", _DATA_STORY.format(data=out / "coins"))
    proposal = plan(dataset, device=device, minutes=2)
    reason = "enough for these coins, on any machine"
    proposal = with_steps(proposal, epochs=-(-steps // EPOCH), steps_per_epoch=min(steps, EPOCH), reason=reason)
    say("Plan", _plan_story(proposal.config))
    say("Training", "a minute or two; mean_iou is that of the unseen half, for you to watch")
    trained = train(proposal.config, out / "run", quiet=quiet, plan=proposal)
    result = _measure(out, trained.last, device, start)
    say("Result", _result_story(result))
    say("Next", _next_story(result, trained.last))
    return result


def _measure(out: Path, weights: Path, device: str, start: float) -> DemoResult:
    """Predict and score the unseen half, and write the run's report anew with these numbers."""
    from delineate.data import open_dataset
    from delineate.predict import Predictor
    from delineate.predict.evaluate import evaluate
    from delineate.report import write_report

    dataset, predictor = open_dataset(out / "coins"), Predictor(weights, device=device)
    run, records = out / "run", dataset.splits["val"]
    for record in records:
        predictor(record.image).save(out / "predictions")
    evaluation = evaluate(predictor, dataset, records, split="val", previews=run / "previews")
    evaluation = replace(evaluation, notes=(*evaluation.notes, _WEIGHTS_NOTE))
    write_json(run / "evaluation.json", evaluation.to_json())
    objects = evaluation.objects or {}
    coins = int(objects["truth_objects"])
    return DemoResult(
        data=out / "coins",
        run=run,
        predictions=out / "predictions",
        report=write_report(run),
        iou=evaluation.summary["iou/coin"],
        found=round(objects["recall_50"] * coins),
        coins=coins,
        seconds=time.perf_counter() - start,
    )


def coin_photograph() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return scikit-image's photograph of coins (303, 384) uint8 and our map of its 24 coins (303, 384), 0 = background.

    Both come with the installed packages; nothing is downloaded. Coins are numbered row by row, as the outlines in
    `demo_data/coins.json` are.

    >>> photograph, coins = coin_photograph()
    >>> photograph.shape == coins.shape, int(coins.max())
    (True, 24)
    """
    from skimage.data import coins as load_photograph

    from delineate.data.raster import decode_rle, segmentation_rle

    photograph = load_photograph()
    content = json.loads((files("delineate") / "demo_data" / "coins.json").read_text(encoding="utf-8"))
    objects = np.zeros(photograph.shape, np.uint16)
    for annotation in content["annotations"]:
        outline = tuple(annotation["segmentation"])
        objects[decode_rle(segmentation_rle(outline, photograph.shape))] = annotation["id"]
    return photograph, objects


def write_demo_data(folder: Path) -> Path:
    """Write the upper half of the photograph to `train/`, the lower, unseen half to `val/`, each with its map of coins."""
    photograph, objects = coin_photograph()
    for split, rows in (("train", slice(None, CUT)), ("val", slice(CUT, None))):
        name = f"coins_{'upper' if split == 'train' else 'lower'}.png"
        _write_png(folder / split / "images" / name, photograph[rows])
        _write_png(folder / split / "instances" / name, objects[rows])
    write_text(folder / "classes.txt", "coin\n")
    return folder


def _write_png(path: Path, pixels: NDArray[Any]) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


_DATA_STORY = """\
a photograph of 24 ancient coins comes with scikit-image; their outlines we drew ourselves.
The upper half is for training (12 coins), the lower half stays unseen (12 coins).
Written as pictures and maps of objects to {data}"""


def _plan_story(config: TrainConfig) -> str:
    height, width = config.augment.patch
    steps = config.epochs * (config.steps_per_epoch or 1)
    return (
        f"{config.model.name}, {steps} steps with {config.batch} random patches of {height} x {width} pixels:\n"
        "chosen from the data and for this machine; every choice and its reason is in the report"
    )


def _result_story(result: DemoResult) -> str:
    return (
        f"on the unseen half, after {result.seconds / 60:.1f} minutes in all:\n"
        f"IoU of the coins' pixels  {result.iou:.3f}   (1 = every pixel right)\n"
        f"coins found               {result.found} of {result.coins}\n"
        f"open  {result.report}\n"
        f"see   {result.predictions}"
    )


def _next_story(result: DemoResult, weights: Path) -> str:
    return (
        "with your own pictures, in images/ and masks/ under the same names:\n"
        "delineate data check FOLDER            find what is wrong with the data\n"
        "delineate plan FOLDER                  see what would be trained, and why\n"
        "delineate train --data FOLDER          train, with a report like this one\n"
        f"delineate predict {weights} PICTURES --out found"
    )


def _say(quiet: bool, title: str, text: str) -> None:
    """Print a step of the story: its title, then its lines indented below one another."""
    if quiet:
        return
    lines = text.splitlines()
    print(f"\n{title:<10}{lines[0]}")
    for line in lines[1:]:
        print(" " * 10 + line)
