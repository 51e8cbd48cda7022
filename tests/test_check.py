"""`data check` finds every planted fault in one go and leaves sound data alone; statistics are those of the pixels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.spatial.distance import cdist

from delineate.data import CheckReport, check_dataset, dataset_statistics, open_dataset, preview_dataset
from delineate.data.similarity import difference_hash, near_pairs
from delineate.data.stats import neighbours
from delineate.errors import DataError

RNG = np.random.default_rng(0)
H, W = 40, 60


def smooth(seed: int) -> np.ndarray:
    """A picture with large shapes, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC))


def put(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def mask(*values: int) -> np.ndarray:
    ids = np.zeros((H, W), np.uint8)
    for i, value in enumerate(values):
        ids[4 + 8 * i : 10 + 8 * i, 5:50] = value
    return ids


def kinds(report: CheckReport, severity: str) -> Counter[str]:
    return Counter(f.kind for f in report.findings if f.severity == severity)


def test_every_fault_of_a_folder_is_found_at_once(tmp_path: Path) -> None:
    for i in range(12):
        put(tmp_path / "train" / "images" / f"{i}.png", smooth(i))
        put(tmp_path / "train" / "masks" / f"{i}.png", mask(1, 2))
        put(tmp_path / "val" / "images" / f"v{i}.png", smooth(100 + i))
        put(tmp_path / "val" / "masks" / f"v{i}.png", mask(1, 3))
    (tmp_path / "classes.txt").write_text("background\ncell\ndot\nrod\nghost\n")
    train = tmp_path / "train"
    (train / "images" / "0.png").write_bytes((train / "images" / "0.png").read_bytes()[:300])
    (train / "images" / "1.png").write_text("text")
    (train / "masks" / "2.png").write_bytes(b"")
    put(train / "masks" / "3.png", mask(1)[:20])
    put(train / "masks" / "4.png", mask(1, 9))
    put(train / "masks" / "5.png", mask())
    (train / "masks" / "6.png").unlink()
    (train / "images" / "7.png").unlink()
    put(tmp_path / "val" / "images" / "v0.png", smooth(8))
    put(tmp_path / "val" / "images" / "v1.jpg", smooth(9))
    (tmp_path / "val" / "images" / "v1.png").unlink()
    dots = mask(1)
    dots[0, 0] = 2
    for i in (8, 9, 10, 11):
        put(train / "masks" / f"{i}.png", dots)

    report = check_dataset(tmp_path)
    assert kinds(report, "error") == {
        "damaged file": 3,  # images 0 and 1, mask 2
        "size mismatch": 1,
        "label outside the class list": 1,
        "same picture in two splits": 1,
    }
    assert kinds(report, "warning") == {
        "empty mask": 1,
        "no label": 1,
        "unpaired file": 1,
        "near-duplicate across splits": 1,
        "class without examples": 1,  # ghost
        "class not in train": 1,  # rod
        "class imbalance": 1,  # dot
    }
    assert (report.errors, report.warnings) == (6, 7)
    content = report.to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["errors"] == 6
    assert content["pictures"] == {"train": 10, "val": 12, "unlabelled": 1}
    by_kind = {f["kind"]: f for f in content["findings"]}
    assert by_kind["label outside the class list"]["path"].endswith("4.png")
    assert "holds the value 9" in by_kind["label outside the class list"]["message"]
    assert all("\n" not in f["message"] and not f["message"].startswith("/") for f in content["findings"])


def test_the_table_shows_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "images" / "[a].png", smooth(0))
    put(tmp_path / "masks" / "[a].png", mask()[:5])
    check_dataset(tmp_path, "png:semantic").print()
    shown = capsys.readouterr().out
    assert "size mismatch" in shown
    assert "[a].png" in shown
    assert "1 errors, 0 warnings" in shown


