"""Panoptic quality against panopticapi, boundary-iou-api, torchmetrics and the definition, and files with faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.panoptic_quality import compute_panoptic_quality
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torchmetrics.detection import PanopticQuality as TheirPanopticQuality

from delineate.data.formats.panoptic import read_panoptic
from delineate.data.panoptic import PanopticMap, panoptic_map
from delineate.errors import DataError
from delineate.metrics import PanopticQuality, bootstrap_interval, score_panoptic_files

# Made by pq_compute of cocodataset/panopticapi at 7bb4655548f9 and of bowenc0221/boundary-iou-api at 37d25586a677 (OpenCV 5.0)
# on the predictions that `disturbed` makes of each data set: PQ, SQ, RQ of all, things, stuff.
GOLDEN = {
    "mask": {
        "panoptic_pq": [
            (0.5012538083320022, 0.6044939740557052, 0.59797879260994),
            (0.45267734865784426, 0.5594894780152906, 0.5712102361436379),
            (0.5567697622453253, 0.6559276838161787, 0.6285714285714284),
        ],
        "sample_data": [
            (0.5662005957607434, 0.6577016287565745, 0.6664761904761904),
            (0.45910288927345144, 0.5490426790905089, 0.5552380952380952),
            (0.7268471554916813, 0.8206900532556726, 0.8333333333333334),
        ],
        "coco2017_mini": [
            (0.4977397544128301, 0.6488050788611416, 0.6024262337116775),
            (0.49231183034936693, 0.6446293773967026, 0.6081550920425601),
            (0.5044915623942112, 0.653999244097395, 0.5953000928610687),
        ],
    },
    "boundary": {
        "panoptic_pq": [
            (0.4670952593896327, 0.5821287116255897, 0.5804924538121259),
            (0.4292532237508368, 0.5485376023192691, 0.5571733508977361),
            (0.5103433001196852, 0.6205185508328129, 0.607142857142857),
        ],
        "sample_data": [
            (0.5464864280209148, 0.6337128738234983, 0.6664761904761904),
            (0.45250571531303474, 0.5409491035445432, 0.5552380952380952),
            (0.687457497082735, 0.7728585292419309, 0.8333333333333334),
        ],
        "coco2017_mini": [
            (0.4549541495137381, 0.6233791994068648, 0.5658129677505856),
            (0.45819586851221944, 0.6277386253488598, 0.5830520904689703),
            (0.4509217673448957, 0.6179564988448707, 0.5443691809545468),
        ],
    },
}


def as_png(ids: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


def write_files(folder: Path, name: str, annotations: list[dict[str, Any]], maps: list[NDArray[Any]], **more: Any) -> Path:
    (folder / name).mkdir(parents=True)
    for annotation, ids in zip(annotations, maps, strict=True):
        as_png(ids).save(folder / name / annotation["file_name"])
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"annotations": annotations, **more}))
    return path


def disturbed(truth: Path, folder: Path) -> Path:
    """Predictions that are the truth moved by a few pixels, with segments split, joined, dropped and called something else."""
    content = json.loads(truth.read_text())
    categories = [category["id"] for category in content["categories"]]
    annotations, maps = [], []
    for number, annotation in enumerate(content["annotations"]):
        with Image.open(truth.with_suffix("") / annotation["file_name"]) as image:
            colors = np.asarray(image, np.int64)
        ids = np.roll(colors @ np.array([1, 256, 65536]), (number % 3, 1 + number % 4), (0, 1))
        labels = {segment["id"]: segment["category_id"] for segment in annotation["segments_info"]}
        for k, segment in enumerate(list(labels)):
            if k % 7 == 3:  # split in two halves, left and right
                columns = np.flatnonzero((ids == segment).any(axis=0))
                right = (ids == segment) & (np.arange(ids.shape[1]) > np.median(columns))
                ids[right], labels[segment + 1] = segment + 1, labels[segment]
            elif k % 7 == 5:
                ids[ids == segment] = 0
            elif k % 7 == 6:
                labels[segment] = categories[(categories.index(labels[segment]) + 1) % len(categories)]
        present = np.unique(ids)
        segments = [{"id": i, "category_id": c} for i, c in labels.items() if i in present]
        annotations.append({k: annotation[k] for k in ("image_id", "file_name")} | {"segments_info": segments})
        maps.append(ids)
    return write_files(folder, "pred", annotations, maps)


DATA: dict[str, Callable[[Path], Path]] = {
    "panoptic_pq": lambda data: data / "reference_eval" / "panoptic_pq" / "gt.json",
    "sample_data": lambda data: data / "reference_eval" / "panopticapi_sample_data" / "panoptic_examples.json",
    "coco2017_mini": lambda data: data / "coco2017_mini" / "annotations" / "panoptic_val2017.json",
}


def as_triples(scores: dict[str, float]) -> list[tuple[float, float, float]]:
    return [(scores[f"pq{g}"], scores[f"sq{g}"], scores[f"rq{g}"]) for g in ("", "_things", "_stuff")]


@pytest.mark.parametrize("name", DATA)
def test_real_data_score_as_panopticapi_and_boundary_iou_api_say(real_data: Path, tmp_path: Path, name: str) -> None:
    truth = DATA[name](real_data)
    predictions = disturbed(truth, tmp_path)
    for iou in ("mask", "boundary"):
        found = score_panoptic_files(predictions, truth, iou=iou)
        np.testing.assert_allclose(as_triples(found.quality.summary()), GOLDEN[iou][name], rtol=1e-13, atol=0)


def test_every_class_of_panoptic_pq_scores_as_expected(real_data: Path) -> None:
    folder = real_data / "reference_eval" / "panoptic_pq"
    expected = json.loads((folder / "expected_pq.json").read_text())
    found = score_panoptic_files(folder / "pred.json", folder / "gt.json")
    means = found.quality.means()
    for group, of_group in expected.items():
        if group == "per_class":
            continue
        for key in ("pq", "sq", "rq"):
            name = key if group == "All" else f"{key}_{group.lower()}"
            assert float(means[name]) == pytest.approx(of_group[key], rel=1e-13)
    rows = found.quality.per_class(found.classes)
    ids = read_panoptic(folder / "gt.json", folder / "gt").category_ids
    seen = {str(i): row for i, row in zip(ids, rows, strict=True) if not math.isnan(row["pq"])}
    assert len(seen) == expected["All"]["n"]
    assert sum(row["thing"] for row in seen.values()) == expected["Things"]["n"]
    for category, of_class in expected["per_class"].items():
        for key in ("pq", "sq", "rq"):
            # panopticapi gives 0 to a class that does not occur, and leaves it out of the means
            assert seen.get(category, {key: 0.0})[key] == pytest.approx(of_class[key], rel=1e-13)


# By the definition, mask by mask: slow, and without the tables that the measure is made of.


def eroded(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_erosion(mask, np.ones((3, 3)), distance)) > 0


def by_definition(prediction: PanopticMap, truth: PanopticMap, classes: int, boundary: bool, ratio: float) -> NDArray[Any]:
    sums = np.zeros((classes, 4))
    void = truth.segments == 0
    distance = max(1, round(ratio * math.hypot(*void.shape)))
    masks_t = {k: truth.segments == k for k in range(1, len(truth.labels) + 1)}
    masks_p = {k: prediction.segments == k for k in range(1, len(prediction.labels) + 1)}
    matched: set[tuple[str, int]] = set()
    for i, a in masks_t.items():
        for j, b in masks_p.items():
            if truth.labels[i - 1] != prediction.labels[j - 1] or truth.crowd[i - 1] or not (a & b).any():
                continue
            iou = (a & b).sum() / ((a | b) & ~(b & void)).sum()
            if boundary:
                edge_a, edge_b = a & ~eroded(a, distance), b & ~eroded(b, distance)
                iou = min(iou, (edge_a & edge_b).sum() / ((edge_a | edge_b) & ~(edge_b & void)).sum())
            if iou > 0.5:
                sums[truth.labels[i - 1]] += (1, 0, 0, iou)
                matched |= {("truth", i), ("prediction", j)}
    for i, a in masks_t.items():
        if a.any() and not truth.crowd[i - 1] and ("truth", i) not in matched:
            sums[truth.labels[i - 1], 2] += 1
    for j, b in masks_p.items():
        ignored = void.copy()
        for i, a in masks_t.items():
            ignored |= a & (truth.crowd[i - 1] and truth.labels[i - 1] == prediction.labels[j - 1])
        if b.any() and ("prediction", j) not in matched and (b & ignored).sum() / b.sum() <= 0.5:
            sums[prediction.labels[j - 1], 1] += 1
    return sums


@st.composite
def panoptic_pairs(draw: st.DrawFn) -> tuple[PanopticMap, PanopticMap]:
    """Small pictures in which matches, void and crowds are frequent; the prediction is the truth with changes."""
    shape, segments = draw(st.tuples(st.integers(1, 8), st.integers(1, 8))), 5
    truth = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, segments), fill=st.integers(0, segments)))
    other = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, segments), fill=st.integers(0, segments)))
    prediction = np.where(draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(True))), truth, other)
    labels = st.lists(st.integers(0, 2), min_size=segments, max_size=segments)
    of_truth = np.array(draw(labels))
    of_prediction = of_truth if draw(st.booleans()) else np.array(draw(labels))
    crowd = np.array(draw(st.lists(st.sampled_from([False, False, True]), min_size=segments, max_size=segments)))
    return PanopticMap(prediction, of_prediction, np.zeros(segments, bool)), PanopticMap(truth, of_truth, crowd)


@settings(max_examples=300, deadline=None)
@given(panoptic_pairs(), st.sampled_from(["mask", "boundary"]), st.sampled_from([0.02, 0.2]))
def test_sums_follow_from_the_definition(pair: tuple[PanopticMap, PanopticMap], iou: Any, ratio: float) -> None:
    prediction, truth = pair
    found = PanopticQuality(3, iou=iou, dilation_ratio=ratio).update(prediction, truth).sums
    np.testing.assert_allclose(found, by_definition(prediction, truth, 3, iou == "boundary", ratio), rtol=1e-14)


def test_two_crowds_of_one_class_both_excuse_a_false_positive() -> None:
    truth = PanopticMap(np.array([[1, 1, 2, 2, 3, 3]]), np.array([0, 0, 1]), np.array([True, True, False]))
    found = PanopticMap(np.array([[1, 1, 1, 1, 1, 2]]), np.array([0, 1]), np.zeros(2, bool))
    sums = PanopticQuality(2).update(found, truth).sums
    assert sums[0].tolist() == [0, 0, 0, 0]
    # panopticapi keeps the last crowd of a class only, 2 of 5 pixels, and counts a false positive. COCO has one crowd a class.
    one = PanopticMap(truth.segments, truth.labels, np.array([False, True, False]))
    assert PanopticQuality(2).update(found, one).sums[0].tolist() == [0, 1, 1, 0]


def test_half_on_void_is_false_and_more_is_dropped() -> None:
    found = PanopticMap(np.array([[1, 1, 1, 1]]), np.array([0]), np.array([False]))
    for truth, false in (([0, 0, 1, 1], 1), ([0, 0, 0, 1], 0)):
        wanted = PanopticMap(np.array([truth]), np.array([1]), np.array([False]))
        assert PanopticQuality(2).update(found, wanted).sums[:, 1].tolist() == [false, 0]


def test_iou_of_one_half_is_no_match_and_void_does_not_count_in_the_union() -> None:
    found = PanopticMap(np.array([[1, 1, 1, 1]]), np.array([0]), np.array([False]))
    for truth, sums in (([1, 1, 2, 2], [0, 1, 1, 0]), ([1, 1, 2, 0], [1, 0, 0, 2 / 3])):
        wanted = PanopticMap(np.array([truth]), np.array([0, 1]), np.array([False, False]))
        assert PanopticQuality(2).update(found, wanted).sums[0].tolist() == pytest.approx(sums)


# Peers


def class_and_object_maps(seed: int, size: int = 40) -> tuple[NDArray[Any], NDArray[Any]]:
    """Classes 0, 1 (stuff), 2, 3 (things, numbered 1 ...) in blocks."""
    rng = np.random.default_rng(seed)
    block = np.ones((5, 5), np.int64)
    classes = np.kron(rng.integers(0, 4, (size // 5, size // 5)), block)
    objects = np.kron(rng.integers(1, 4, (size // 5, size // 5)), block) * (classes > 1)
    return classes, objects


def torchmetrics_pq(found: tuple[NDArray[Any], ...], wanted: tuple[NDArray[Any], ...], **options: Any) -> NDArray[Any]:
    """(PQ, SQ, RQ) of classes 0 .. 3."""
    metric = TheirPanopticQuality(things={2, 3}, stuffs={0, 1}, return_sq_and_rq=True, return_per_class=True, **options)
    metric.update(*(torch.from_numpy(np.stack(maps, axis=-1))[None] for maps in (found, wanted)))
    # their order of classes is things, then stuff
    return metric.compute().numpy()[[2, 3, 0, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_without_void_and_crowd_torchmetrics_agrees(seed: int) -> None:
    wanted = class_and_object_maps(seed)
    found = tuple(np.roll(m, 1, seed % 2) for m in wanted)
    ours = PanopticQuality(4, things=[2, 3])
    ours.update(panoptic_map(*found, things=[2, 3]), panoptic_map(*wanted, things=[2, 3]))
    scores = np.stack([ours.pq(), ours.sq(), ours.rq()], axis=-1)
    assert (scores > 0.2).any()
    np.testing.assert_allclose(np.nan_to_num(scores), torchmetrics_pq(found, wanted), rtol=1e-6)


def test_torchmetrics_forgives_a_missed_segment_where_nothing_is_predicted() -> None:
    objects = np.zeros((1, 4), np.int64)
    wanted = np.array([[0, 0, 1, 1]]), objects
    found = np.array([[9, 9, 1, 1]]), objects  # the first class is not predicted: no class at all
    ours = PanopticQuality(2)
    ours.update(panoptic_map(*found, ignore_index=9), panoptic_map(*wanted, ignore_index=9))
    assert ours.false_negatives.tolist() == [1, 0]
    assert ours.pq().tolist() == [0, 1]
    theirs = torchmetrics_pq(found, wanted, allow_unknown_preds_category=True)
    assert theirs[:2, 0].tolist() == [0, 1]
    metric = TheirPanopticQuality(things={2}, stuffs={0, 1}, allow_unknown_preds_category=True)
    metric.update(*(torch.from_numpy(np.stack(maps, axis=-1))[None] for maps in (found, wanted)))
    assert float(metric.compute()) == 1.0  # class 0 does not occur for it
    assert float(ours.mean_pq()) == 0.5  # panopticapi's rule: it was missed


def test_monai_adds_a_millionth_to_the_denominator() -> None:
    classes, objects = class_and_object_maps(1)
    wanted = np.where(classes == 2, objects, 0)
    found = np.roll(wanted, 1, axis=1)
    ours = PanopticQuality(1, things=[0])
    ours.update(*(panoptic_map(np.where(m > 0, 0, 255), m, things=[0]) for m in (found, wanted)))
    # MONAI has no void: what is no object is background, and a prediction on it is false
    background = PanopticQuality(2, things=[1])
    background.update(*(panoptic_map((m > 0).astype(int), m, things=[1]) for m in (found, wanted)))
    theirs = float(compute_panoptic_quality(torch.from_numpy(found), torch.from_numpy(wanted)))
    counts = background.sums[1]
    smoothed = counts[3] / (counts[0] + (counts[1] + counts[2]) / 2 + 1e-6)
    assert theirs == pytest.approx(smoothed, rel=1e-6)
    assert theirs < background.pq()[1] < ours.pq()[0]
    nothing = torch.zeros((4, 4), dtype=torch.int64)
    assert float(compute_panoptic_quality(nothing, nothing)) == 0.0  # where nothing is to be found, ours is not defined
    assert math.isnan(float(PanopticQuality(1).mean_pq()))


# Streaming


def test_sums_stream_merge_and_resample() -> None:
    pairs = []
    for seed in range(8):
        wanted = class_and_object_maps(seed)
        found = tuple(np.roll(m, seed % 4, 1) for m in wanted)
        pairs.append((panoptic_map(*found, things=[2, 3]), panoptic_map(*wanted, things=[2, 3])))
    whole, halves = PanopticQuality(4, [2, 3]), [PanopticQuality(4, [2, 3]) for _ in range(2)]
    pictures = [whole.update(*pair) for pair in pairs]
    for number, pair in enumerate(pairs):
        halves[number % 2].update(*pair)
    halves[0].state = halves[0].state + halves[1].state
    np.testing.assert_allclose(halves[0].sums, whole.sums, rtol=1e-14)
    sums = np.stack([picture.sums for picture in pictures])
    np.testing.assert_allclose(sums.sum(axis=0), whole.sums)
    np.testing.assert_allclose(whole.with_sums(sums).pq()[3], pictures[3].pq())
    low, high = bootstrap_interval(sums, lambda s: whole.with_sums(s).mean_pq("things"))
    assert low < float(whole.mean_pq("things")) < high
    with pytest.raises(ValueError, match=r"cannot merge"):
        whole.merge(PanopticQuality(4, [1]))
    with pytest.raises(ValueError, match=r"expected 'mask' or 'boundary'"):
        PanopticQuality(2, iou="box")  # pyright: ignore[reportArgumentType]


def test_numbers_of_objects_may_be_large_and_classes_must_be_known() -> None:
    semantic, instances = np.array([[1, 1, 1, 1]]), np.array([[7, 7, 2**40, 0]])
    large = panoptic_map(semantic, instances, things=[1])
    assert large.segments.tolist() == [[1, 1, 2, 0]]
    assert large.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match=r"prediction has a segment of class 1, but the classes are 0..0"):
        PanopticQuality(1).update(large, large)
    with pytest.raises(DataError, match=r"shape \(1, 4\), that of objects \(2, 2\)"):
        panoptic_map(semantic, instances.reshape(2, 2))
    with pytest.raises(DataError, match=r"holds -1; objects are numbered from 0"):
        panoptic_map(semantic, instances * 0 - 1)
    other = PanopticMap(large.segments.T, large.labels, large.crowd)
    with pytest.raises(DataError, match=r"prediction has shape \(4, 1\), truth \(1, 4\)"):
        PanopticQuality(2).update(other, large)


# Files with faults

CATEGORIES = [{"id": 3, "name": "sky", "isthing": 0}, {"id": 70, "name": "cat", "isthing": 1}]
IDS = np.array([[1, 1, 300, 300], [1, 1, 70_000, 0]])


def annotation(**changes: Any) -> dict[str, Any]:
    segments = [{"id": 1, "category_id": 3}, {"id": 300, "category_id": 70}, {"id": 70_000, "category_id": 70, "iscrowd": 1}]
    return {"image_id": 5, "file_name": "a.png", "segments_info": segments} | changes


def files(folder: Path, predicted: list[dict[str, Any]], ids: NDArray[Any] = IDS) -> tuple[Path, Path]:
    truth = write_files(folder, "truth", [annotation()], [IDS], categories=CATEGORIES)
    return write_files(folder, "found", predicted, [ids] * len(predicted)), truth


def segments_with(**changes: Any) -> list[dict[str, Any]]:
    first, *others = annotation()["segments_info"]
    return [first | changes, *others]


def test_equal_files_score_one(tmp_path: Path) -> None:
    found = score_panoptic_files(*files(tmp_path, [annotation()]))
    assert found.classes == ("sky", "cat")
    assert found.quality.means()["pq"] == 1
    assert found.sums.shape == (1, 2, 4)
    assert found.scores(np.array([[1.0], [0.0]]))["pq"].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert found.quality.true_positives.tolist() == [1, 1]  # the crowd is neither found nor false


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([], "has no prediction for picture 5"),
        ([annotation(image_id=6)], "picture 6 is not in"),
        ([annotation(), annotation()], "the picture 5 is given twice"),
        ([annotation(segments_info=segments_with(category_id=4))], "segment 1 has the category_id 4; known are 3, 70"),
        ([annotation(segments_info=segments_with(id=0))], "a segment has the id 0"),
        ([annotation(segments_info=segments_with(id=300))], "the segment id 300 is given twice"),
        ([annotation(segments_info=segments_with(id=2))], "a.png: holds segment 1, which the JSON does not list for picture 5"),
        (
            [annotation(segments_info=[*segments_with(), {"id": 9, "category_id": 3}])],
            "a.png: has no pixel of segment 9, which the JSON lists for picture 5",
        ),
        ([{"image_id": 5, "segments_info": []}], "annotation 0 has no 'file_name'"),
    ],
)
def test_faulty_predictions_are_named(tmp_path: Path, predicted: list[dict[str, Any]], message: str) -> None:
    if predicted and "file_name" not in predicted[0]:
        truth = write_files(tmp_path, "truth", [annotation()], [IDS], categories=CATEGORIES)
        found = write_files(tmp_path, "found", [], [])
        found.write_text(json.dumps({"annotations": predicted}))
    else:
        found, truth = files(tmp_path, predicted)
    with pytest.raises(DataError) as caught:
        score_panoptic_files(found, truth)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_other_sizes_are_named(tmp_path: Path) -> None:
    found, truth = files(tmp_path, [annotation()])
    as_png(np.pad(IDS, ((0, 1), (0, 0)))).save(tmp_path / "found" / "a.png")
    with pytest.raises(DataError, match=r"a.png: is 4 x 3 pixels, its truth .*a.png 4 x 2; both must be the same"):
        score_panoptic_files(found, truth)
    (tmp_path / "found" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a.png"):
        score_panoptic_files(found, truth)
    (tmp_path / "found" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.png"):
        score_panoptic_files(found, truth)
    with pytest.raises(DataError, match=r"nowhere: is not a folder; expected the PNGs of found.json"):
        score_panoptic_files(found, truth, prediction_folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nothing.json: cannot be read"):
        score_panoptic_files(tmp_path / "nothing.json", truth)
    truth.write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match=r"has no list 'categories'"):
        score_panoptic_files(found, truth)
    truth.write_text(json.dumps({"annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(DataError, match=r"the category 'cat' has no 'isthing'"):
        score_panoptic_files(found, truth)
