"""Train, predict and measure from Python, on pictures of your own.

    python examples/train_on_your_own_images.py [FOLDER] [--minutes 15]

FOLDER holds images/ and masks/ with the same file names (or COCO, YOLO, VOC, Cityscapes, labelme data). Without it, pictures
are made up, and half a minute suffices.
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


def main(folder: Path | None, minutes: float, out: Path) -> float:
    """Train a network for the pictures in `folder` into `out`, and return its mean IoU on the pictures held back."""
    if folder is None:
        folder = make_blobs_dataset(out / "pictures", count=6, val=2, size=128)

    # What is in the folder? Pictures for validation are held back if it does not say which.
    dataset = split_dataset(open_dataset(folder))
    print(f"{len(dataset.splits['train'])} pictures to train on, {len(dataset.splits['val'])} to validate")

    # Settings, each with its reason. Change one with proposal.config.model_copy(update={"epochs": 100}).
    proposal = plan(dataset, minutes=minutes)
    proposal.print()
    run = train(proposal.config, out / "run", plan=proposal)

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
    parser.add_argument("--minutes", type=float, default=0.3, help="length of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="new folder for what is written")
    given = parser.parse_args()
    main(given.folder, given.minutes, given.out)
