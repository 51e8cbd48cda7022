"""The verbs that measure: `eval`, of weights, and `score`, of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from delineate.cli_common import Device, Format, JsonFile, Precision, Quiet, show
from delineate.errors import ConfigError

if TYPE_CHECKING:
    from delineate.metrics.families import Families
    from delineate.predict.score import ScoreOptions

measures = Group("Measures", help="Numbers that are not there unless asked for.", sort_key=5)
intervals = Group("Intervals", help="Bootstrap over pictures.", sort_key=6)
EmScores = Annotated[
    bool,
    Parameter(negative="", help="V^Rand, V^Info and adapted Rand error of the segments between membranes.", group=measures),
]
Preset = Annotated[
    str | None,
    Parameter(
        help="Mean IoU as a package defines it: cityscapes, mmseg, detectron2, hrnet, hmsa, smp or torchmetrics.",
        group=measures,
    ),
]
Boundary = Annotated[
    bool, Parameter(negative="", help="IoU of the pixels near outlines; of panoptic files boundary PQ.", group=measures)
]
Surface = Annotated[
    float | None,
    Parameter(
        name="--surface",
        help="HD95 and mean distance between outlines, and normalised surface Dice (NSD) at this tolerance.",
        group=measures,
    ),
]
Spacing = Annotated[
    list[float] | None,
    Parameter(
        help="Size of a pixel, rows then columns, or one number: the unit of --surface. Default: 1.",
        negative="",
        consume_multiple=True,
        group=measures,
    ),
]
ClDice = Annotated[
    list[str] | None,
    Parameter(
        name="--cldice",
        help="clDice of a class that is tubes, such as vessels. Repeatable.",
        negative="",
        consume_multiple=False,
        group=measures,
    ),
]
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
Sigmas = Annotated[
    list[float] | None,
    Parameter(help="Of keypoint similarity, one a point. Default: COCO's.", negative="", consume_multiple=True, group=measures),
]
Confidence = Annotated[float | None, Parameter(help="Default: 0.95.", group=intervals)]
Resamples = Annotated[int | None, Parameter(help="Default: 2000.", group=intervals)]
BootstrapSeed = Annotated[int | None, Parameter(help="The same seed draws the same pictures. Default: 0.", group=intervals)]
PerImage = Annotated[Path | None, Parameter(help="Also write a CSV with the numbers of each picture, one row a picture.")]


def evaluate_(
    weights: Path,
    data: Path,
    *,
    split: Annotated[str | None, Parameter(help="Default: val, or all pictures where there is no such split.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for pictures of the best and worst predictions.")] = None,
    predictions: Annotated[
        Path | None, Parameter(help="Of a detector: also write what was found as COCO's list of results into this JSON file.")
    ] = None,
    flips: Annotated[bool, Parameter(negative="", help="Average over mirrored pictures.")] = False,
    score_threshold: Annotated[
        float, Parameter(help="Objects with a lower score are left out, except in COCO's numbers.")
    ] = 0.5,
    preset: Preset = None,
    boundary: Boundary = False,
    surface: Surface = None,
    spacing: Spacing = None,
    cldice: ClDice = None,
    em: EmScores = False,
    iou_types: IouTypes = None,
    confidence: Confidence = None,
    resamples: Resamples = None,
    seed: BootstrapSeed = None,
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

    predictor = Predictor(weights, device or "auto", precision or "auto", score_threshold, flips=flips)
    dataset = open_dataset(data, format)
    split = split or ("val" if "val" in dataset.splits else "all")
    if split != "all" and split not in dataset.splits:
        raise ConfigError(f"--split {split}: {data} has {', '.join(dataset.splits)}")
    records = dataset.records if split == "all" else dataset.splits[split]
    intervals = _resampling(confidence, resamples, seed)
    families = _families(preset, boundary, surface, spacing, cldice, em)
    evaluation = evaluate(
        predictor,
        dataset,
        records,
        split=split,
        previews=out,
        intervals=intervals,
        iou_types=iou_types or (),
        predictions=predictions,
        **families,
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
    preset: Preset = None,
    boundary: Boundary = False,
    surface: Surface = None,
    spacing: Spacing = None,
    cldice: ClDice = None,
    em: EmScores = False,
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
    confidence: Confidence = None,
    resamples: Resamples = None,
    seed: BootstrapSeed = None,
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

    drawn = confidence is not None or resamples is not None or seed is not None
    compared = truth is not None and other is not None
    truth = truth or other
    if truth is None:
        raise ConfigError("nothing to score against: give PREDICTIONS TRUTH, or A B --truth TRUTH to compare two predictions")
    if drawn and not (ci or compared):
        raise ConfigError("--confidence, --resamples and --seed are of the intervals; add --ci")
    resampling = _resampling(confidence, resamples, seed)
    options: ScoreOptions = {
        "format": format,
        "ignore": ignore,
        "iou_types": iou_types or (),
        "sigmas": sigmas,
        "backend": backend,
        "errors": errors is not None,
        **_families(preset, boundary, surface, spacing, cldice, em),
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


def _families(
    preset: str | None,
    boundary: bool,
    surface: float | None,
    spacing: list[float] | None,
    cldice: list[str] | None,
    em: bool,
) -> Families:
    families: Families = {"preset": preset, "boundary": boundary, "surface": surface, "cldice": cldice or (), "em": em}
    if spacing:
        families["spacing"] = spacing if len(spacing) > 1 else spacing[0]
    return families


def _resampling(confidence: float | None, resamples: int | None, seed: int | None) -> Any:
    from delineate.metrics.bootstrap import Resampling

    given = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return Resampling(**{name: value for name, value in given.items() if value is not None})
