"""Predictor: every kind of picture and of output, against the network called by hand; folders; pictures larger than memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

import delineate as dl
from delineate.cli import run
from delineate.data.decode import decode_labels
from delineate.data.intensity import image_statistics, normalize
from delineate.data.synthetic import blobs, make_blobs_dataset
from delineate.data.windows import ArrayReader, open_image
from delineate.devices import pick_device, pick_precision
from delineate.errors import ConfigError, DataError
from delineate.models import create_model
from delineate.predict import Predictor, predict_folder
from delineate.predict.pictures import picture_statistics
from delineate.predict.tiling import predict_windows
from delineate.weights import Conventions, save_model

CLASSES = ("background", "cell", "debris")
FIXED = {"mean": (0.4,), "std": (0.2,)}


def network(color: str = "gray", outputs: str = "classes", name: str = "unet", **conventions) -> nn.Module:
    """A small network with random weights that predicts all classes on blobs."""
    torch.manual_seed(1)
    settings = Conventions(color=color, outputs=outputs, **(FIXED | conventions))  # pyright: ignore[reportArgumentType]
    options = {"width": 6, "depth": 3} if name == "unet" else {}
    model = create_model(name, settings.output_channels(len(CLASSES)), in_channels=settings.channels, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.3, 1.0)  # pyright: ignore[reportArgumentType]
    model.classes, model.conventions = CLASSES, settings  # pyright: ignore[reportArgumentType]
    return model


def by_hand(model: nn.Module, pixels: np.ndarray) -> Tensor:
    """Logits (K', H, W) of a grey picture (H, W), predicted in one piece."""
    with torch.inference_mode():
        return model(normalize(torch.from_numpy(pixels)[None, None], model.conventions))[0]  # pyright: ignore


def picture(size: tuple[int, int] = (70, 90), seed: int = 0, channels: int = 1) -> np.ndarray:
    return blobs(size, seed, channels=channels)[0]


def test_classes_equal_the_network_called_by_hand() -> None:
    model = network()
    for size in [(70, 90), (1, 1), (3, 50), (64, 64)]:
        pixels = picture((70, 90))[: size[0], : size[1]]
        results = Predictor(model, "cpu", "fp32")(pixels)
        assert results.size == size
        assert results.semantic is not None
        assert results.semantic.dtype == torch.uint8
        assert torch.equal(results.semantic.long(), by_hand(model, pixels).argmax(0))


def test_several_classes_occur_in_what_is_tested() -> None:
    assert len(Predictor(network(), "cpu", "fp32")(picture()).semantic.unique()) >= 2  # pyright: ignore


def test_windows_are_those_of_the_engine() -> None:
    """The engine has tests of its own; here, that it gets the predictor's window, overlap and scores."""
    model, pixels = network(), picture((100, 130))
    predictor = Predictor(model, "cpu", "fp32", window=64, overlap=0.5, batch=3)
    options = {"prepare": predictor.semantic.network.prepare, "window": 64, "overlap": 0.5}
    with torch.inference_mode():
        strips = predict_windows(predictor.semantic.network, ArrayReader(pixels), **options)
        scores = torch.cat([strip.content for strip in strips], 1)
    assert torch.equal(predictor(pixels).semantic.long(), scores.argmax(0))  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(scores.sum(0), torch.ones(100, 130))  # blended probabilities are probabilities
    whole = by_hand(model, pixels).softmax(0)
    assert (scores[:, :20, :20] - whole[:, :20, :20]).abs().mean() < 0.02  # far from where the first window ends


def test_unet_original_in_windows_is_exact() -> None:
    """Overlap-tile: windows of 36 pixels give what one pass over the whole mirrored picture gives."""
    model = network(name="unet_original")
    pixels = picture((40, 50))
    padded = np.pad(pixels, ((92, 92 + 12), (92, 92 + 2)), mode="reflect")  # 236 x 236: 16 k + 60
    expected = by_hand(model, padded)[:, :40, :50]
    predictor = Predictor(model, "cpu", "fp32", window=36)
    assert torch.equal(predictor(pixels).semantic.long(), expected.argmax(0))  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(Predictor(model, "cpu", "fp32")(pixels).semantic.long(), expected.argmax(0))  # pyright: ignore


def test_flips_are_averaged() -> None:
    model, pixels = network(), picture()
    views = [by_hand(model, np.ascontiguousarray(np.flip(pixels, d))).softmax(0) for d in ((), (0,), (1,), (0, 1))]
    back = [view.flip([d + 1 for d in dims]) for view, dims in zip(views, ((), (0,), (1,), (0, 1)), strict=True)]
    expected = torch.stack(back).mean(0).argmax(0)
    assert torch.equal(Predictor(model, "cpu", "fp32", flips=True)(pixels).semantic.long(), expected)  # pyright: ignore


def test_border_pixels_belong_to_objects() -> None:
    model, pixels = network(outputs="border"), picture()
    logits = by_hand(model, pixels)
    labels = logits.argmax(0)
    expected = torch.where(labels == 3, logits[1:3].argmax(0) + 1, labels)
    predictor = Predictor(model, "cpu", "fp32", score_threshold=0, min_area=0)
    results = predictor(pixels)
    assert (labels == 3).any()
    assert predictor.semantic.objects == "border"
    assert torch.equal(results.semantic.long(), expected)  # pyright: ignore[reportOptionalMemberAccess]
    inside = results.instance_map > 0  # pyright: ignore[reportOptionalOperand]
    assert not (inside & (expected == 0)).any()
    from scipy import ndimage

    assert len(results) == ndimage.label(((labels != 3) & (labels != 0)).numpy())[1]
    probability = 1 - logits.softmax(0)[0]
    for mask, score in zip(results.masks, results.scores, strict=True):  # pyright: ignore[reportArgumentType]
        assert float(score) == pytest.approx(float(probability[mask].mean()), abs=2e-3)


def test_distance_and_multilabel() -> None:
    pixels = picture()
    model = network(outputs="distance")
    predictor = Predictor(model, "cpu", "fp32")
    assert predictor.semantic.objects == "distance"
    results = predictor(pixels)
    assert torch.equal(results.semantic.long(), by_hand(model, pixels)[:3].argmax(0))  # pyright: ignore
    assert results.masks is not None

    model = network(outputs="multilabel")
    results = Predictor(model, "cpu", "fp32", score_threshold=0.6)(pixels)
    assert torch.equal(results.multilabel, by_hand(model, pixels).sigmoid() > 0.6)  # pyright: ignore
    assert results.masks is None


def test_score_threshold_and_area_leave_objects_out() -> None:
    model, pixels = network(), picture()
    everything = Predictor(model, "cpu", "fp32", score_threshold=0)(pixels)
    threshold = float(everything.scores.median())
    assert len(everything) > 4
    kept = Predictor(model, "cpu", "fp32", score_threshold=threshold)(pixels)
    assert len(kept) == int((everything.scores >= threshold).sum())
    large = Predictor(model, "cpu", "fp32", score_threshold=0, min_area=30)(pixels)
    assert len(large) == sum(int(mask.sum()) >= 30 for mask in everything.masks)  # pyright: ignore[reportOptionalIterable]
    nothing = Predictor(model, "cpu", "fp32", objects="none")(pixels)
    assert nothing.masks is None


@pytest.mark.parametrize("color", ["gray", "rgb", "bgr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_source_is_the_same_picture(tmp_path: Path, color: str, channels: int) -> None:
    pixels = picture(channels=channels)
    path = tmp_path / "cells.png"
    Image.fromarray(pixels).save(path)
    planes = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
    predictor = Predictor(network(color), "cpu", "fp32")
    first = predictor(path)
    assert (first.name, first.path) == ("cells", path)
    sources = [str(path), Image.open(path), pixels, planes]
    for results in predictor(sources):
        assert torch.equal(results.semantic, first.semantic)  # pyright: ignore
        assert torch.equal(results.boxes, first.boxes)
    assert [r.name for r in predictor([path, pixels])] == ["cells", "image1"]


def test_other_pillow_modes() -> None:
    predictor = Predictor(network("rgb"), "cpu", "fp32")
    rgb = Image.fromarray(picture(channels=3))
    for mode in ("RGBA", "P", "L", "1", "LA", "CMYK", "F"):
        assert predictor(rgb.convert(mode)).size == (70, 90)
    with pytest.warns(UserWarning, match="16-bit"):  # what Pillow makes of 16-bit files
        assert predictor(rgb.convert("I")).size == (70, 90)
    transparent = rgb.copy()
    transparent.putalpha(3)
    assert torch.equal(predictor(transparent).semantic, predictor(rgb).semantic)  # pyright: ignore


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((5, 5, 4), np.uint8), r"shape \(5, 5, 4\)"),
        (np.zeros((3, 5, 5, 3), np.uint8), "shape"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.zeros((5, 5), np.int64), "int64; pass uint8"),
        (torch.zeros(5, 5, 3), "tensor"),
        (np.full((5, 5), 0.5, np.float32), r"0\.\.0\.5, but the network expects 0\.\.255"),
        (17, "type int"),
        ("missing.png", "missing.png: does not exist"),
    ],
)
def test_what_is_no_picture_is_named(source, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Predictor(network(), "cpu", "fp32")(source)


def test_sixteen_bits_for_a_network_of_eight_are_scaled_and_said() -> None:
    pixels = picture()
    predictor = Predictor(network(), "cpu", "fp32")
    with pytest.warns(UserWarning, match="16-bit picture scaled"):
        results = predictor(pixels.astype(np.uint16) * 257)
    assert torch.equal(results.semantic, predictor(pixels).semantic)  # pyright: ignore
    assert results.notes


def test_eight_bits_for_a_network_of_sixteen() -> None:
    pixels = picture()
    predictor = Predictor(network(value_range=65535.0), "cpu", "fp32")
    with pytest.warns(UserWarning, match=r"8-bit picture scaled to 0\.\.65535"):
        results = predictor(pixels)
    assert torch.equal(results.semantic, Predictor(network(), "cpu", "fp32")(pixels).semantic)  # pyright: ignore


def test_values_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    pixels = picture().astype(np.float32)
    for value in (np.nan, np.inf):
        pixels[3, 4] = value
        tifffile.imwrite(tmp_path / "holes.tif", pixels)
        with pytest.raises(DataError, match=r"holes\.tif: holds NaN or infinite values"):
            Predictor(network(normalization="image"), "cpu", "fp32")(tmp_path / "holes.tif")


def test_statistics_of_a_picture_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delineate.predict.pictures._ROWS_AT_ONCE", 7 * 90)
    for color, channels in [("gray", 1), ("gray", 3), ("rgb", 3), ("bgr", 1)]:
        pixels = picture(channels=channels).astype(np.uint16) * 200
        tifffile.imwrite(tmp_path / "p.tif", pixels, rowsperstrip=5, compression="zlib")
        reader = open_image(tmp_path / "p.tif", whole_bytes=0)
        expected = image_statistics(torch.from_numpy(reader.read(0, 0, 70, 90)), color)  # pyright: ignore
        torch.testing.assert_close(picture_statistics(reader, Conventions(color=color)), expected)  # pyright: ignore
    flat = picture_statistics(ArrayReader(np.full((70, 90), 7, np.uint8)), Conventions(color="gray"))
    assert [value.tolist() for value in flat] == [[7.0], [1.0]]


def test_normalisation_by_the_picture_is_that_of_the_whole_picture_in_every_window() -> None:
    pixels = picture((100, 130))
    model = network(normalization="image")
    scaled = (pixels * 0.5 + 30).astype(np.float32)  # mean and deviation undo this
    predictor = Predictor(model, "cpu", "fp32", window=64)
    assert torch.equal(predictor(pixels.astype(np.float32)).semantic, predictor(scaled).semantic)  # pyright: ignore


def test_bfloat16_is_close() -> None:
    model, pixels = network(), torch.from_numpy(picture((128, 128)))[None, None]
    scores = []
    for precision in ("fp32", "bf16"):
        predictor = Predictor(model, "cpu", precision)
        with torch.inference_mode():
            scores.append(predictor.semantic.network(predictor.semantic.network.prepare(pixels)))
    assert 0 < (scores[0] - scores[1]).abs().mean() < 0.02
    assert scores[1].dtype == torch.float32


def test_the_device_under_test_agrees_with_the_cpu(device: torch.device) -> None:
    model, pixels = network(), picture((100, 130))
    scores = []
    for place in ("cpu", device):
        predictor = Predictor(model, place, "fp32")
        strips = predict_windows(
            predictor.semantic.network,
            ArrayReader(pixels),
            prepare=predictor.semantic.network.prepare,
            window=64,
            flips=True,
            batch=8,
        )
        with torch.inference_mode():
            scores.append(torch.cat([strip.content.cpu() for strip in strips], 1))
    torch.testing.assert_close(scores[0], scores[1], atol=0.01, rtol=0)  # TF32 rounds inputs of convolutions to 10 bits
    assert Predictor(model, device).predict(pixels).size == (100, 130)


def test_the_predictor_leaves_the_network_alone() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Predictor(model, "cpu", "bf16")(picture())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_networks_of_others_can_be_used() -> None:
    model = nn.Conv2d(1, 3, 3, padding=1)
    with pytest.raises(ConfigError, match="no 'classes'"):
        Predictor(model)
    model.classes, model.conventions = CLASSES, Conventions(color="gray", mean=(0.4,), std=(0.2,))  # pyright: ignore
    results = Predictor(model, "cpu", "fp32")(picture())
    assert torch.equal(results.semantic.long(), by_hand(model, picture()).argmax(0))  # pyright: ignore
    model.classes = ("a", "b")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="need 2 output channels, the network has 3"):
        Predictor(model)(picture())


