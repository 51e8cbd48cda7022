"""The report of a run: whole, with parts missing, with numbers that are none; one file that needs no other."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from delineate.config import TrainConfig, dump_config
from delineate.data.synthetic import blobs
from delineate.errors import DataError
from delineate.files import write_json, write_text
from delineate.metrics import ConfusionMatrix
from delineate.report import write_report
from delineate.report.overlay import draw_errors, draw_semantic, side_by_side
from delineate.report.plots import plot_confusion, plot_losses, to_svg
from delineate.report.reading import parse_history, read_run
from delineate.report.settings import describe_settings

CLASSES = ("background", "cell", "dirt & <dust>")


def make_run(folder: Path, epochs: int = 20, pictures: int = 8, classes: tuple[str, ...] = CLASSES) -> Path:
    """A run folder like one of `train`, with curves, confusion and pictures that look true."""
    config = TrainConfig.model_validate({"data": {"path": "cells"}, "epochs": 20, "patience": 5})
    write_text(folder / "config.yaml", dump_config(config))
    write_json(folder / "env.json", {"python": "3.12", "torch": "2.11", "machine": {"cpu": "two cores", "memory_gb": 8}})
    reasons = {
        "augment.patch": "an object fits in it 5 times",
        "augment": "cells have no up and down",
        "epochs": "15 minutes here",
    }
    plan = {
        "config": config.model_dump(mode="json"),
        "reasons": reasons,
        "rows": [],
        "notes": ["about 14 minutes on this machine"],
    }
    plan["config"]["epochs"] = 30
    write_json(folder / "plan.json", plan)
    write_history(folder, epochs)
    write_evaluation(folder, pictures, classes)
    return folder


def write_history(folder: Path, epochs: int) -> None:
    rng = np.random.default_rng(0)
    header = "epoch,step,lr,train/loss,train/cross_entropy,train/dice,val/loss,val/mean_iou,val/mean_dice,val/pixel_accuracy,"
    lines = [header + "images_per_second,memory_mb,seconds"]
    for epoch in range(1, epochs + 1):
        falling = math.exp(-epoch / 6)
        iou = 0.9 - 0.6 * falling + 0.02 * rng.standard_normal()
        numbers = [epoch, 50 * epoch, 1e-3 * (1 - epoch / 21) ** 0.9, 0.2 + falling, 0.1 + 0.6 * falling, 0.1 + 0.4 * falling]
        numbers += [
            0.25 + falling + 0.03 * rng.standard_normal(),
            iou,
            2 * iou / (1 + iou),
            0.99 - 0.2 * falling,
            9.7,
            812.0,
            17.0 * epoch,
        ]
        lines.append(",".join(f"{number:.6g}" for number in numbers))
    write_text(folder / "results.csv", "\n".join(lines) + "\n")


def write_evaluation(folder: Path, pictures: int, classes: tuple[str, ...]) -> None:
    count = len(classes)
    confusion = (np.eye(count) * 90_000 + np.random.default_rng(1).integers(0, 9_000, (count, count))).astype(int)
    confusion[0] *= 7
    truth, found, hits = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    iou = hits / (truth + found - hits)
    per_class = [
        {
            "name": name,
            "iou": float(iou[i]),
            "dice": float(2 * hits[i] / (truth[i] + found[i])),
            "precision": float(hits[i] / found[i]),
            "recall": float(hits[i] / truth[i]),
            "truth_pixels": int(truth[i]),
            "predicted_pixels": int(found[i]),
        }
        for i, name in enumerate(classes)
    ]
    summary = {"mean_iou": float(iou.mean()), "mean_dice": 0.93, "pixel_accuracy": 0.981, "mean_accuracy": 0.94}
    content = {
        "split": "val",
        "kind": "instance",
        "classes": list(classes),
        "summary": summary | {f"iou/{name}": float(value) for name, value in zip(classes, iou, strict=True)},
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "confusions": ConfusionMatrix.from_counts(confusion).confusions(classes),
        "images": [_picture(folder, number) for number in range(pictures)],
        "objects": {"ap": 0.712, "ap50": 0.91, "ap55": 0.905, "f1_50": 0.92, "mean_matched_iou_50": 0.87, "truth_objects": 60},
        "intervals": {"mean_iou": [0.79, 0.86], "mean_dice": [0.91, 0.95], "objects/f1_50": [0.88, 0.94]},
    }
    write_json(folder / "evaluation.json", content)


def _picture(folder: Path, number: int) -> dict[str, Any]:
    image, objects = blobs(160, (3, number))
    picture, truth = torch.from_numpy(image)[None], torch.from_numpy((objects > 0).astype(np.int64))
    prediction = truth.roll((number % 4, 2), (0, 1))
    panels = [draw_semantic(picture, truth), draw_semantic(picture, prediction), draw_errors(picture, prediction, truth)]
    preview = side_by_side(panels, ["truth", "prediction", "errors"])
    (folder / "previews").mkdir(exist_ok=True)
    name = f"blobs_{number:03}"
    Image.fromarray(preview.permute(1, 2, 0).numpy()).save(folder / "previews" / f"{name}.png")
    scores = {"mean_iou": 0.7 + 0.03 * number, "mean_dice": 0.8 + 0.02 * number}
    return {"name": name, "path": f"cells/{name}.png", **scores, "objects": None, "preview": f"previews/{name}.png"}


class References(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data", "action")
        ]


def text_of(page: str) -> str:
    """The words of the page without styles and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "cells-unet")
    write_report(folder)
    return folder


