"""A folder a picture with a mask file an object, as Kaggle published the nuclei of the Data Science Bowl 2018."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delineate.data import check_dataset, load_sample, open_dataset, write_dataset
from delineate.errors import ConfigError, DataError


@pytest.fixture
def nuclei(tmp_path: Path) -> Path:
    """Three pictures with two, one and no object, and one for testing, which has no masks."""
    root = tmp_path / "bowl"
    for name, boxes in {"aa": [(0, 0, 3, 3), (4, 4, 8, 6)], "bb": [(1, 2, 5, 7)], "cc": []}.items():
        folder = root / "stage1_train" / name
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        Image.fromarray(np.full((8, 10, 4), 90, np.uint8)).save(folder / "images" / f"{name}.png")
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            mask = np.zeros((8, 10), np.uint8)
            mask[y0:y1, x0:x1] = 255
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    test = root / "stage1_test" / "dd" / "images"
    test.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(test / "dd.png")
    return root


def test_is_recognised_with_its_splits(nuclei: Path):
    dataset = open_dataset(nuclei)
    assert (dataset.format, dataset.kind, dataset.classes) == ("object_masks", "instance", ("object",))
    assert {split: [r.name for r in records] for split, records in dataset.splits.items()} == {
        "train": ["aa", "bb", "cc"],
        "test": ["dd"],
    }


def test_one_split_alone_is_a_data_set_too(nuclei: Path):
    dataset = open_dataset(nuclei / "stage1_train")
    assert [r.name for r in dataset.splits["all"]] == ["aa", "bb", "cc"]


def test_objects_are_the_mask_files(nuclei: Path):
    dataset = open_dataset(nuclei)
    two, one, none = (load_sample(dataset, r, ("instance_map", "boxes")) for r in dataset.splits["train"])
    assert two.instance_map is not None
    assert two.boxes is not None
    assert two.boxes.tolist() == [[0, 0, 3, 3], [4, 4, 8, 6]]
    assert np.bincount(two.instance_map.numpy().ravel()).tolist() == [80 - 9 - 8, 9, 8]
    assert one.labels is not None
    assert none.labels is not None
    assert (len(one.labels), len(none.labels)) == (1, 0)


def test_a_mask_of_another_size_is_an_error_that_names_it(nuclei: Path):
    Image.fromarray(np.ones((4, 4), np.uint8)).save(nuclei / "stage1_train" / "bb" / "masks" / "1.png")
    dataset = open_dataset(nuclei)
    with pytest.raises(DataError, match=r"masks/1\.png: is 4 x 4 .* is 8 x 10"):
        load_sample(dataset, dataset.splits["train"][1], ("instance_map",))
    assert [f.kind for f in check_dataset(nuclei).findings if f.severity == "error"] == ["size mismatch"]


def test_a_picture_without_masks_is_unlabelled(nuclei: Path):
    folder = nuclei / "stage1_train" / "ee" / "images"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(folder / "ee.png")
    assert [r.name for r in open_dataset(nuclei).splits["unlabelled"]] == ["ee"]


def test_converts_to_other_formats_but_not_back(nuclei: Path, tmp_path: Path):
    dataset = open_dataset(nuclei)
    write_dataset(dataset, tmp_path / "coco", "coco")
    again = open_dataset(tmp_path / "coco")
    assert [len(r.instances or ()) for r in again.splits["train"]] == [2, 1, 0]
    with pytest.raises(ConfigError, match="object_masks"):
        write_dataset(dataset, tmp_path / "back", "object_masks")


def test_a_folder_of_images_and_masks_stays_png(tmp_path: Path):
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "train" / kind / "a.png")
    assert open_dataset(tmp_path).format == "png"
