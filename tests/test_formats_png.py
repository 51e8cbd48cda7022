"""Folders of images and label pictures: which layouts are recognised, and what is concluded from the values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from delineate.data import IGNORE, Dataset, load_sample, open_dataset, split_dataset
from delineate.data.formats.classes import read_class_file
from delineate.data.formats.names import flat_names, shortest_names
from delineate.data.formats.pairing import read_folder_name
from delineate.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
SIZE = (24, 32)


def put(path: Path, pixels: np.ndarray | None = None, palette: list[int] | None = None) -> Path:
    """Write a picture; without pixels, noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8) if pixels is None else pixels)
    if palette:
        picture.putpalette(palette)
    picture.save(path)
    return path


def binary(value: int = 1) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[4:12, 6:20] = value
    mask[2, RNG.integers(0, 32)] = value
    return mask


def cells(count: int, dtype: type = np.uint8) -> np.ndarray:
    """Separate objects 1..count."""
    ids = np.zeros(SIZE, dtype)
    for i in range(count):
        ids[2 + 5 * (i // 6) : 5 + 5 * (i // 6), 1 + 5 * (i % 6) : 4 + 5 * (i % 6)] = i + 1
    return ids


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {split: [record.name for record in records] for split, records in dataset.splits.items()}


def pairs(dataset: Dataset) -> set[tuple[str, str | None]]:
    return {(r.image.name, r.label_map.path.name if r.label_map else None) for r in dataset.records}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("image/{}.png", "label/{}.png"),
        ("imgs/{}.png", "gts/{}.png"),
        ("raw/{}.png", "ground_truth/{}.png"),
        ("JPEGImages/{}.jpg", "Annotations/{}.png"),
        ("PNGImages/{}.png", "PedMasks/{}_mask.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("images/img_{}.png", "masks/mask_{}.png"),
        ("{}.png", "{}_mask.png"),
        ("{}.jpg", "{}-labels.png"),
        ("{}.jpg", "{}_seg.png"),
        ("Image_{}.jpg", "Image_{}_1stHO.png"),
        ("imagesTr/{}_0000.png", "labelsTr/{}.png"),
        ("deep/folder/images/{}.png", "deep/folder/masks/{}.png"),
        ("patient{0}/image.png", "patient{0}/mask.png"),
        ("{0}/img2d.tif", "{0}/mask2d.tif"),
    ],
)
def test_pairs_by_the_words_in_names(tmp_path: Path, image: str, mask: str) -> None:
    for stem in ("01", "02", "7L"):
        put(tmp_path / image.format(stem))
        put(tmp_path / mask.format(stem), binary())
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.kind, dataset.classes) == ("png", "semantic", ("background", "foreground"))
    assert sum(map(len, dataset.splits.values())) == 3
    for record in dataset.records:
        sample = load_sample(dataset, record)
        assert sample.semantic is not None
        assert sample.semantic.shape == SIZE
        assert sample.semantic.unique().tolist() == [0, 1]
    expected = {(Path(image.format(s)).name, Path(mask.format(s)).name) for s in ("01", "02", "7L")}
    assert pairs(dataset) == expected
    assert len({record.name for record in dataset.records}) == 3


@pytest.mark.parametrize(
    "layout",
    ["{split}/images/{stem}", "images/{split}/{stem}", "{split}_images/{stem}", "{split}/{stem}", "{split}2017/{stem}"],
)
def test_splits_from_folders(tmp_path: Path, layout: str) -> None:
    for split, told in (("train", "train"), ("valid", "val"), ("test", "test")):
        for stem in ("a", "b"):
            path = layout.format(split=split, stem=f"{split}_{stem}.png")
            put(tmp_path / path)
            mask = path.replace("images", "masks") if "images" in path else path.replace("/", "annot/")
            put(tmp_path / mask, binary())
        assert told in {"train", "val", "test"}
    dataset = open_dataset(tmp_path)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 2, "val": 2, "test": 2}


