"""Several scales by windows and strips against the same computed whole."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

import delineate as dl
from delineate.cli import run
from delineate.data import make_blobs_dataset, open_dataset
from delineate.data.windows import ArrayReader
from delineate.errors import ConfigError
from delineate.files import write_json
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention, View, fuse_hierarchically, scaled_size
from delineate.models.semantic import resize
from delineate.predict.evaluate import evaluate
from delineate.predict.pictures import Picture
from delineate.predict.resampling import ScaledReader, find_taps, resize_rows
from delineate.predict.scales import predict_scales, predict_shares
from delineate.predict.tiling import predict_windows
from delineate.report import write_report
from delineate.weights import Conventions

SIZES = st.integers(1, 40)


@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_of_a_resized_map_are_those_of_the_whole(h: int, w: int, height: int, width: int, align: bool, data: Any) -> None:
    x = torch.randn(2, h, w)
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    taps = find_taps(h, height, start, stop, align_corners=align)
    found = resize_rows(x[:, taps.first : taps.end], taps.first, h, width, taps, align_corners=align)
    torch.testing.assert_close(found, resize(x[None], (height, width), align)[0, :, start:stop], atol=1e-4, rtol=1e-4)


@given(SIZES, SIZES, SIZES, SIZES, st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_of_a_scaled_picture_is_that_of_the_whole(
    h: int, w: int, height: int, width: int, align: bool, data: Any
) -> None:
    x = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    found = ScaledReader(ArrayReader(x), (height, width), align_corners=align).read(top, left, rows, columns)
    expected = resize(x[None].float(), (height, width), align)[0, :, top : top + rows, left : left + columns]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-2, rtol=1e-4)


def network(fusion: str, scales: tuple[float, ...]) -> Any:
    inner: Any = dl.create_model("unet", 5, width=4, depth=3)
    return HierarchicalMultiScaleAttention(inner, fusion=fusion, scales=scales, channels=4).eval()


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding, and with the same labels."""
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert torch.equal(found.argmax(0), expected.argmax(0))


def naive(model: Any, x: Tensor, window: int, flips: bool) -> Tensor:
    """Each scale of the picture by windows into a map of its whole size, then the fusion of whole maps."""
    views = []
    for scale in model.scales[::-1]:
        attend = model.fusion == "attention" and scale < max(model.scales)
        scaled = resize(x[None], scaled_size(x.shape[-2:], scale))[0]

        def predict(part: Tensor, attend: bool = attend) -> Tensor:
            view = model.view(part, 1.0, attend=attend)
            return view.logits if view.attention is None else torch.cat([view.logits, view.attention], 1)

        whole = torch.cat([s.content for s in predict_windows(predict, scaled, window=window, flips=flips)], 1)[None]
        views.append(View(scale, whole[:, :-1], whole[:, -1:]) if attend else View(scale, whole))
    if model.fusion == "attention":
        return fuse_hierarchically(views)[0]
    logits = torch.stack([resize(view.logits, x.shape[-2:])[0] for view in views])
    return logits.mean(0) if model.fusion == "average" else logits.amax(0)


@pytest.mark.parametrize("scales", [(0.5, 1, 2), (0.25, 0.5, 1, 1.5, 2), (1,), (1, 1.5), (1, 5)])
@pytest.mark.parametrize(("size", "window"), [((131, 70), 64), ((97, 201), 1000), ((1, 3), 8)])
def test_strips_are_those_of_the_naive_way(scales: tuple[float, ...], size: tuple[int, int], window: int) -> None:
    model, x = network("attention", scales), torch.randn(3, *size)
    with torch.inference_mode():
        expected = naive(model, x, window, flips=False)
        found = torch.cat([strip.content for strip in predict_scales(model, x, window=window)], 1)
    assert_equal(found, expected)
    assert size == (1, 3) or len(found.argmax(0).unique()) > 1


@pytest.mark.parametrize("fusion", ["average", "maximum", "attention"])
def test_other_fusions_and_mirrored_views(fusion: str) -> None:
    model, x = network(fusion, (0.5, 1, 2)), torch.randn(3, 70, 90)
    with torch.inference_mode():
        expected = naive(model, x, 48, flips=True)
        found = torch.cat([strip.content for strip in predict_scales(model, x, window=48, flips=True)], 1)
    assert_equal(found, expected)


def test_in_one_window_it_is_the_network_itself() -> None:
    model, x = network("attention", (0.5, 1, 2)), torch.randn(3, 100, 61)
    with torch.inference_mode():
        found = torch.cat([strip.content for strip in predict_scales(model, x, window=500)], 1)
        assert_equal(found, model(x[None])[0])


