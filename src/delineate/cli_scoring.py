"""The verbs that measure: `eval`, of weights, and `score`, of files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from delineate.cli_common import Device, Flips, Format, JsonFile, Precision, Quiet, Scales, show
from delineate.errors import ConfigError

if TYPE_CHECKING:
    from delineate.metrics.bootstrap import Resampling
    from delineate.metrics.families import Families
    from delineate.predict.score import ScoreOptions

measures = Group("Measures", help="Numbers that are not there unless asked for.", sort_key=5)
intervals = Group("Intervals", help="Bootstrap over pictures.", sort_key=6)
IouTypes = Annotated[
    list[Literal["bbox", "segm", "boundary", "keypoints"]] | None,
    Parameter(
        name="--iou-type",
        help="COCO's numbers of these. Default: all that both sides have; in eval of classes of pixels none. Repeatable.",
        negative="",
        consume_multiple=False,
        group=measures,
    ),
]
PerImage = Annotated[Path | None, Parameter(help="Also write a CSV with the numbers of each picture, one row a picture.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measured:
    """Flags of the families of numbers, which `eval` and `score` have."""

    preset: Annotated[
        str | None,
        Parameter(
            help="Mean IoU as a package defines it: cityscapes, mmseg, detectron2, hrnet, hmsa, smp or torchmetrics.",
            group=measures,
        ),
    ] = None
    boundary: Annotated[
        bool, Parameter(negative="", help="IoU of the pixels near outlines; of panoptic files boundary PQ.", group=measures)
    ] = False
    surface: Annotated[
        float | None,
        Parameter(
            help="HD95 and mean distance between outlines, and normalised surface Dice (NSD) at this tolerance.", group=measures
        ),
    ] = None
    spacing: Annotated[
        list[float] | None,
        Parameter(
            help="Size of a pixel, rows then columns, or one number: the unit of --surface. Default: 1.",
            negative="",
            consume_multiple=True,
            group=measures,
        ),
    ] = None
    cldice: Annotated[
        list[str] | None,
        Parameter(
            help="clDice of a class that is tubes, such as vessels. Repeatable.",
            negative="",
            consume_multiple=False,
            group=measures,
        ),
    ] = None
    em: Annotated[
        bool,
        Parameter(negative="", help="V^Rand, V^Info and adapted Rand error of the segments between membranes.", group=measures),
    ] = False

    def families(self) -> Families:
        families: Families = {
            "preset": self.preset,
            "boundary": self.boundary,
            "surface": self.surface,
            "cldice": self.cldice or (),
            "em": self.em,
        }
        if self.spacing:
            families["spacing"] = self.spacing if len(self.spacing) > 1 else self.spacing[0]
        return families


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Flags of bootstrap intervals, which `eval` and `score` have."""

    confidence: Annotated[float | None, Parameter(help="Default: 0.95.", group=intervals)] = None
    resamples: Annotated[int | None, Parameter(help="Default: 2000.", group=intervals)] = None
    seed: Annotated[int | None, Parameter(help="The same seed draws the same pictures. Default: 0.", group=intervals)] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resampling(self) -> Resampling:
        from delineate.metrics.bootstrap import Resampling

        return Resampling(**self.given())