def test_linked_folders_are_read(tmp_path: Path) -> None:
    for folder, pixels in (("images", None), ("masks", binary())):
        put(tmp_path / "elsewhere" / folder / "a.png", pixels)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / folder).symlink_to(tmp_path / "elsewhere" / folder, target_is_directory=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data", target_is_directory=True)  # would never end
    assert names(open_dataset(tmp_path / "data")) == {"all": ["a"]}


def test_names_get_folders_where_stems_repeat(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / split / "image" / "00.png")
    put(tmp_path / "train" / "label" / "00.png", binary())
    dataset = open_dataset(tmp_path)
    assert names(dataset) == {"train": ["train/00"], "test": ["test/00"]}
    assert dataset.splits["test"][0].label_map is None
    with pytest.raises(DataError, match=r"00\.png: has no truth"):
        load_sample(dataset, dataset.splits["test"][0])
    assert load_sample(dataset, dataset.splits["test"][0], ()).semantic is None


def test_image_without_label_goes_to_unlabelled(tmp_path: Path) -> None:
    for stem in "abc":
        put(tmp_path / "images" / f"{stem}.png")
    for stem in "acz":
        put(tmp_path / "masks" / f"{stem}.png", binary())
    dataset = open_dataset(tmp_path)
    assert names(dataset) == {"all": ["a", "c"], "unlabelled": ["b"]}
    assert any("1 of 3 pictures" in note for note in dataset.notes)
    assert any("z.png" in note for note in dataset.notes)


def test_lists_of_splits(tmp_path: Path) -> None:
    for stem in "abcd":
        put(tmp_path / "images" / f"{stem}.png")
        put(tmp_path / "masks" / f"{stem}.png", binary())
    (tmp_path / "train.txt").write_text("images/a.png masks/a.png\nb.png\n\n")
    (tmp_path / "val.txt").write_text("c\n")
    assert names(open_dataset(tmp_path)) == {"train": ["a", "b"], "val": ["c"]}
    (tmp_path / "val.txt").write_text("c\nnowhere\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2 names nowhere"):
        open_dataset(tmp_path)


def test_second_observer_and_field_of_view_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "training" / "images" / "21_training.tif")
    put(tmp_path / "training" / "1st_manual" / "21_manual1.gif", binary(255))
    put(tmp_path / "training" / "mask" / "21_training_mask.gif", binary(255))
    put(tmp_path / "test" / "images" / "01_test.tif")
    put(tmp_path / "test" / "1st_manual" / "01_manual1.gif", binary(255))
    put(tmp_path / "test" / "2nd_manual" / "01_manual2.gif", binary(255))
    dataset = open_dataset(tmp_path)
    assert pairs(dataset) == {("21_training.tif", "21_manual1.gif"), ("01_test.tif", "01_manual1.gif")}
    assert any("second observer" in note for note in dataset.notes)


