"""The demo: our outlines fit the photograph, nothing of the unseen half is trained on, and the whole path runs and is good."""

from __future__ import annotations

import json
import runpy
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import label, regionprops

from delineate.data import open_dataset
from delineate.demo import CUT, coin_photograph, run_demo, write_demo_data
from delineate.errors import DelineateError


def outlines() -> dict[str, list[dict[str, object]]]:
    return json.loads((files("delineate") / "demo_data" / "coins.json").read_text())


def erode(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_erosion(mask, iterations=pixels), bool)


def dilate(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(mask, iterations=pixels), bool)


def test_outlines_are_sound_coco() -> None:
    content = outlines()
    picture = content["images"][0]
    assert (picture["width"], picture["height"]) == (384, 303)
    annotations = content["annotations"]
    assert [a["id"] for a in annotations] == list(range(1, 25))
    for annotation in annotations:
        (polygon,) = annotation["segmentation"]  # pyright: ignore[reportGeneralTypeIssues]
        points = np.reshape(polygon, (-1, 2))
        assert 40 <= len(points) <= 50
        assert (points >= 0).all()
        assert (points <= (384, 303)).all()
        x, y = points.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2  # shoelace formula
        assert annotation["area"] == pytest.approx(area, abs=0.06)
        low, high = points.min(0), points.max(0)
        assert annotation["bbox"] == pytest.approx([*low, *(high - low)], abs=0.06)


def test_map_agrees_with_polygons_drawn_by_scikit_image() -> None:
    _, coins = coin_photograph()
    for annotation in outlines()["annotations"]:
        points = np.reshape(annotation["segmentation"][0], (-1, 2))  # pyright: ignore[reportIndexIssue]
        mask = polygon2mask(coins.shape, points[:, ::-1] - 0.5)  # its pixel centres are whole numbers
        ours = coins == annotation["id"]
        assert (mask & ours).sum() / (mask | ours).sum() > 0.96


def test_outlines_lie_on_the_edges_of_the_coins() -> None:
    """Just inside every coin the photograph is brighter than just outside, nearly everywhere around it."""
    photograph, coins = coin_photograph()
    smooth = ndimage.gaussian_filter(photograph.astype(float), 0.7)
    steepness = ndimage.gaussian_gradient_magnitude(photograph.astype(float), 1.0)
    for region in regionprops(coins):
        mask = coins == region.label
        inner = mask & ~erode(mask, 3)
        outer = dilate(mask, 3) & (coins == 0)
        assert smooth[inner].mean() > smooth[outer].mean() + 15
        edge = mask & ~erode(mask, 1)
        for other in (erode(mask, 4), dilate(mask, 4)):
            elsewhere = other & ~erode(other, 1)
            assert steepness[edge].mean() > steepness[elsewhere].mean()
        assert region.solidity > 0.95
        assert np.max(np.asarray(label(mask))) == 1


def test_no_coin_is_cut_and_no_pixel_is_in_both_halves(tmp_path: Path) -> None:
    photograph, coins = coin_photograph()
    assert not coins[CUT - 4 : CUT + 4].any()
    dataset = open_dataset(write_demo_data(tmp_path / "coins"))
    assert dataset.kind == "instance"
    assert dataset.classes == ("coin",)
    halves = [np.asarray(Image.open(dataset.splits[split][0].image)) for split in ("train", "val")]
    assert sum(half.shape[0] for half in halves) == photograph.shape[0]
    assert (np.concatenate(halves) == photograph).all()
    assert len(np.unique(coins[:CUT])) == len(np.unique(coins[CUT:])) == 13  # 12 coins and the background


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DelineateError, match="exists already"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_whole_path_is_good_on_the_unseen_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_demo(tmp_path / "demo", steps=40, device="cpu")
    evaluation = json.loads((result.run / "evaluation.json").read_text())
    assert result.iou == evaluation["summary"]["iou/coin"] >= 0.85
    assert result.coins == 12
    assert result.found >= 10
    assert result.report == result.run / "report.html"
    assert "nothing was chosen" in result.report.read_text()
    predicted = np.asarray(Image.open(result.predictions / "masks" / "coins_lower.png"))
    truth = np.asarray(Image.open(result.data / "val" / "instances" / "coins_lower.png")) > 0
    found = predicted == 1
    assert (found & truth).sum() / (found | truth).sum() == pytest.approx(result.iou)
    story = capsys.readouterr().out
    for said in (f"{result.iou:.3f}", f"{result.found} of 12", str(result.report), "delineate train --data FOLDER"):
        assert said in story


@pytest.mark.slow
def test_the_example_trains_predicts_and_measures(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "examples" / "train_on_your_own_images.py"
    main = runpy.run_path(str(path))["main"]
    assert main(None, tmp_path, minutes=1) > 0.7
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "predictions" / "coco.json").is_file()