@pytest.mark.parametrize("fusion", ["attention", "explicit"])
def test_the_predictor_takes_pictures_of_any_size(fusion: str) -> None:
    model = network(fusion, (0.5, 1, 2))
    model.classes, model.conventions = tuple("abcde"), Conventions()
    pixels = torch.randint(0, 256, (3, 150, 90), dtype=torch.uint8)
    whole = dl.Predictor(model, "cpu", "fp32")(pixels).semantic
    windows = dl.Predictor(model, "cpu", "fp32", window=64)(pixels).semantic
    assert whole is not None
    assert windows is not None
    assert windows.shape == whole.shape
    if fusion == "attention":
        x = (pixels / 255 - torch.tensor(Conventions().mean)[:, None, None]) / torch.tensor(Conventions().std)[:, None, None]
        with torch.inference_mode():
            expected = naive(model, x, 64, flips=False)
        assert (windows == expected.argmax(0)).float().mean() > 0.9999


def test_compiled_it_is_the_same_in_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for the largest scale of pictures and windows of any size, and one, with attention, for the others."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(f: Any, device: torch.device, *, dynamic: bool) -> Any:
        return torch.compile(f, fullgraph=True, dynamic=dynamic, backend=backend)

    monkeypatch.setattr("delineate.predict.network.compiled", compiled)
    inner: Any = dl.create_model("unet", 5, width=4, depth=2)
    model: Any = HierarchicalMultiScaleAttention(inner, scales=(0.5, 1, 2), channels=4).eval()
    model.classes, model.conventions = tuple("abcde"), Conventions()
    # torch takes another convolution, and so another graph, for more than 20480 numbers: these stay below it
    pictures = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((30, 31), (25, 36))]
    options: dict[str, Any] = {"window": 32, "flips": True, "batch": 1}
    found, expected = (dl.Predictor(model, "cpu", "fp32", compile=on, **options)(pictures) for on in (True, False))
    assert len(graphs) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.semantic is not None
        assert other.semantic is not None
        assert torch.equal(one.semantic, other.semantic)
        assert len(one.semantic.unique()) > 1


def test_other_scales_than_those_of_the_network() -> None:
    model = network("attention", (0.5, 1))
    model.classes = model.model.classes = tuple("abcde")
    model.conventions = model.model.conventions = Conventions()
    pixels = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    found = dl.Predictor(model, "cpu", "fp32", scales=(2, 1, 0.5))(pixels).semantic
    assert model.scales == (0.5, 1.0)
    model.scales = (0.5, 1.0, 2.0)
    expected = dl.Predictor(model, "cpu", "fp32")(pixels).semantic
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)

    averaged = dl.Predictor(model.model, "cpu", "fp32", scales=(0.5, 1, 2))  # a network of one scale
    averaging = HierarchicalMultiScaleAttention(model.model, fusion="average", scales=(0.5, 1, 2)).eval()
    x = averaged.semantic.network.prepare(pixels[None])
    with torch.inference_mode():
        torch.testing.assert_close(averaged.semantic.network.model(x), averaging(x), atol=1e-4, rtol=1e-4)
    assert len(averaged(pixels).semantic.unique()) > 1  # pyright: ignore[reportOptionalMemberAccess]


def test_scales_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, pixels = network("attention", (0.5, 1)), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    dl.save_model(model, tmp_path / "net.safetensors", classes=tuple("abcde"), conventions=Conventions())
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = [
        "predict",
        str(tmp_path / "net.safetensors"),
        str(tmp_path / "a.png"),
        "--out",
        str(tmp_path / "out"),
        "--scales",
    ]
    assert run([*command, "0.25", "1", "2", "--precision", "fp32"]) == 0
    expected = dl.Predictor(tmp_path / "net.safetensors", "cpu", "fp32", scales=(0.25, 1, 2))(pixels).semantic
    assert expected is not None
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")), expected.numpy())
    assert run([*command, "0.5", "2"]) == 2
    assert "expected different positive numbers, 1 among them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "scales", "message"),
    [
        ("attention", (0.5, 2), r"scales are \[0\.5, 2\]; expected different positive numbers, 1 among them"),
        ("explicit", (0.5, 1, 2), r"explicit fusion was made for the scales \[0\.5, 1\.0\], not \[0\.5, 1\.0, 2\.0\]"),
        ("unet_original", (0.5, 1), "UNetOriginal cannot be run at several scales"),
    ],
)
def test_scales_that_cannot_be(wrong: str, scales: tuple[float, ...], message: str) -> None:
    model: Any = dl.create_model(wrong, 5) if wrong == "unet_original" else network(wrong, (0.5, 1))
    model.classes, model.conventions = tuple("abcde"), Conventions(color="gray", mean=(0.0,), std=(1.0,))
    with pytest.raises(ConfigError, match=message):
        dl.Predictor(model, "cpu", "fp32", scales=scales)