def coco(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> Path:
    put(folder / "a.png", smooth(0))
    put(folder / "b.png", smooth(1))
    content = {
        "images": [{"id": i, "file_name": f"{s}.png", "height": H, "width": W} for i, s in enumerate("ab")],
        "annotations": [{"id": n, "image_id": 0, "category_id": 1, **a} for n, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cell"}],
        **more,
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


SOUND = [5, 5, 20, 5, 20, 15, 5, 15]


@pytest.mark.parametrize(
    ("annotation", "severity", "kind"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, "warning", "degenerate polygon"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "warning", "degenerate polygon"),
        ({"segmentation": [[5, 5, 20, 15, 20, 5, 5, 15]]}, "warning", "self-crossing polygon"),
        ({"segmentation": [[5, 5, 90, 5, 90, 15, 5, 15]]}, "warning", "outside the image"),
        ({"segmentation": [SOUND], "bbox": [5, 5, 0, 10]}, "warning", "degenerate box"),
        ({"segmentation": [SOUND], "bbox": [5, 5, 100, 10]}, "warning", "outside the image"),
        ({"segmentation": [SOUND], "bbox": [100, 5, 10, 10]}, "error", "outside the image"),
        ({"segmentation": {"size": [W, H], "counts": [H * W]}}, "error", "damaged outline"),
        ({"segmentation": {"size": [H, W], "counts": [H * W]}}, "warning", "empty object"),
        ({"segmentation": "x"}, "error", "annotation"),
        ({"segmentation": [SOUND], "category_id": 2}, "error", "unknown category"),
        ({"segmentation": [SOUND], "image_id": 7}, "warning", "annotation"),
        ({"segmentation": [SOUND], "id": 0}, "warning", "duplicate id"),
    ],
)
def test_every_fault_of_an_annotation(tmp_path: Path, annotation: dict[str, Any], severity: str, kind: str) -> None:
    sound = [{"segmentation": [SOUND], "bbox": [5, 5, 15, 10]}, {"segmentation": [SOUND], "image_id": 1}]
    assert check_dataset(coco(tmp_path, sound)).findings == ()
    report = check_dataset(coco(tmp_path, [*sound, annotation]))
    assert kind in kinds(report, severity)
    assert len(report.findings) <= 2  # an empty object may come with its reason


def test_keypoints_outside_and_pictures_without_objects(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person", "keypoints": ["a", "b"]}]
    report = check_dataset(
        coco(tmp_path, [{"segmentation": [SOUND], "keypoints": [500, 5, 2, -9, 0, 0]}], categories=categories)
    )
    assert kinds(report, "warning") == {"outside the image": 1, "no objects": 1}


def test_missing_files_other_sizes_and_orientation(tmp_path: Path) -> None:
    sound = [{"segmentation": [SOUND]}, {"segmentation": [SOUND], "image_id": 1}]
    path = coco(tmp_path, sound)
    (tmp_path / "a.png").unlink()
    put(tmp_path / "b.png", smooth(3)[:-1])
    assert kinds(check_dataset(path), "error") == {"missing file": 1, "size mismatch": 1}
    path = coco(tmp_path, sound)
    exif = Image.Exif()
    exif[274] = 3
    put(tmp_path / "b.png", smooth(1), exif=exif)
    assert kinds(check_dataset(path), "warning") == {"EXIF orientation": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"images": [\n]', "line 2"), ("[]", "is a list"), ("{}", "has no list 'images'"), ("", "is not JSON")],
)
def test_an_annotation_file_that_cannot_be_read_is_a_finding(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    report = check_dataset(tmp_path / "labels.json")
    assert kinds(report, "error") == {"unreadable data set": 1}
    assert words in report.findings[0].message


def test_one_broken_labelme_file_does_not_hide_the_others(tmp_path: Path) -> None:
    shapes = [{"label": "x", "points": [[1, 1], [20, 1], [20, 20]], "shape_type": "polygon"}]
    for stem in "abc":
        put(tmp_path / f"{stem}.png", smooth(ord(stem)))
        content = {"shapes": shapes, "imagePath": f"{stem}.png", "imageHeight": H, "imageWidth": W}
        (tmp_path / f"{stem}.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text('{"shapes": [')
    report = check_dataset(tmp_path)
    assert kinds(report, "error") == {"annotation": 1}
    assert report.statistics["pictures"] == {"all": 2}


def test_near_duplicates_are_those_that_look_alike() -> None:
    first = smooth(0)
    darker = (first * 0.7).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(first).resize((W // 2, H // 2)))
    noisy = np.clip(first + RNG.normal(0, 3, first.shape), 0, 255).astype(np.uint8)
    others = [smooth(i) for i in range(1, 30)]
    hashes = np.stack([difference_hash(p) for p in (first, darker, smaller, noisy, *others)])
    assert near_pairs(hashes) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert near_pairs(hashes[:0].reshape(0, 4)) == []


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("camvid", {}),
        ("isbi2012_em", {}),
        ("dsb2018_nuclei", {}),
        ("chase_db1", {}),
        ("pennfudan", {}),
        ("nuclei_stardist_samples", {"number types differ": 1}),  # one of two is 16-bit
        (
            "coco2017_mini",
            {"class imbalance": 18, "class not in train": 2, "class without examples": 1, "self-crossing polygon": 2},
        ),
    ],
)
def test_real_data_is_sound(real_data: Path, name: str, warnings: dict[str, int]) -> None:
    report = check_dataset(real_data / name)
    assert report.errors == 0, report.findings[:3]
    assert kinds(report, "warning") == warnings


# Statistics.


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    pictures, masks = [smooth(i) for i in range(4)], [mask(1, 2), mask(1), mask(1, 2, 255), mask()]
    for i, (pixels, ids) in enumerate(zip(pictures, masks, strict=True)):
        put(tmp_path / "train" / "images" / f"{i}.png", pixels)
        put(tmp_path / "train" / "masks" / f"{i}.png", ids)
    put(tmp_path / "test" / "images" / "t.png", smooth(9)[:20, :30])
    statistics = dataset_statistics(open_dataset(tmp_path))
    values = np.stack(pictures).astype(float).reshape(-1, 3)
    labels = np.stack(masks)
    counted = labels[labels != 255]
    assert statistics.pictures == {"train": 4, "test": 1}
    assert (statistics.sampled, statistics.size_min, statistics.size_max) == (4, (20, 30), (H, W))
    assert np.allclose(statistics.mean, values.mean(0))
    assert np.allclose(statistics.std, values.std(0))
    assert statistics.value_range == (values.min(), values.max())
    assert np.allclose(statistics.class_pixels, [(counted == i).mean() for i in range(3)])
    assert statistics.class_pictures == (4, 3, 2)
    assert statistics.ignored == pytest.approx((labels == 255).mean())
    assert statistics.brightness_spread == pytest.approx(np.std([p.mean() for p in pictures]) / values.std())
    assert (statistics.channels, statistics.colourless, statistics.dtypes) == ({3: 4}, 0.0, {"uint8": 4})
    assert statistics.objects is None
    assert json.loads(json.dumps(statistics.to_json()))["sampled"] == 4


def test_statistics_of_grey_and_colour_together(tmp_path: Path) -> None:
    grey = smooth(0)[..., 0]
    for name, pixels in (("a", grey), ("b", np.dstack([grey] * 3)), ("c", smooth(1))):
        put(tmp_path / "images" / f"{name}.png", pixels)
        put(tmp_path / "masks" / f"{name}.png", mask(1))
    statistics = dataset_statistics(open_dataset(tmp_path))
    assert statistics.channels == {1: 1, 3: 2}
    assert statistics.colourless == pytest.approx(2 / 3)
    together = np.stack([np.dstack([grey] * 3)] * 2 + [smooth(1)]).astype(float)
    assert np.allclose(statistics.mean, together.reshape(-1, 3).mean(0))


def test_statistics_of_objects(tmp_path: Path) -> None:
    ids = np.zeros((H, W), np.uint16)
    ids[2:10, 2:12], ids[2:10, 12:20], ids[20:30, 20:30], ids[20:30, 33:40] = 1, 2, 3, 4
    put(tmp_path / "images" / "a.png", smooth(0))
    put(tmp_path / "instances" / "a.png", ids)
    objects = dataset_statistics(open_dataset(tmp_path)).objects
    assert objects is not None
    assert (objects.count, objects.per_picture, objects.crowds) == (4, (4, 4.0, 4), 0)
    assert np.allclose(objects.area, np.quantile([80, 64, 100, 70], (0.05, 0.25, 0.5, 0.75, 0.95)))
    assert objects.diameter[2] == pytest.approx(2 * np.sqrt(objects.area[2] / np.pi))
    assert (objects.touching, objects.gap) == (0.5, 3.0)


@settings(deadline=None)
@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_neighbours_as_by_distances(ids: np.ndarray) -> None:
    """Objects touch where pixel centres are at most a diagonal apart."""
    found, gap = neighbours(ids)
    points = {i: np.argwhere(ids == i) for i in np.unique(ids[ids > 0]).tolist()}
    apart = {(a, b): cdist(points[a], points[b]).min() for a in points for b in points if a < b}
    assert found == {i for pair, distance in apart.items() if distance < 1.5 for i in pair}
    separate = [distance for distance in apart.values() if distance >= 1.5]
    if gap is not None:
        assert gap >= min(separate) - 1 - 1e-9  # background pixels between, not centre to centre
    if len(points) == 2 and separate:
        assert gap is not None
        assert gap <= separate[0] + 0.5


def test_statistics_leave_damaged_pictures_to_the_check(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "images" / f"{i}.png", smooth(i))
        put(tmp_path / "masks" / f"{i}.png", mask(1))
    (tmp_path / "images" / "1.png").write_text("x")
    dataset = open_dataset(tmp_path)
    assert dataset_statistics(dataset).sampled == 2
    for i in (0, 2):
        (tmp_path / "images" / f"{i}.png").write_text("x")
    with pytest.raises(DataError, match="is not a picture"):
        dataset_statistics(dataset)


def test_statistics_print_and_boxes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = coco(tmp_path, [{"bbox": [5, 5, 10, 10]}, {"bbox": [5, 5, 20, 10], "image_id": 1}])
    statistics = dataset_statistics(open_dataset(path))
    assert statistics.class_pixels == ()
    assert statistics.objects is not None
    assert statistics.objects.area[2] == 150
    statistics.print()
    assert "object diameter" in capsys.readouterr().out


# Previews.


def test_previews_show_the_truth(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / "images" / f"{i}.png", smooth(i))
        put(tmp_path / "masks" / f"{i}.png", mask(1))
    written = preview_dataset(open_dataset(tmp_path), tmp_path / "out", 2)
    assert [p.name for p in written] == ["1.png", "3.png"]
    assert sorted((tmp_path / "out").iterdir()) == written
    drawn = np.asarray(Image.open(written[0]))
    assert drawn.ndim == 3
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("path", ["coco2017_mini", "dsb2018_nuclei", "keypoint_samples/coco/test_coco.json", "isbi2012_em"])
def test_previews_of_real_data(real_data: Path, tmp_path: Path, path: str) -> None:
    written = preview_dataset(open_dataset(real_data / path), tmp_path, 2)
    assert len(written) == 2
    assert all(Image.open(p).size[0] > 256 for p in written)