def test_gradients_stay_on_for_the_caller() -> None:
    predictor = Predictor(network(), "cpu", "fp32", window=32)
    for _strip in predictor.semantic.strips(ArrayReader(picture()), objects=False)[0]:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="outputs 'border', this one has 'classes'"):
        Predictor(network(), objects="border")
    with pytest.raises(ConfigError, match="did you mean 'watershed'"):
        Predictor(network(), objects="watersched")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        pick_device("gpu")
    with pytest.raises(ConfigError, match="this machine has"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="precision 'int8' is unknown"):
        pick_precision("int8", torch.device("cpu"))
    with pytest.raises(ConfigError, match="fp16"):
        pick_precision("fp16", torch.device("cpu"))
    with pytest.raises(DataError, match="no such file"):
        Predictor("nothing.safetensors")


# ---- folders, and pictures that do not fit into memory


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = network()
    path = tmp_path / "weights.safetensors"
    save_model(model, path, classes=CLASSES, conventions=model.conventions)  # pyright: ignore[reportArgumentType]
    return path


def test_a_huge_tiff_is_predicted_by_strips(tmp_path: Path) -> None:
    pixels = picture((200, 150))
    tifffile.imwrite(tmp_path / "huge.tif", pixels, tile=(64, 64), compression="zlib")
    predictor = Predictor(network(), "cpu", "fp32", window=80)
    size = predictor.predict_to_tiff(tmp_path / "huge.tif", tmp_path / "labels.tif")
    assert size == (200, 150)
    np.testing.assert_array_equal(decode_labels(tmp_path / "labels.tif"), predictor(pixels).semantic)


