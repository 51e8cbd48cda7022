"""Prediction with a detector: what the network sees, and what becomes of what it found, against the sources' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection import roi_heads
from torchvision.models.detection.transform import (
    GeneralizedRCNNTransform,
    _resize_image_and_masks,
    resize_boxes,
    resize_keypoints,
)

from _fake_detector import SKELETON, FakeDetector
from delineate.cli import run
from delineate.data import open_dataset
from delineate.data.outlines import polygons_to_mask
from delineate.data.panoptic import PanopticMap
from delineate.errors import ConfigError
from delineate.models import create_model
from delineate.ops.rle import decode_rle
from delineate.predict import Predictor, predict_folder
from delineate.predict.masks import BoxMasks
from delineate.predict.pictures import Picture
from delineate.weights import Conventions, load_model, save_model
from delineate.weights.conventions import Resize
from test_evaluate_instances import write_coco

BOX = [0.25, 0.25, 0.75, 0.5]


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def seen_by(model: FakeDetector, *sources: object, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and sizes that the network got."""
    predictor = Predictor(model, "cpu", "fp32", **options)
    predictor(list(sources))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return predictor.instances.network.model.seen  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (427, 640), (20, 300), (300, 20), (80, 133), (81, 97)])
def test_torchvision_sees_the_same(size: tuple[int, int]) -> None:
    pixels = picture(*size)
    (images, sizes), *_ = seen_by(FakeDetector([BOX], [0.9], source="torchvision"), pixels)
    transform = GeneralizedRCNNTransform(80, 133, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected, _ = transform([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
    assert sizes.tolist() == [list(s) for s in expected.image_sizes]
    torch.testing.assert_close(images, expected.tensors, atol=2e-5, rtol=0)


# facebookresearch/detectron2 at 02b5c4e: ResizeShortestEdge.get_output_shape(height, width, 800, 1333)
DETECTRON2_SHAPES = {
    (480, 640): (800, 1067),
    (427, 640): (800, 1199),
    (640, 427): (1199, 800),
    (333, 500): (800, 1201),
    (640, 361): (1333, 752),
    (51, 640): (106, 1333),
    (426, 640): (800, 1202),
    (3000, 4000): (800, 1067),
    (612, 612): (800, 800),
}


def test_detectron2_sees_the_same() -> None:
    """Sizes are those of its own function; pixels are Pillow's, BGR, less the mean, padded with zeros."""
    for size, shape in DETECTRON2_SHAPES.items():
        assert Resize(800, 1333, "pillow").new_size(size) == shape
    mean = (103.53, 116.28, 123.675)
    conventions = {"color": "bgr", "value_range": 1.0, "mean": mean, "std": (1.0,)}
    pixels = picture(70, 50)
    (images, sizes), *_ = seen_by(FakeDetector([BOX], [0.9], **conventions), pixels)
    resized = np.asarray(Image.fromarray(pixels).resize((80, 112), Image.Resampling.BILINEAR))
    assert sizes.tolist() == [[112, 80]]
    assert images.shape == (1, 3, 128, 96)
    expected = torch.from_numpy(resized[..., ::-1].copy()).permute(2, 0, 1) - torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(images[0, :, :112, :80], expected, atol=1e-4, rtol=0)
    assert not images[0, :, 112:].any()
    assert not images[0, :, :, 80:].any()


@pytest.mark.parametrize("source", ["torchvision", "detectron2"])
@given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_sizes_of_any_picture(source: str, size: tuple[int, int]) -> None:
    filter = "bilinear" if source == "torchvision" else "pillow"
    height, width = Resize(80, 133, filter).new_size(size)  # pyright: ignore[reportArgumentType]
    assert 1 <= min(height, width) <= 80
    assert max(height, width) <= 133
    if source == "torchvision" and min(height, width) > 1:  # which fails where less than a pixel would be left
        with torch.device("meta"):
            seen, _ = _resize_image_and_masks(torch.empty(1, *size), 80, 133)
        assert (height, width) == seen.shape[-2:]


def test_results_are_those_of_torchvision() -> None:
    model = FakeDetector([BOX, [0, 0, 1, 1]], [0.9, 0.6], [1, 0], source="torchvision", keypoints=SKELETON)
    pixels = picture(53, 71)
    results = Predictor(model, "cpu", "fp32")(pixels)
    assert model.conventions.resize is not None
    network = model.conventions.resize.new_size((53, 71))
    boxes = torch.tensor([BOX, [0, 0, 1, 1]]) * torch.tensor([network[1], network[0]]).repeat(2)
    expected = resize_boxes(boxes, list(network), [53, 71])
    torch.testing.assert_close(results.boxes, expected, atol=1e-4, rtol=0)
    assert results.labels.tolist() == [1, 0]
    assert results.scores.tolist() == pytest.approx([0.9, 0.6])
    assert results.masks is not None
    pasted = roi_heads.paste_masks_in_image(torch.ones(2, 1, 28, 28), expected, (53, 71))[:, 0] >= 0.5
    assert torch.equal(results.masks.dense(), pasted)
    left, top, right, bottom = boxes.unbind(-1)
    corners = torch.stack([left, top, right, top, left, bottom], -1).unflatten(-1, (3, 2))
    points = torch.cat([corners, torch.tensor([2.0, 6, 10])[None, :, None].expand(2, 3, 1)], -1)
    assert results.keypoints is not None
    torch.testing.assert_close(results.keypoints, resize_keypoints(points, list(network), [53, 71]), atol=1e-4, rtol=0)


def test_results_are_those_of_detectron2() -> None:
    """`detector_postprocess`: boxes are scaled, clipped, dropped if empty; keypoints less half a pixel, as in its JSON."""
    boxes = [BOX, [0.5, 0.5, 0.5, 0.9], [-0.1, 0.9, 1.2, 1.1], [1.1, 0.2, 1.3, 0.4]]
    model = FakeDetector(boxes, [0.9, 0.8, 0.7, 0.6], keypoints=SKELETON)
    results = Predictor(model, "cpu", "fp32")(picture(60, 120))
    expected = torch.tensor([[30.0, 15, 90, 30], [0, 54, 120, 60]])
    torch.testing.assert_close(results.boxes, expected, atol=1e-4, rtol=0)
    assert results.scores.tolist() == pytest.approx([0.9, 0.7])
    assert results.masks is not None
    assert len(results.masks) == 2
    assert results.masks.dense()[0, 16:29, 31:89].all()
    assert results.keypoints is not None
    torch.testing.assert_close(results.keypoints[0, 0], torch.tensor([29.5, 14.5, 0.2]))


def test_unsure_keypoints_are_left_out(tmp_path: Path) -> None:
    """Of drawings and of formats without scores: below 0.05 and below a tenth of the figure's best, whichever is less."""

    class Unsure(FakeDetector):
        softmax = torch.tensor([[0.9, 0.06, 0.04], [0.02, 0.003, 0.001]])

        def _with_keypoints(self, found):
            scores = torch.cat([self.softmax, torch.zeros(3, 3)])[None]
            return super()._with_keypoints(found)._replace(keypoint_scores=scores)

    for source in ("detectron2", "torchvision"):
        model = Unsure([BOX, [0, 0, 0.2, 0.2]], [0.9, 0.8], source=source, keypoints=SKELETON)
        results = Predictor(model, "cpu", "fp32")(picture(60, 120))
        assert results.keypoints_shown is not None
        assert results.keypoints_shown.tolist() == [[True, True, False], [True, True, False]]
    with pytest.warns(UserWarning, match="2 objects have masks, which poses in yolo have no place for"):
        results.save(tmp_path, ("yolo", "labelme", "coco"), image=picture(60, 120))
    first, _ = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (first["keypoints"][2::3], first["keypoint_scores"]) == ([2, 2, 1], pytest.approx([2, 6, 10]))
    lines = [line.split()[5:] for line in (tmp_path / "labels" / "image.txt").read_text().splitlines()]
    assert [line[2::3] for line in lines] == [["2", "2", "0"]] * 2
    shapes = json.loads((tmp_path / "labelme" / "image.json").read_text())["shapes"]
    assert [shape["label"] for shape in shapes if shape["shape_type"] == "point"] == ["nose", "left_eye"] * 2
    unsure = results.draw(picture(60, 120))
    results.keypoints_shown = None
    assert not torch.equal(results.draw(picture(60, 120)), unsure)


def test_mixed_sizes_share_batches_and_keep_their_order() -> None:
    sizes = [(40, 60), (60, 40), (41, 60), (40, 60), (90, 20), (40, 61), (40, 60)]
    pictures = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    model = FakeDetector([BOX], [0.9])
    seen = seen_by(model, *pictures, batch=3)
    assert sorted(len(images) for images, _ in seen) == [1, 1, 2, 3]
    alone = [images[0] for one in pictures for images, _ in seen_by(model, one)]
    together = [image for images, _ in seen for image in images]
    for number in range(len(pictures)):  # each goes through the network once, with the very pixels that it has alone
        assert sum(torch.equal(alone[number], image) for image in together if image.shape == alone[number].shape) == 1
    results = Predictor(model, "cpu", "fp32", batch=3)(pictures)
    assert [r.size for r in results] == sizes
    assert [r.name for r in results] == [f"image{n}" for n in range(len(sizes))]


def test_waiting_pictures_are_bounded() -> None:
    """A stream of pictures of ever new sizes is answered while it goes on."""
    predictor = Predictor(FakeDetector([BOX], [0.9], resize=None), "cpu", "fp32", batch=2)
    read = []

    def stream():
        for number in range(30):
            read.append(number)
            yield Picture(np.zeros((8 + 32 * number, 8), np.uint8))

    for number, results in enumerate(predictor.predict_all(stream())):
        assert results.size == (8 + 32 * number, 8)
        assert len(read) - number <= 9


def test_thresholds_leave_objects_out() -> None:
    model = FakeDetector([BOX, BOX, BOX], [0.9, 0.3, 0.03])
    assert Predictor(model, "cpu")(picture()).scores.tolist() == pytest.approx([0.9])
    assert len(Predictor(model, "cpu", score_threshold=0.2)(picture())) == 2
    assert len(Predictor(model, "cpu", score_threshold=0.01)(picture())) == 3  # below the network's own 0.05
    assert model.score_threshold == 0.05
    assert len(next(Predictor(model, "cpu").instances.predict_all([Picture(picture())], 0.2))) == 2


def test_all_kinds_of_pictures(tmp_path: Path) -> None:
    grey, deep = picture()[..., 0], (picture()[..., 0].astype(np.uint16) * 257)
    Image.fromarray(np.dstack([picture(), grey])).save(tmp_path / "rgba.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    model = FakeDetector([BOX], [0.9])
    with pytest.warns(UserWarning, match="16-bit"):
        seen = seen_by(model, *(tmp_path / name for name in ("rgba.png", "deep.png", "grey.png")))
    rgba, deep_seen, grey_seen = (images for images, _ in seen)
    assert torch.equal(rgba, seen_by(model, picture())[0][0])  # alpha is dropped
    torch.testing.assert_close(deep_seen, grey_seen, atol=0.02, rtol=0)  # which Pillow rounds to whole numbers
    for size in [(1, 1), (32, 4000), (4000, 32), (1, 2000)]:
        results = Predictor(model, "cpu", "fp32")(np.zeros(size, np.uint8))
        assert results.size == size
        assert results.boxes.tolist() == [pytest.approx([x * s for x, s in zip(BOX, size[::-1] * 2, strict=True)], abs=1e-3)]
        assert results.masks is not None
        assert results.masks.dense().shape == (1, *size)


def test_a_picture_without_objects(tmp_path: Path) -> None:
    for keypoints, masks in ((None, True), (SKELETON, False)):
        model = FakeDetector([], [], keypoints=keypoints, masks=masks)
        results = Predictor(model, "cpu", "fp32")(picture())
        assert len(results) == 0
        assert results.to_coco() == []
        assert torch.equal(results.draw(picture()), torch.from_numpy(picture()).permute(2, 0, 1))
        written = results.save(tmp_path / str(masks), ("png", "overlay", "coco", "yolo", "labelme"), image=picture())
        assert all(path.exists() for path in written)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.floats(-3, 20)] * 4), max_size=4), st.sampled_from(["detectron2", "torchvision"]), st.integers(0, 9)
)
def test_all_forms_of_box_masks_agree(boxes: list[tuple[float, ...]], convention: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(len(boxes), 5, 5, generator=generator)
    masks = BoxMasks(probabilities, torch.tensor(boxes).reshape(-1, 4), (12, 17), convention)  # pyright: ignore
    dense = masks.dense()
    assert dense.shape == (len(masks), 12, 17)
    if boxes:
        assert torch.equal(decode_rle(masks.rle()), dense)
    for number, (one, crop, outline) in enumerate(zip(masks, masks.crops(), masks.polygons(), strict=True)):
        assert torch.equal(one, dense[number])
        pasted = np.zeros((12, 17), bool)
        pasted[crop.top : crop.top + crop.mask.shape[0], crop.left : crop.left + crop.mask.shape[1]] = crop.mask
        assert np.array_equal(pasted, dense[number].numpy())
        assert np.array_equal(polygons_to_mask(outline.outer, (12, 17)) & ~polygons_to_mask(outline.holes, (12, 17)), pasted)


def test_options_for_pixels_are_refused() -> None:
    model = FakeDetector([BOX], [0.9])
    for options in ({"flips": True}, {"window": 64}, {"objects": "watershed"}, {"min_area": 3}, {"overlap": 0.5}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Predictor(model, "cpu", **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="finds objects"):
        Predictor(model, "cpu").predict_to_tiff(picture(), "x.tif")


def test_a_folder_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.fromarray(picture(seed=number)).save(tmp_path / "in" / f"{number}.png")
    predictor = Predictor(FakeDetector([BOX, [0, 0, 1, 1]], [0.9, 0.8], [1, 0]), "cpu", "fp32")
    assert predict_folder(predictor, tmp_path / "in", tmp_path / "out", formats=("coco", "overlay"), huge=10) == []
    assert "2 objects" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1, 2, 1]


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of the zoo with masks and keypoints, and random weights by which it finds much."""
    torch.manual_seed(0)
    options = {
        "encoder": "resnet18",
        "width": 16,
        "box_width": 32,
        "keypoint_convs": 1,
        "keypoint_width": 16,
        "num_keypoints": 3,
    }
    model = create_model("mask_keypoint_rcnn_resnet50_fpn", 2, **options)
    with torch.no_grad():
        model.box_head.classifier.weight.mul_(20)  # pyright: ignore
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    conventions = Conventions(outputs="instances", resize=Resize(80, 133, "pillow"), keypoints=SKELETON)
    save_model(model, path, classes=("cat", "dog"), conventions=conventions)
    return path


def test_a_network_of_the_zoo_gives_each_picture_what_it_has_alone(small_weights: Path) -> None:
    pictures = [picture(height, width, seed=width) for height, width in ((60, 90), (90, 60), (62, 90), (60, 91), (1, 1))]
    together = Predictor(small_weights, "cpu", "fp32", score_threshold=0.1, batch=4)(pictures)
    alone = [Predictor(small_weights, "cpu", "fp32", score_threshold=0.1)(one) for one in pictures]
    assert sum(map(len, alone)) > 20
    for one, other in zip(together, alone, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)


def test_compiled_it_finds_the_same(small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for batches of any size, each of pictures of two sizes that are padded to the same."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(model: torch.nn.Module, device: torch.device) -> Any:
        return torch.compile(model, fullgraph=True, dynamic=True, backend=backend)

    monkeypatch.setattr("delineate.predict.detecting.compiled", compiled)
    pictures = [picture(height, width, seed=width) for height, width in ((60, 90), (61, 90), (90, 60), (90, 61))]
    options: dict[str, Any] = {"score_threshold": 0.1, "batch": 2}
    eager, whole = (Predictor(small_weights, "cpu", "fp32", compile=on, **options)(pictures) for on in (False, True))
    assert len(graphs) == 1
    assert sum(map(len, eager)) > 20
    for one, other in zip(whole, eager, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.keypoints, other.keypoints, atol=1e-2, rtol=1e-4)
        assert isinstance(one.masks, BoxMasks)
        assert isinstance(other.masks, BoxMasks)
        torch.testing.assert_close(one.masks.probabilities, other.masks.probabilities, atol=1e-4, rtol=0)


def test_folded_norms_change_nothing(small_weights: Path) -> None:
    model = load_model(small_weights)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.get_buffer("running_var").uniform_(0.7, 1.5)
    predictor = Predictor(model, "cpu", "fp32", score_threshold=0.1)
    folded = predictor.instances.network.model
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.encoder.modules())  # pyright: ignore
    images = torch.rand(1, 3, 96, 128)
    with torch.inference_mode():
        ours, plain = folded(images), model(images)  # pyright: ignore
    assert int(plain.valid.sum()) > 5
    torch.testing.assert_close(ours.boxes, plain.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(ours.masks, plain.masks, atol=1e-4, rtol=0)


def test_the_verbs_take_detectors(small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = write_coco(tmp_path / "data", keypoints=True)
    out = str(tmp_path / "out")
    formats = ["--formats", "png", "overlay", "coco", "yolo", "labelme"]
    arguments = [str(small_weights), str(tmp_path / "data"), "--out", out, "--score-threshold", "0.1", "--device", "cpu"]
    assert run(["predict", *arguments, *formats]) == 0
    assert {"hide", "poses"} & set(capsys.readouterr().out.split())
    found = open_dataset(tmp_path / "out" / "coco.json", None)
    assert found.kind == "keypoint"
    assert found.keypoints is not None
    assert found.keypoints.names == SKELETON.names
    json_file, list_file = str(tmp_path / "numbers.json"), str(tmp_path / "found.json")
    assert run(["eval", str(small_weights), str(annotations), "--json", json_file, "--predictions", list_file]) == 0
    numbers = json.loads(Path(json_file).read_text())["summary"]
    assert {"segm/AP", "bbox/AP", "keypoints/AP", "objects/f1_50"} <= numbers.keys()
    assert run(["score", list_file, str(annotations), "--sigmas", "0.07", "0.07", "0.07"]) == 0
    assert run(["predict", *arguments, "--flips"]) == 2


def test_stuff_is_drawn_beneath_objects() -> None:
    results = Predictor(FakeDetector([[0, 0, 0.5, 1]], [0.9]), "cpu", "fp32")(np.zeros((40, 60, 3), np.uint8))
    segments = np.repeat(np.repeat([[1, 2, 3]], 20, axis=1), 40, axis=0)
    results.stuff, results.panoptic = ("sky", "grass"), PanopticMap(segments, np.array([0, 3, 2]), np.zeros(3, bool))
    assert results.stuff_map is not None
    assert results.stuff_map[0, ::20].tolist() == [0, 2, 1]
    drawn = results.draw(np.full((40, 60, 3), (9, 0, 0), np.uint8))
    assert len({tuple(drawn[:, 39, x].tolist()) for x in (10, 35, 55)}) == 3
    assert torch.equal(drawn[:, 39, 33], drawn[:, 39, 37])
