"""How few pictures suffice? Dice on the ISBI-2012 validation slices against the number of training slices, all else equal.

    python benchmarks/few_images.py --data ../shared/data

Each run has the same number of steps. The numbers, with 95 % bootstrap intervals over the validation slices, go to
benchmarks/results/few_images.json and the figure to docs/figures/few_images.png.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from _environment import environment
from delineate.data import open_dataset
from delineate.files import atomic_path, write_json
from real_data import RESULTS, config_of, isbi_split, run

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "few_images.png"
COUNTS = (1, 2, 4, 8, 16, 24)


def draw(report: dict, path: Path) -> None:
    """Draw Dice and V^Rand against the number of training slices."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    counts = [entry["training_slices"] for entry in report["runs"]]
    for axis, key, label in zip(
        axes, ("mean_dice", "em/v_rand"), ("mean Dice of membrane and cell", "V$^{Rand}$ of the segments"), strict=True
    ):
        values = [entry["summary"][key] for entry in report["runs"]]
        axis.plot(counts, values, "o-", color="#0b6e99")
        intervals = [entry["intervals"].get(key) for entry in report["runs"]]
        if all(intervals):
            axis.fill_between(counts, [i[0] for i in intervals], [i[1] for i in intervals], color="#0b6e99", alpha=0.18, lw=0)
        axis.set(xlabel="training slices of 512 x 512 pixels", ylabel=label, xscale="log")
        axis.set_xticks(counts, [str(c) for c in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"ISBI-2012 membranes, U-Net from scratch, {report['steps']} steps each, six validation slices", fontsize=10
    )
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds isbi2012_em")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_images"))
    arguments = parser.parse_args()

    asked = {key: getattr(arguments, key) for key in ("steps", "width", "patch", "batch")}
    config = config_of("isbi2012_em", arguments.data, seed=0, **asked)
    whole = isbi_split(open_dataset(config.data.path))
    report: dict = {
        "environment": environment(),
        "steps": arguments.steps,
        "config": config.model_dump(mode="json") | {"data": "isbi2012_em"},
        "runs": [],
    }
    for count in COUNTS:
        # Evenly spread over the stack, as one would annotate it.
        chosen = tuple(whole.splits["train"][round((i + 0.5) * 24 / count - 0.5)] for i in range(count))
        dataset = replace(whole, splits=whole.splits | {"train": chosen})
        evaluation, facts = run("delineate", config, dataset, arguments.runs / str(count), em=True)
        report["runs"].append(
            {"training_slices": count, "summary": evaluation.summary, "intervals": evaluation.intervals} | facts
        )
        write_json(RESULTS / "few_images.json", report)
    draw(report, FIGURE)


if __name__ == "__main__":
    main()