def test_predict_folder(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_blobs_dataset(tmp_path / "data", count=2) / "images"
    (data / "damaged.png").write_bytes((data / "blobs_000.png").read_bytes()[:300])
    (data / "text.png").write_text("not a picture")
    stack = np.stack([picture((40, 50), seed) for seed in range(3)])
    tifffile.imwrite(data / "stack.tif", stack, photometric="minisblack")
    predictor = Predictor(weights, "cpu", "fp32")
    failures = predict_folder(predictor, data, tmp_path / "out", formats=("png", "coco"), huge=96 * 96 - 1)
    printed = capsys.readouterr()
    assert len(failures) == 2
    assert all(any(name in line for line in printed.err.splitlines()) for name in ("damaged.png", "text.png"))
    assert "pictures/s" in printed.out
    stacks = {f"stack_{i}.png" for i in range(3)}
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {"blobs_000.tif", "blobs_001.tif", *stacks}
    assert (tmp_path / "out" / "coco.json").is_file()
    assert (tmp_path / "out" / "classes.txt").read_text().split() == list(CLASSES)
    for frame in range(3):
        labels = decode_labels(tmp_path / "out" / "masks" / f"stack_{frame}.png")
        np.testing.assert_array_equal(labels, predictor(stack[frame]).semantic)
    labels = decode_labels(tmp_path / "out" / "masks" / "blobs_000.tif")
    np.testing.assert_array_equal(labels, predictor(data / "blobs_000.png").semantic)


def test_pictures_of_the_same_name_do_not_overwrite_each_other(tmp_path: Path, weights: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/x.tif", "b/y.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((20, 20))).save(path)
    predict_folder(Predictor(weights), f"{tmp_path}/data/**/*", tmp_path / "out", formats=("png",), quiet=True)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 4


def test_the_command_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_blobs_dataset(tmp_path / "data", count=1) / "images"
    arguments = ["predict", str(weights), str(data), "--out", str(tmp_path / "out"), "--precision", "fp32"]
    assert run([*arguments, "--formats", "png", "labelme"]) == 0
    assert (tmp_path / "out" / "masks" / "blobs_000.png").is_file()
    assert (tmp_path / "out" / "labelme" / "blobs_000.json").is_file()
    capsys.readouterr()
    (data / "text.png").write_text("not a picture")
    assert run([*arguments, "--quiet"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "text.png" in printed.err
    assert run(["predict", str(weights), str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 3
    assert run([*arguments, "--formats", "jpeg"]) == 2
    assert run([*arguments, "--device", "cuda:99"]) == 2


def test_public_names() -> None:
    assert dl.Predictor is Predictor
    assert dl.Results.__name__ == "Results"


def test_compile_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*do without compile"):
        Predictor(network(), device="cpu", compile=True)