def evaluate_(
    weights: Path,
    data: Path,
    *,
    split: Annotated[str | None, Parameter(help="Default: val, or all pictures where there is no such split.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for pictures of the best and worst predictions.")] = None,
    predictions: Annotated[
        Path | None, Parameter(help="Of a detector: also write what was found as COCO's list of results into this JSON file.")
    ] = None,
    flips: Flips = False,
    scales: Scales = None,
    score_threshold: Annotated[
        float, Parameter(help="Objects with a lower score are left out, except in COCO's numbers.")
    ] = 0.5,
    measured: Measured = Measured(),
    iou_types: IouTypes = None,
    drawn: Drawn = Drawn(),
    per_image: PerImage = None,
    format: Format = None,
    device: Device = None,
    precision: Precision = None,
    json: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Predict a data set and measure the result against its truth, with bootstrap intervals.

    Parameters
    ----------
    weights
        A .safetensors file of `delineate train`.
    data
        Folder or annotation file.
    """
    from delineate.data import open_dataset
    from delineate.predict import Predictor
    from delineate.predict.evaluate import evaluate

    predictor = Predictor(weights, device or "auto", precision or "auto", score_threshold, flips=flips, scales=scales)
    dataset = open_dataset(data, format)
    split = split or ("val" if "val" in dataset.splits else "all")
    if split != "all" and split not in dataset.splits:
        raise ConfigError(f"--split {split}: {data} has {', '.join(dataset.splits)}")
    records = dataset.records if split == "all" else dataset.splits[split]
    evaluation = evaluate(
        predictor,
        dataset,
        records,
        split=split,
        previews=out,
        intervals=drawn.resampling(),
        iou_types=iou_types or (),
        predictions=predictions,
        **measured.families(),
    )
    show(evaluation.to_json(), json, None if quiet else evaluation.print)
    if per_image is not None:
        evaluation.write_csv(per_image)


def score(
    predictions: Path,
    other: Annotated[Path | None, Parameter(help="The truth; with --truth, predictions B to compare PREDICTIONS with.")] = None,
    *,
    truth: Annotated[
        Path | None, Parameter(help="Truth of two predictions: which is better, and how sure is that (paired bootstrap)?")
    ] = None,
    format: Format = None,
    ignore: Annotated[int, Parameter(help="Class id of pixels that do not count.")] = 255,
    measured: Measured = Measured(),
    iou_types: IouTypes = [],  # noqa: B006
    sigmas: Annotated[
        list[float],
        Parameter(
            help="Of keypoint similarity, one a point. Default: COCO's.", negative="", consume_multiple=True, group=measures
        ),
    ] = [],  # noqa: B006
    backend: Annotated[
        Literal["hotcoco", "pycocotools"], Parameter(help="What matches detections for COCO's numbers.", group=measures)
    ] = "hotcoco",
    errors: Annotated[
        Path | None,
        Parameter(help="Kinds of error of detections, as TIDE defines them, and their plot as this PNG.", group=measures),
    ] = None,
    ci: Annotated[bool, Parameter(negative="", help="Add an interval to every number.", group=intervals)] = False,
    drawn: Drawn = Drawn(),
    per_image: PerImage = None,
    json: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure predictions against truth, or compare two predictions, all from files; no model is needed.

    Parameters
    ----------
    predictions
        Folder of label pictures, COCO results or any data set.
    """
    from delineate.predict.score import compare
    from delineate.predict.score import score as score_files

    compared = truth is not None and other is not None
    truth = truth or other
    if truth is None:
        raise ConfigError("nothing to score against: give PREDICTIONS TRUTH, or A B --truth TRUTH to compare two predictions")
    if drawn.given() and not (ci or compared):
        raise ConfigError("--confidence, --resamples and --seed are of the intervals; add --ci")
    resampling = drawn.resampling()
    options: ScoreOptions = {
        "format": format,
        "ignore": ignore,
        "iou_types": iou_types or (),
        "sigmas": sigmas,
        "backend": backend,
        "errors": errors is not None,
        **measured.families(),
    }
    if compared and other is not None:
        if lonely := [flag for flag, value in (("--per-image", per_image), ("--errors", errors)) if value is not None]:
            raise ConfigError(f"{lonely[0]} is of one prediction; leave it away, or score A and B one by one")
        comparison = compare(predictions, other, truth, resampling=resampling, **options)
        return show(comparison.to_json(), json, None if quiet else comparison.print)
    evaluation = score_files(predictions, truth, ci=resampling if ci else False, **options)
    show(evaluation.to_json(), json, None if quiet else evaluation.print)
    if per_image is not None:
        evaluation.write_csv(per_image)
    if errors is not None and evaluation.errors is not None:
        from delineate.report.plots import plot_detection_errors, save_png

        save_png(plot_detection_errors(evaluation.errors.summary()), errors)
    return None