def test_stacks_give_a_record_for_each_page(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (12, *SIZE), np.uint8)
    tifffile.imwrite(tmp_path / "train-volume.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train-labels.tif", np.where(stack > 99, 255, 0).astype(np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "test-volume.tif", stack, photometric="minisblack")
    dataset = open_dataset(tmp_path)
    assert names(dataset)["train"][:2] == ["train-volume#00", "train-volume#01"]
    assert len(dataset.splits["train"]) == len(dataset.splits["test"]) == 12
    sample = load_sample(dataset, dataset.splits["train"][7])
    assert np.array_equal(sample.image.numpy()[0], stack[7])
    assert sample.semantic is not None
    assert np.array_equal(sample.semantic.numpy(), stack[7] > 99)
    tifffile.imwrite(tmp_path / "train-labels.tif", stack[:5], photometric="minisblack")
    with pytest.raises(DataError, match=r"train-labels\.tif: has 5 pages, its image .* has 12"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"images/a.png": None}, "1 images but no label pictures; expected masks/"),
        ({"images/a.png": None, "masks/b.png": None}, "no label picture fits an image"),
        ({"images/a.png": None, "masks/a.png": None, "masks/a_mask.png": None}, None),
        ({"x/a.png": None, "x/a_mask.png": None, "x/a_seg.png": None}, "two label pictures fit it"),
        ({"images/a.png": None, "images/a.jpg": None, "masks/a.png": None}, "is the label of two pictures"),
        ({"notes.txt": None}, "no data set found"),
        ({"images/a.png": None, "labels/a.txt": None}, r"labels/a\.txt looks like YOLO, which needs a data YAML"),
    ],
)
def test_folders_that_cannot_be_read_say_why(tmp_path: Path, files: dict[str, None], words: str | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(tmp_path / name, binary()) if name.endswith(("png", "jpg")) else (tmp_path / name).write_text("x")
    if words is None:
        assert pairs(open_dataset(tmp_path)) == {("a.png", "a.png")}
        return
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_paths_and_formats_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "data.zip").write_bytes(b"PK")
    put(tmp_path / "a.png")
    for path, words in (
        (tmp_path / "cels", "does not exist; did you mean 'cells'"),
        (tmp_path / "data.zip", "is an archive; unpack it"),
        (tmp_path / "a.png", "is not a data set"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset(path)
    for name, words in (
        ("coko", "did you mean 'coco'"),
        ("png:instances", "did you mean 'instance'"),
        ("yolo:x", "expected yolo"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_dataset(tmp_path, name)


def folder_of(tmp_path: Path, *masks: np.ndarray, suffix: str = "png", palette: list[int] | None = None) -> Path:
    for i, mask in enumerate(masks):
        put(tmp_path / "images" / f"{i}.png")
        put(tmp_path / "masks" / f"{i}.{suffix}", mask, palette)
    return tmp_path


def semantic(dataset: Dataset, index: int = 0) -> np.ndarray:
    loaded = load_sample(dataset, dataset.records[index]).semantic
    assert loaded is not None
    return loaded.numpy()


def test_black_and_white_is_background_and_foreground(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, binary(255), np.zeros(SIZE, np.uint8)))
    assert dataset.classes == ("background", "foreground")
    assert any("0 and 255" in note for note in dataset.notes)
    assert np.array_equal(semantic(dataset), binary_of(dataset, 0) // 255)


def binary_of(dataset: Dataset, index: int) -> np.ndarray:
    label_map = dataset.records[index].label_map
    assert label_map is not None
    return np.asarray(Image.open(label_map.path))


def test_class_ids_and_255_not_counted(tmp_path: Path) -> None:
    mask = RNG.integers(0, 5, SIZE).astype(np.uint8)
    mask[0] = 255
    dataset = open_dataset(folder_of(tmp_path, mask, mask.T.copy().reshape(SIZE)))
    assert dataset.classes == tuple(f"class_{i}" for i in range(5))
    assert np.array_equal(semantic(dataset), mask)
    assert (semantic(dataset)[0] == IGNORE).all()


def test_few_grey_values_are_a_class_each(tmp_path: Path) -> None:
    mask = RNG.choice(np.array([0, 60, 128, 250], np.uint8), SIZE)
    dataset = open_dataset(folder_of(tmp_path, mask))
    assert dataset.classes == ("value_0", "value_60", "value_128", "value_250")
    assert np.array_equal(np.array([0, 60, 128, 250])[semantic(dataset)], mask)


def test_grey_saved_as_rgb_and_16_bit_ids(tmp_path: Path) -> None:
    mask = RNG.integers(0, 3, SIZE).astype(np.uint8)
    dataset = open_dataset(folder_of(tmp_path, np.dstack([mask] * 3), mask.astype(np.uint16)))
    assert dataset.classes == ("class_0", "class_1", "class_2")
    assert np.array_equal(semantic(dataset, 0), mask)
    assert np.array_equal(semantic(dataset, 1), mask)


def test_jpeg_masks_are_split_at_128(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, np.kron(binary(255), np.ones((8, 8), np.uint8))[:24, :32], suffix="jpg"))
    assert dataset.classes == ("background", "foreground")
    assert np.array_equal(semantic(dataset), binary_of(dataset, 0) >= 128)


def test_colours_without_and_with_a_class_file(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    ids = RNG.integers(0, 3, SIZE)
    folder_of(tmp_path, colours[ids], colours[np.zeros_like(ids)])
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("color_000000", "color_008000", "color_800000")
    assert dataset.palette == ((0, 0, 0), (0, 128, 0), (128, 0, 0))
    assert np.array_equal(np.array([[0, 0, 0], [0, 128, 0], [128, 0, 0]])[semantic(dataset)], colours[ids])
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,0,0,0\nwall,128,0,0\nvoid,0,128,0\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("sky", "wall")
    assert np.array_equal(semantic(dataset), np.array([0, 1, IGNORE])[ids])
    assert (semantic(dataset, 1) == 0).all()
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,0,0,0\nwall,128,0,0\n")
    with pytest.raises(DataError, match=r"0\.png: holds the value colour \(0, 128, 0\), not one of the 2 classes"):
        semantic(open_dataset(tmp_path))


def test_colours_of_a_smoothed_mask_are_too_many(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colours, too many for classes"):
        open_dataset(folder_of(tmp_path, RNG.integers(0, 256, (*SIZE, 3), np.uint8)))


def test_palette_pictures_hold_indices(tmp_path: Path) -> None:
    mask = RNG.integers(0, 3, SIZE).astype(np.uint8)
    dataset = open_dataset(folder_of(tmp_path, mask, palette=[0, 0, 0, 200, 0, 0, 0, 0, 200]))
    assert np.array_equal(semantic(dataset), mask)
    assert dataset.palette == ((0, 0, 0), (200, 0, 0), (0, 0, 200))


def test_value_outside_the_class_list(tmp_path: Path) -> None:
    mask = binary()
    mask[5, 5] = 7
    (tmp_path / "classes.txt").write_text("background\ncell\n")
    dataset = open_dataset(folder_of(tmp_path, mask))
    with pytest.raises(DataError, match=r"0\.png: holds the value 7, not one of the 2 classes"):
        semantic(dataset)


def test_mask_of_another_size(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, np.ones((10, 12), np.uint8)))
    with pytest.raises(DataError, match=r"masks/0\.png: is 10 x 12 .*images/0\.png is 24 x 32"):
        semantic(dataset)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_object_ids_are_concluded_from_the_values(tmp_path: Path, dtype: type) -> None:
    dataset = open_dataset(folder_of(tmp_path, cells(3, dtype), cells(11, dtype), cells(7, dtype)))
    assert (dataset.kind, dataset.classes, dataset.semantic_classes) == ("instance", ("object",), ("background", "object"))
    assert any("(instance maps)" in note and "--format png:semantic" in note for note in dataset.notes)
    sample = load_sample(dataset, dataset.records[1], ("semantic", "instance_map", "masks", "boxes"))
    assert sample.masks is not None
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.masks.shape == (11, *SIZE)
    assert sample.boxes[0].tolist() == [1, 2, 4, 5]
    assert sample.labels.tolist() == [0] * 11
    forced = open_dataset(tmp_path, "png:semantic")
    assert (forced.kind, len(forced.classes)) == ("semantic", 12)


def test_class_ids_are_not_taken_for_objects(tmp_path: Path) -> None:
    """Class regions lie in pieces, and a lone organ or two keep their ids."""
    folder_of(tmp_path / "pieces", *(RNG.integers(0, n, SIZE).astype(np.uint8) for n in (4, 6, 5)))
    assert open_dataset(tmp_path / "pieces").kind == "semantic"
    folder_of(tmp_path / "organs", cells(1), cells(2), cells(2))
    assert open_dataset(tmp_path / "organs").kind == "semantic"
    folder_of(tmp_path / "same", cells(4), cells(4), cells(4))
    assert open_dataset(tmp_path / "same").kind == "semantic"
    assert open_dataset(tmp_path / "same", "png:instance").kind == "instance"


def test_instance_folder_with_classes_beside_it(tmp_path: Path) -> None:
    ids = cells(4, np.uint16)
    classes = np.array([0, 1, 2, 2, 1], np.uint8)[ids]
    put(tmp_path / "images" / "a.png")
    put(tmp_path / "instances" / "a.png", ids)
    put(tmp_path / "masks" / "a.png", classes)
    (tmp_path / "classes.txt").write_text("background\nround\nlong\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.classes) == ("instance", ("round", "long"))
    sample = load_sample(dataset, dataset.records[0], ("semantic", "instance_map"))
    assert sample.labels is not None
    assert sample.labels.tolist() == [0, 1, 1, 0]
    assert sample.semantic is not None
    assert np.array_equal(sample.semantic.numpy(), classes)
    classes[ids == 3] = 0
    put(tmp_path / "masks" / "a.png", classes)
    with pytest.raises(DataError, match="object 3 has no class"):
        load_sample(dataset, dataset.records[0], ("instance_map",))


def test_object_ids_with_gaps_are_renumbered(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, np.uint16)
    ids[0, 0], ids[2, 2], ids[4, 4] = 900, 7, 3000
    dataset = open_dataset(folder_of(tmp_path, ids), "png:instance")
    sample = load_sample(dataset, dataset.records[0], ("instance_map", "boxes"))
    assert sample.instance_map is not None
    assert [int(sample.instance_map[i, i]) for i in (2, 0, 4)] == [1, 2, 3]
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[2, 2, 3, 3], [0, 0, 1, 1], [4, 4, 5, 5]]


def test_semantic_data_has_no_objects(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, binary()))
    with pytest.raises(DataError, match="holds classes, not objects"):
        load_sample(dataset, dataset.records[0], ("boxes",))
    with pytest.raises(ConfigError, match="expected any of semantic"):
        load_sample(dataset, dataset.records[0], ("mask",))


@pytest.mark.parametrize(
    ("name", "text", "classes", "values"),
    [
        ("classes.txt", "sky\nroad\n\n# a comment\ntraffic light\n", ("sky", "road", "traffic light"), None),
        ("classes.txt", "class 1\nclass 2\n", ("class 1", "class 2"), None),
        ("classes.txt", "0 sky\n1: road\n", ("sky", "road"), None),
        ("classes.txt", "7 sky\n9 road\n11 void\n", ("sky", "road"), {7: 0, 9: 1, 11: IGNORE}),
        ("classes.txt", "a\nvoid\nb\n", ("a", "b"), {0: 0, 1: IGNORE, 2: 1}),
        (
            "label_colors.txt",
            "64 128 64\tAnimal\n192 0 128\tArchway\n",
            ("Animal", "Archway"),
            {(64, 128, 64): 0, (192, 0, 128): 1},
        ),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbg:0,0,0::\ncat:9,8,7::\n",
            ("bg", "cat"),
            {(0, 0, 0): 0, (9, 8, 7): 1},
        ),
        ("class_dict.csv", "name, r, g, b\nsky, 1, 2, 3\nroad, 4, 5, 6\n", ("sky", "road"), {(1, 2, 3): 0, (4, 5, 6): 1}),
        ("classes.csv", "name,value\nsky,3\nroad,4\n", ("sky", "road"), {3: 0, 4: 1}),
        ("classes.json", '["sky", "road"]', ("sky", "road"), None),
        ("labels.json", '{"0": "sky", "1": "road"}', ("sky", "road"), None),
        ("labels.json", '{"sky": 5, "road": 6}', ("sky", "road"), {5: 0, 6: 1}),
        ("labels.json", '{"sky": [1, 2, 3]}', ("sky",), {(1, 2, 3): 0}),
    ],
)
def test_class_files(tmp_path: Path, name: str, text: str, classes: tuple[str, ...], values: dict | None) -> None:
    (tmp_path / name).write_text(text)
    table = read_class_file(tmp_path / name)
    assert table.names == classes
    assert table.values == values


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes.txt", "", "names no class"),
        ("classes.txt", "a\na\n", "class 'a' is given twice"),
        ("classes.txt", "1 a\n1 b\n", "value 1 is given twice"),
        ("classes.json", "{\n  oops", "is not JSON .* in line 2"),
        ("classes.json", '{"a": {}}', "cannot be read as a class file"),
        ("classes.txt", "\n".join(map(str, range(1000, 1300))), "names 300 classes, at most 255"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_class_file(tmp_path / name)


def test_words_in_folder_names() -> None:
    expected = {
        "images": ("image", None),
        "trainannot": ("mask", "train"),
        "imagesTr": ("image", "train"),
        "labelsTs": ("mask", "test"),
        "val2017": (None, "val"),
        "PedMasks": ("mask", None),
        "instance_maps": ("instances", None),
        "ground-truth": ("mask", None),
        "validation_labels": ("mask", "val"),
        "patient7": (None, None),
        "256": (None, None),
        "maskulin": (None, None),
        "trainer": (None, None),
    }
    assert {name: read_folder_name(name) for name in expected} == expected


def test_names_are_unique() -> None:
    assert shortest_names([("a", "b", "x"), ("a", "c", "x")]) == ["b/x", "c/x"]
    assert shortest_names([("x",), ("x",)]) == ["x", "x~2"]
    assert flat_names(["a/b", "a_b", "c:d"]) == ["a_b", "a_b~2", "c_d"]


def test_split_is_deterministic_even_and_noted(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, *[binary()] * 10))
    parts = split_dataset(dataset, 0.2)
    assert names(parts)["val"] == ["2", "7"]
    assert len(parts.splits["train"]) == 8
    assert parts == split_dataset(dataset, 0.2)
    assert any("2 of 10 pictures of 'all'" in note for note in parts.notes)
    assert split_dataset(parts, 0.5) is parts
    single = open_dataset(folder_of(tmp_path / "single", binary()))
    with pytest.raises(DataError, match="cannot be split"):
        split_dataset(single)


@pytest.mark.parametrize("folders", ["test_data/images|test_data/masks", "test/image|test/label", "test_images|test_masks"])
def test_a_lone_test_folder_is_the_data_set(tmp_path: Path, folders: str) -> None:
    images, masks = folders.split("|")
    for stem in "abcde":
        put(tmp_path / images / f"{stem}.png")
        put(tmp_path / masks / f"{stem}.png", binary())
    dataset = open_dataset(tmp_path)
    assert names(dataset) == {"test": list("abcde")}  # so that `eval --split test` goes on finding it
    parts = split_dataset(dataset)
    assert {split: len(records) for split, records in parts.splits.items()} == {"train": 4, "val": 1}
    assert any("'test' is the only split with truth" in note for note in parts.notes)
    bare = replace(dataset, splits={"test": tuple(replace(record, label_map=None) for record in dataset.splits["test"])})
    with pytest.raises(DataError, match=r"has the splits test, but nothing to train on"):
        split_dataset(bare)


def test_a_picture_called_test_among_others_is_one_of_them(tmp_path: Path) -> None:
    for stem in ("a", "b", "test"):
        put(tmp_path / "images" / f"{stem}.png")
        put(tmp_path / "masks" / f"{stem}.png", binary())
    assert names(open_dataset(tmp_path)) == {"all": ["a", "b", "test"]}
    for stem in ("train", "test"):
        put(tmp_path / "stacks" / f"{stem}-volume.png")
        put(tmp_path / "stacks" / f"{stem}-labels.png", binary())
    put(tmp_path / "stacks" / "overview.png")
    assert list(open_dataset(tmp_path / "stacks").splits) == ["train", "test", "all"]


# Real data: the folders as people publish them.


def test_isbi2012(real_data: Path) -> None:
    dataset = open_dataset(real_data / "isbi2012_em")
    assert (dataset.format, dataset.kind, dataset.classes) == ("png", "semantic", ("background", "foreground"))
    assert {s: len(r) for s, r in dataset.splits.items()} == {"train": 30, "test": 30}
    assert all(r.label_map is None for r in dataset.splits["test"])
    sample = load_sample(dataset, dataset.splits["train"][0])
    assert sample.image.shape == (1, 512, 512)
    assert sample.semantic is not None
    assert 0.7 < float((sample.semantic == 1).float().mean()) < 0.85  # the cells' inside
    assert {s: len(r) for s, r in split_dataset(dataset).splits.items()} == {"train": 24, "val": 6, "test": 30}


def test_camvid(real_data: Path) -> None:
    dataset = open_dataset(real_data / "camvid")
    assert {s: len(r) for s, r in dataset.splits.items()} == {"train": 68, "val": 21, "test": 37}
    assert dataset.kind == "semantic"
    assert dataset.classes == tuple(f"class_{i}" for i in range(12))
    assert all(r.label_map is not None and r.label_map.path.stem == r.image.stem for r in dataset.records)


def test_dsb2018(real_data: Path) -> None:
    dataset = open_dataset(real_data / "dsb2018_nuclei")
    assert (dataset.kind, dataset.classes, len(dataset.splits["all"])) == ("instance", ("object",), 97)
    rows = [line.split(",") for line in (real_data / "dsb2018_nuclei" / "index.csv").read_text().splitlines()[1:]]
    stated = {row[0]: (int(row[3]), int(row[2]), int(row[4])) for row in rows}
    for record in dataset.records[::12]:
        sample = load_sample(dataset, record, ("instance_map",))
        assert sample.labels is not None
        assert (*sample.size, len(sample.labels)) == stated[record.name]


def test_chase_db1(real_data: Path) -> None:
    dataset = open_dataset(real_data / "chase_db1")
    assert (dataset.kind, dataset.classes, len(dataset.splits["all"])) == ("semantic", ("background", "foreground"), 28)
    assert all(r.label_map is not None and r.label_map.path.stem == f"{r.image.stem}_1stHO" for r in dataset.records)
    assert any("28 pictures of a second observer" in note for note in dataset.notes)


def test_pennfudan(real_data: Path) -> None:
    dataset = open_dataset(real_data / "pennfudan")
    assert (dataset.kind, len(dataset.splits["all"])) == ("instance", 128)
    sample = load_sample(dataset, dataset.records[0], ("boxes",))
    assert sample.boxes is not None
    # The Annotation file says (160, 182) - (302, 431) and (420, 171) - (535, 486), counted from 1 with the last pixel included.
    assert sample.boxes.tolist() == [[159, 181, 302, 431], [419, 170, 535, 486]]


def test_stardist_samples(real_data: Path) -> None:
    dataset = open_dataset(real_data / "nuclei_stardist_samples")
    assert (dataset.kind, names(dataset)) == ("instance", {"all": ["256/img2d", "512/img2d"]})
    sample = load_sample(dataset, dataset.records[0], ("instance_map",))
    assert sample.labels is not None
    assert len(sample.labels) == 65
    assert open_dataset(real_data / "nuclei_stardist_samples" / "512").kind == "instance"
