"""Results: masks in every form agree, and every file format reads back through `open_dataset` as what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from delineate.data import Dataset, load_sample, open_dataset
from delineate.data.decode import decode_labels
from delineate.data.outlines import polygons_to_mask
from delineate.data.synthetic import blobs
from delineate.errors import ConfigError, DelineateError
from delineate.predict.export_formats import FORMATS, ResultsWriter
from delineate.predict.masks import InstanceMapMasks, instance_map_rles
from delineate.predict.objects import extract_objects
from delineate.predict.results import Results

CLASSES = ("background", "round", "bright")


def example(tmp_path: Path, name: str = "cells", seed: int = 0) -> Results:
    """Results whose objects are the truth of a generated picture, with a hole in the largest; the picture lies in images/."""
    pixels, truth = blobs((90, 120), seed, channels=3, count=14, classes=2)
    path = tmp_path / "images" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    largest = np.bincount(truth.ravel())[1:].argmax() + 1
    y, x = (int(np.median(v)) for v in np.nonzero(truth == largest))
    truth[y : y + 2, x : x + 3] = 0
    semantic = np.where(truth > 0, 1 + (truth - 1) % 2, 0).astype(np.uint8)
    results = Results(size=(90, 120), classes=CLASSES, name=name, path=path, semantic=torch.from_numpy(semantic))
    objects = extract_objects(semantic, method="border", border=np.zeros_like(truth, bool), foreground=semantic > 0)
    labels = np.array([1 + (i - 1) % 2 for i in range(1, truth.max() + 1)])
    boxes = np.array([_box(truth == i) for i in range(1, truth.max() + 1)], np.float32)
    return results.with_objects(type(objects)(truth, labels, np.linspace(0.5, 1, len(labels)).astype(np.float32), boxes))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


instance_maps = arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4))


@given(instance_maps)
def test_run_length_codes_are_those_of_pycocotools(instance_map: np.ndarray) -> None:
    count = 5  # at least the last object has no pixels
    for number, code in enumerate(instance_map_rles(instance_map, count), start=1):
        mask = np.asfortranarray(instance_map == number, np.uint8)
        assert code["counts"] == coco.encode(mask)["counts"].decode()
        assert code["size"] == list(instance_map.shape)
        assert np.array_equal(coco.decode(code), mask)  # pyright: ignore[reportArgumentType]


@given(instance_maps)
def test_all_forms_of_masks_agree(instance_map: np.ndarray) -> None:
    masks = InstanceMapMasks(instance_map)
    dense = masks.dense()
    assert dense.shape == (len(masks), *instance_map.shape)
    assert dense.dtype == torch.bool
    for number, (one, crop, outline) in enumerate(zip(masks, masks.crops(), masks.polygons(), strict=True)):
        assert torch.equal(one, dense[number])
        pasted = np.zeros(instance_map.shape, bool)
        pasted[crop.top : crop.top + crop.mask.shape[0], crop.left : crop.left + crop.mask.shape[1]] = crop.mask
        assert np.array_equal(pasted, dense[number].numpy())
        inside = polygons_to_mask(outline.outer, instance_map.shape) & ~polygons_to_mask(outline.holes, instance_map.shape)
        assert np.array_equal(inside, pasted)


def test_no_objects() -> None:
    masks = InstanceMapMasks(np.zeros((4, 5), np.int32))
    assert (len(masks), masks.dense().shape, masks.rle(), masks.polygons()) == (0, (0, 4, 5), [], [])
    results = Results((4, 5), CLASSES, semantic=torch.zeros(4, 5, dtype=torch.uint8))
    assert len(results) == 0
    assert results.boxes.shape == (0, 4)
    assert results.to_coco() == []
    assert results.as_objects().instance_map is not None


def test_to_coco(tmp_path: Path) -> None:
    results = example(tmp_path)
    annotations = results.to_coco(image_id=7)
    assert len(annotations) == len(results)
    json.dumps(annotations)  # nothing that JSON does not hold
    assert results.categories == [{"id": 1, "name": "round"}, {"id": 2, "name": "bright"}]
    for number, annotation in enumerate(annotations):
        mask = coco.decode(annotation["segmentation"]).astype(bool)
        assert np.array_equal(mask, results.masks.dense()[number].numpy())  # pyright: ignore[reportOptionalMemberAccess]
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
        assert annotation["category_id"] == results.labels[number]
        assert annotation["score"] == pytest.approx(float(results.scores[number]), abs=1e-6)
        assert annotation["image_id"] == 7


def test_categories_without_a_background() -> None:
    results = Results((2, 2), ("sky", "tree"), background=None, semantic=torch.tensor([[0, 0], [1, 0]], dtype=torch.uint8))
    assert results.categories == [{"id": 1, "name": "sky"}, {"id": 2, "name": "tree"}]
    assert [a["category_id"] for a in results.to_coco()] == [1, 2]
    assert results.as_objects().labels.tolist() == [0, 1]


def assert_same_objects(dataset: Dataset, results: Results, *, holes: bool = True) -> None:
    """The data set holds the very masks, classes and boxes of `results`, in any order."""
    (record,) = (r for r in dataset.records if r.name == results.name)
    assert dataset.semantic_classes == CLASSES
    sample = load_sample(dataset, record, ("masks", "boxes"))
    expected = {}
    for mask, label, box in zip(results.masks, results.labels, results.boxes, strict=True):  # pyright: ignore
        filled = mask.numpy() if holes else _filled(mask.numpy())
        expected[filled.tobytes()] = (int(label) - 1, box.tolist())
    found = {
        mask.numpy().tobytes(): (int(label), box.tolist())
        for mask, label, box in zip(sample.masks, sample.labels, sample.boxes, strict=True)  # pyright: ignore
    }
    assert found == expected


def _filled(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(mask, np.ones((3, 3))))


def test_png_reads_back(tmp_path: Path) -> None:
    results = example(tmp_path)
    written = results.save(tmp_path, ("png",))
    assert {path.relative_to(tmp_path).as_posix() for path in written} == {
        "masks/cells.png",
        "instances/cells.png",
        "classes.txt",
    }
    assert Image.open(tmp_path / "masks" / "cells.png").mode == "P"
    np.testing.assert_array_equal(decode_labels(tmp_path / "masks" / "cells.png"), results.semantic)
    dataset = open_dataset(tmp_path)
    assert dataset.kind == "instance"
    assert_same_objects(dataset, results)
    semantic = load_sample(dataset, dataset.records[0]).semantic
    assert semantic is not None
    assert torch.equal(semantic.as_subclass(torch.Tensor), results.semantic)  # pyright: ignore


def test_coco_reads_back_with_scores(tmp_path: Path) -> None:
    all_results = [example(tmp_path, f"cells_{i}", seed=i) for i in range(3)]
    with ResultsWriter(tmp_path / "out", ("coco",)) as writer:
        for results in all_results:
            writer.add(results)
    dataset = open_dataset(tmp_path / "out" / "coco.json")
    assert len(dataset.records) == 3
    for results in all_results:
        assert_same_objects(dataset, results)
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [a["id"] for a in content["annotations"]] == list(range(1, 1 + sum(map(len, all_results))))
    scores = [a["score"] for a in content["annotations"] if a["image_id"] == 2]
    assert scores == pytest.approx(all_results[1].scores.tolist(), abs=1e-6)


def test_labelme_reads_back(tmp_path: Path) -> None:
    results = example(tmp_path)
    results.save(tmp_path / "out", ("labelme",))
    (tmp_path / "out" / "labelme" / "labels.txt").write_text("round\nbright\n")
    assert_same_objects(open_dataset(tmp_path / "out" / "labelme"), results)
    shapes = json.loads((tmp_path / "out" / "labelme" / "cells.json").read_text())["shapes"]
    assert {shape["shape_type"] for shape in shapes} == {"polygon", "mask"}


def test_yolo_reads_back_but_holes_are_filled_and_said(tmp_path: Path) -> None:
    results = example(tmp_path)
    with pytest.warns(UserWarning, match=r"cells: 1 objects have holes, which are filled in yolo"):
        results.save(tmp_path, ("yolo",))
    dataset = open_dataset(tmp_path / "data.yaml")
    record = dataset.records[0]
    areas = [load.sum() for load in load_sample(dataset, record, ("masks",)).masks.numpy()]  # pyright: ignore
    assert areas == sorted(areas, reverse=True)
    assert_same_objects(dataset, results, holes=False)


def test_only_classes_become_connected_pieces(tmp_path: Path) -> None:
    results = example(tmp_path)
    only = Results(results.size, CLASSES, "cells", results.path, semantic=results.semantic)
    only.save(tmp_path, ("png",))
    assert not (tmp_path / "instances").exists()
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.classes) == ("semantic", CLASSES)
    only.save(tmp_path / "out", ("coco",))
    pieces = only.as_objects()
    assert len(pieces) >= 2
    assert_same_objects(open_dataset(tmp_path / "out" / "coco.json"), pieces)


def test_more_objects_than_sixteen_bits(tmp_path: Path) -> None:
    checker = np.indices((400, 400)).sum(0) % 2
    instance_map = np.where(checker, np.cumsum(checker).reshape(400, 400), 0).astype(np.int32)
    results = Results((400, 400), CLASSES, masks=InstanceMapMasks(instance_map))
    results.labels = torch.ones(80000, dtype=torch.int64)
    (path,) = results.save(tmp_path, ("png",))
    assert path.name == "image.tif"
    np.testing.assert_array_equal(decode_labels(path), instance_map)


def test_drawing(tmp_path: Path) -> None:
    results = example(tmp_path)
    drawing = results.draw()
    assert drawing.shape == (3, 90, 120)
    assert drawing.dtype == torch.uint8
    pixels = np.asarray(Image.open(results.path))  # pyright: ignore[reportArgumentType]
    assert torch.equal(results.draw(pixels), drawing)
    assert torch.equal(results.draw(Image.fromarray(pixels)), drawing)
    assert torch.equal(results.draw(torch.from_numpy(pixels.transpose(2, 0, 1).copy())), drawing)
    semantic = Results(results.size, CLASSES, path=results.path, semantic=results.semantic).draw()
    assert not torch.equal(semantic, drawing)
    (path,) = results.save(tmp_path / "out", ("overlay",))
    assert np.array_equal(np.asarray(Image.open(path)), drawing.permute(1, 2, 0))


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    results = example(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'overlay'"):
        results.save(tmp_path, ("overlays",))
    with pytest.raises(ConfigError, match="cells: results are for"):
        results.draw(np.zeros((5, 5), np.uint8))
    with pytest.raises(ConfigError, match="pass the picture"):
        Results((5, 5), CLASSES, semantic=torch.zeros(5, 5, dtype=torch.uint8)).draw()
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(DelineateError, match="file"):
        results.save(blocked)


def test_names_become_file_names(tmp_path: Path) -> None:
    results = example(tmp_path)
    results.name = "day1/stack#03"
    (path, *_) = results.save(tmp_path / "out", ("png",))
    assert path == tmp_path / "out" / "masks" / "day1_stack_03.png"
    shutil.rmtree(tmp_path / "out")


def test_every_format_at_once_is_whole(tmp_path: Path) -> None:
    results = example(tmp_path)
    with pytest.warns(UserWarning, match="holes"):
        written = results.save(tmp_path / "out", FORMATS)
    assert all(path.stat().st_size > 0 for path in written)
    assert not list((tmp_path / "out").rglob(".*"))  # no temporary file is left