@pytest.mark.parametrize(("fusion", "scales"), [("attention", (0.5, 1.0, 2.0)), ("explicit", (0.5, 1.0))])
def test_shares_of_scales_are_the_attention_and_add_up(fusion: str, scales: tuple[float, ...]) -> None:
    model, x = network(fusion, scales), torch.rand(3, 37, 45)
    for part in (None, 24):  # whole, and in windows
        with torch.inference_mode():
            shares = predict_shares(model, x, window=part or 999)
            maps = model.attention_maps(x[None])
        assert tuple(shares) == scales
        torch.testing.assert_close(torch.stack(list(shares.values())).sum(0), torch.ones(37, 45))
        if part is None:  # the smallest scale is weighed first
            torch.testing.assert_close(shares[0.5], resize(maps[0.5], (37, 45))[0, 0], atol=1e-4, rtol=0)


def panels_of(drawing: Tensor, size: tuple[int, int], count: int) -> list[Tensor]:
    """The pictures (3, *size) that stand in a row of a drawing, 4 pixels apart, below their captions."""
    height, width = size
    assert drawing.shape[2] == count * width + 4 * (count - 1)
    return [drawing[:, -height:, i * (width + 4) :][:, :, :width] for i in range(count)]


def of_colors(panel: Tensor) -> Tensor:
    """The numbers (H, W) in 0..1 that stand for the colours (3, H, W) of a drawing; every colour must be one of the scale's."""
    table = torch.from_numpy(colormaps["viridis"](np.arange(256), bytes=True)[:, :3].astype(np.float32))
    distance, index = torch.cdist(panel.flatten(1).T.float(), table).min(1)
    assert not distance.any()
    return (index.reshape(panel.shape[1:]) + 0.5) / 256  # the middle of those of a colour; a few share one


def test_shares_that_favour_one_scale_and_their_picture() -> None:
    model = network("attention", (0.5, 1.0, 2.0))
    model.classes, model.conventions = ("a", "b", "c", "d", "e"), Conventions()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    torch.nn.init.zeros_(model.head[-1].weight)  # every attention is one half
    predictor = dl.Predictor(model, "cpu", "fp32", window=48)
    shares = predictor.semantic.shares(Picture(pixels))
    assert [round(float(share.mean()), 4) for share in shares.values()] == [0.5, 0.25, 0.25]
    drawn = predictor.draw_scales(pixels)
    assert drawn.dtype == torch.uint8
    picture, *panels = panels_of(drawn, (256, round(90 * 256 / 70)), 4)
    assert torch.equal(picture[:, ::255, ::328], torch.from_numpy(pixels).permute(2, 0, 1)[:, ::69, ::89])  # its corners
    assert [float(of_colors(panel).mean()) for panel in panels] == pytest.approx([0.5, 0.25, 0.25], abs=0.005)
    model.fusion = "average"
    averaging = dl.Predictor(model, "cpu", "fp32")
    assert averaging.semantic.shares(Picture(pixels)) == {}
    with pytest.raises(ConfigError, match="does not attend"):
        averaging.draw_scales(pixels)


def test_the_report_shows_the_share_of_each_scale(tmp_path: Path) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path / "data", 1, 64))
    model: Any = dl.create_model("hmsa", 2, model="unet", scales=(0.5, 1.0, 2.0), options={"width": 4, "depth": 3}).eval()
    torch.nn.init.normal_(model.head[-1].weight, std=20)  # so that some pixels trust one scale, others another
    model.classes, model.conventions = dataset.semantic_classes, Conventions()
    predictor = dl.Predictor(model, "cpu", "fp32")
    run = tmp_path / "run"
    evaluation = evaluate(predictor, dataset, dataset.records, split="all", previews=run / "previews", intervals=None)
    write_json(run / "evaluation.json", evaluation.to_json())
    [embedded] = re.findall(r'src="data:image/png;base64,([^"]+)"', write_report(run).read_text(encoding="utf-8"))
    with Image.open(io.BytesIO(base64.b64decode(embedded))) as picture:
        drawing = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    shown = torch.stack([of_colors(panel) for panel in panels_of(drawing, (256, 256), 6)[3:]])
    torch.testing.assert_close(shown.sum(0), torch.ones(256, 256), atol=0.02, rtol=0)
    shares = torch.stack(list(predictor.semantic.shares(Picture(dataset.records[0].image)).values()))
    torch.testing.assert_close(shown[:, ::4, ::4], shares, atol=0.01, rtol=0)
    assert all(share.min() < 0.2 and share.max() > 0.5 for share in shares), "shares that say nothing"