def test_the_page_needs_nothing_else(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    references = References()
    references.feed(page)
    assert sum(reference.startswith("data:image/") for reference in references.found) == 6
    assert all(reference.startswith(("data:image/", "#")) for reference in references.found)
    assert "url(http" not in page
    assert "@import" not in page


def test_numbers_of_the_files_are_on_the_page(whole: Path) -> None:
    text = text_of((whole / "report.html").read_text())
    evaluation = json.loads((whole / "evaluation.json").read_text())
    for row in evaluation["per_class"]:
        for key in ("iou", "dice", "precision", "recall"):
            assert f"{row[key]:.3f}" in text
    assert "0.790 to 0.860" in text
    assert "Object F1, IoU 0.5 0.920 0.880 to 0.940" in text
    assert "mean matched IoU at IoU 0.50 0.870" in text
    assert "0.905" not in text
    assert "dirt &amp; &lt;dust&gt;" in text
    counts = np.array(evaluation["confusion"])
    for share in (counts / counts.sum(1, keepdims=True)).ravel():
        assert f"{100 * share:.1f} %" in text
    worst = evaluation["confusions"][0]
    assert f"{html.escape(worst['truth'])} taken for {html.escape(worst['prediction'])}" in text
    assert "9.7 pictures a second" in text
    assert "812 MB" in text
    assert "5 min 40 s" in text


def test_worst_and_best_pictures_are_shown(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    names = re.findall(r"<figcaption><strong>(.*?)</strong>", page)
    assert names == [f"blobs_{number:03}" for number in (0, 1, 2, 7, 6, 5)]


def test_few_pictures_are_shown_once(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", pictures=2)).read_text()
    assert re.findall(r"<figcaption><strong>(.*?)</strong>", page) == ["blobs_000", "blobs_001"]


def test_settings_carry_the_reasons_of_the_plan(whole: Path) -> None:
    text = text_of((whole / "report.html").read_text())
    assert "256 × 256 pixels, 33 % of them centred on a drawn class An object fits in it 5 times." in text
    assert "Set by you; the plan proposed 30 epochs, batches of 4" in text
    assert "15 minutes here" not in text  # the reason of a value that is not used


def test_plots_lie_in_the_run(whole: Path) -> None:
    for name in ("loss", "metrics", "learning_rate", "confusion"):
        with Image.open(whole / "plots" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_commands_quote_paths(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "my run", epochs=1, pictures=0)).read_text()
    assert f"delineate predict &#39;{tmp_path}/my run/weights/best.safetensors&#39; PICTURES" in page


def _without_everything_but_history(folder: Path) -> None:
    for name in ("config.yaml", "plan.json", "env.json", "evaluation.json"):
        (folder / name).unlink()


def _without_validation(folder: Path) -> None:
    (folder / "results.csv").write_text("epoch,step,lr,train/loss,val/loss,val/mean_iou\n1,10,0.1,0.7,,nan\n")
    (folder / "evaluation.json").unlink()


def _cut_off(folder: Path) -> None:
    text = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(text[: len(text) - 40])
    (folder / "evaluation.json").write_text('{"classes": ["a"')
    (folder / "env.json").write_bytes(b"\xff\xfe\x00")


def _header_only(folder: Path) -> None:
    (folder / "results.csv").write_text("epoch,step,lr,train/loss\n")


def _nan_everywhere(folder: Path) -> None:
    content = json.loads((folder / "evaluation.json").read_text())
    nan = float("nan")
    content["summary"] = dict.fromkeys(content["summary"], nan)
    content["intervals"] = {"mean_iou": [nan, nan]}
    content["confusion"] = [[0] * 3] * 3
    for row in content["per_class"]:
        row |= {"iou": nan, "dice": None, "truth_pixels": 0, "predicted_pixels": 0}
    for image in content["images"]:
        image |= {"mean_iou": nan, "mean_dice": None}
    content["objects"] = None
    (folder / "evaluation.json").write_text(json.dumps(content))


def _lost_previews(folder: Path) -> None:
    for path in (folder / "previews").iterdir():
        path.write_text("no picture")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_everything_but_history, "evaluation.json is missing: the network was not measured against truth."),
        (_without_validation, "There are no validation numbers in results.csv"),
        (_without_validation, "The run ended after 1 of 20 epochs"),
        (_cut_off, "evaluation.json cannot be read"),
        (_cut_off, "env.json cannot be read"),
        (_header_only, "results.csv is empty: there are no curves"),
        (_nan_everywhere, "Mean IoU –"),
        (_lost_previews, "Pictures that cannot be read: previews/blobs_000.png"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = make_run(tmp_path / "run")
    damage(folder)
    page = write_report(folder).read_text()
    assert said in text_of(page)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text_of(page.replace(str(tmp_path), "")))


def test_a_whole_run_misses_nothing(whole: Path) -> None:
    assert read_run(whole).missing == []


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no config\.yaml"):
        write_report(tmp_path)


def test_many_classes_become_a_plot(tmp_path: Path) -> None:
    classes = tuple(f"class {index}" for index in range(30))
    page = write_report(make_run(tmp_path / "run", epochs=2, pictures=1, classes=classes)).read_text()
    assert page.count('<td class="name">') == 30
    assert "truth ↓ predicted →" not in page


def test_history_with_holes() -> None:
    history = parse_history("epoch,a\n1,0.5\n2,\n3,oops\n4")
    assert history["epoch"] == [1, 2, 3, 4]
    assert history["a"][0] == 0.5
    assert all(math.isnan(value) for value in history["a"][1:])
    assert parse_history("") == {}


def test_svg_follows_the_page() -> None:
    figure = plot_losses({"epoch": [1, 2, 3], "train/loss": [3, 2, 1], "val/loss": [math.nan, 2, math.nan]})
    assert figure is not None
    svg = to_svg(figure)
    assert svg.startswith("<svg")
    assert "var(--muted)" in svg
    assert "<style" not in svg
    assert svg == to_svg(figure)  # the same figure gives the same text
    assert plot_losses({"epoch": [1], "train/loss": [math.nan]}) is None


def test_early_peaks_do_not_flatten_the_losses() -> None:
    figure = plot_losses({"epoch": list(range(10)), "train/loss": [1.0] * 10, "val/loss": [40.0] + [1.0] * 9})
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] < 3
    assert "40 cut off" in figure.axes[0].get_title(loc="left")


def test_confusion_plot_is_normalised_by_truth() -> None:
    axes = plot_confusion([[3, 1], [0, 0]], ["a", "b"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["75.0", "25.0", "0.0", "0.0"]


def test_settings_of_an_older_config_are_left_out() -> None:
    assert describe_settings({"seed": 3, "deterministic": True}, {}) == [
        {"setting": "Chance", "value": "seed 3, bit-identical repeats", "because": ""}
    ]


def test_a_reason_of_two_settings_is_given_once() -> None:
    config = {"model": {"name": "hmsa", "options": {"model": "unet", "channels": 8}, "outputs": "classes"}}
    reasons = {"model.name": "as asked", "model.options.model": "as asked", "model.options.channels": "as asked"}
    (row,) = describe_settings(config, {"config": config, "reasons": reasons})
    assert row["because"] == "As asked."
