"""Train, predict and measure from Python, on pictures of your own.

    python examples/train_on_your_own_images.py [FOLDER] [--minutes 15] [--out runs/example]

FOLDER holds images/ and masks/ with the same file names (or COCO, YOLO, VOC, Cityscapes, labelme data). Without it, pictures
are made up, and the training is cut to 30 steps: less than a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from delineate.data import open_dataset, split_dataset
from delineate.data.synthetic import make_blobs_dataset
from delineate.predict import Predictor
from delineate.predict.evaluate import evaluate
from delineate.train import train
from delineate.train.planner import plan


def main(folder: Path | None, out: Path, minutes: float = 15.0) -> float:
    """Train a network for the pictures in `folder` into `out`, and return its mean IoU on the pictures held back."""
    made_up = folder is None
    if folder is None:
        folder = make_blobs_dataset(out / "pictures", count=6, val=2, size=128)

    # What is in the folder? Pictures for validation are held back if it does not say which.
    dataset = split_dataset(open_dataset(folder))
    print(f"{len(dataset.splits['train'])} pictures to train on, {len(dataset.splits['val'])} to validate")

    # Settings, each with its reason; any of them can be changed.
    proposal = plan(dataset, minutes=minutes)
    proposal.print()
    config = proposal.config
    if made_up:
        config = config.model_copy(update={"epochs": 3, "steps_per_epoch": 10, "batch": 4})
    run = train(config, out / "run", plan=proposal)

    # One picture: classes and objects, to look at, to count, to save.
    predictor = Predictor(run.best)
    results = predictor(dataset.splits["val"][0].image)
    print(f"{results.name}: {len(results)} objects, the largest score is {results.scores.max():.2f}")
    results.save(out / "predictions", formats=("png", "overlay", "coco"))

    # All of them, against the truth.
    evaluation = evaluate(predictor, dataset, dataset.splits["val"], split="val")
    evaluation.print()
    print(f"report: {run.report}")
    return evaluation.summary["mean_iou"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="pictures and masks; without it, pictures are made up")
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="new folder for what is written")
    given = parser.parse_args()
    main(given.folder, given.out, given.minutes)
