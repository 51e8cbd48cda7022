"""Whole runs on small made-up data: the run folder, every kind of output, validation, and what ends a run early."""

from __future__ import annotations

import csv
import json
import math
import resource
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from _configs import QUICK
from delineate.config import LossTerm, TrainConfig, build_config, load_config
from delineate.data import make_loader, open_dataset
from delineate.data.batch import Batch
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import ConfigError, DelineateError
from delineate.losses import build_loss
from delineate.metrics import ConfusionMatrix
from delineate.models import create_model
from delineate.predict import Predictor
from delineate.train import loop, train
from delineate.train.build import build_model, prepare_dataset, reproducible, seed_step
from delineate.train.checkpoint import Progress, load_state, save_state
from delineate.train.logging import Display
from delineate.train.runfolder import RunFolder, results_csv
from delineate.train.validate import Validation
from delineate.weights import Conventions, load_model, read_info


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blobs_dataset(tmp_path_factory.mktemp("data"), count=4, size=48, val=2)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blobs_dataset(tmp_path_factory.mktemp("objects"), count=4, size=48, val=2, kind="instance")


def make_config(data: Path | dict[str, str], **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "data": data if isinstance(data, dict) else {"path": str(data)},
        "input": {"color": "gray", "mean": [0.3], "std": [0.2]},
        "model": {"options": {"width": 4, "depth": 3}},
        "augment": {"patch": [32, 32]},
        "epochs": 2,
        "steps_per_epoch": 2,
    }
    return build_config(QUICK | content | changes)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    config = make_config(data, tensorboard=True, optimizer={"ema": 0.9})
    result = train(config, out, quiet=True)
    assert (result.folder, result.best) == (out, out / "weights" / "best.safetensors")
    assert result.report == out / "report.html"
    assert 0 <= result.evaluation["mean_iou"] <= 1
    return out


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    return train(make_config(data, epochs=1), out, quiet=True).last


def read_rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


class TestRunFolder:
    def test_holds_what_was_promised(self, run: Path) -> None:
        files = ("config.yaml", "env.json", "results.csv", "log.jsonl", "evaluation.json", "report.html", "state/last.pt")
        for name in (*files, "weights/best.safetensors", "weights/last.safetensors"):
            assert (run / name).is_file(), name
        assert list((run / "previews").glob("*.png"))
        assert list((run / "plots").glob("*.png"))

    def test_columns_of_results(self, run: Path) -> None:
        first = (run / "results.csv").read_text().splitlines()[0]
        assert first == (
            "epoch,step,lr,train/loss,train/cross_entropy,train/dice,val/loss,val/mean_iou,val/mean_dice,val/pixel_accuracy,"
            "images_per_second,memory_mb,seconds"
        )
        rows = read_rows(run)
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert [row["step"] for row in rows] == ["2", "4"]
        assert all(float(row[name]) > 0 for row in rows for name in row)

    def test_log_says_more_than_the_table(self, run: Path) -> None:
        events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        epochs = [event for event in events if event["event"] == "epoch"]
        assert [event["epoch"] for event in epochs] == [1, 2]
        assert "val/iou/foreground" in epochs[0]
        assert float(read_rows(run)[1]["val/mean_iou"]) == pytest.approx(epochs[1]["val/mean_iou"], rel=1e-5)

    def test_environment(self, run: Path) -> None:
        environment = json.loads((run / "env.json").read_text())
        assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
        assert environment["device"] == "cpu"
        assert environment["threads"] >= 1

    def test_config_is_resolved_and_reads_back(self, run: Path, data: Path) -> None:
        config = load_config(run / "config.yaml")
        assert config.data.path == data
        assert config == make_config(data, tensorboard=True, optimizer={"ema": 0.9})

    def test_weights_predict_and_say_where_they_come_from(self, run: Path) -> None:
        info = read_info(run / "weights" / "last.safetensors")
        assert info.extra["epoch"] == 2
        assert info.classes == ("background", "foreground")
        results = Predictor(run / "weights" / "best.safetensors", device="cpu")(np.zeros((40, 50), np.uint8))
        assert results.semantic.shape == (40, 50)

    def test_best_weights_are_those_of_the_best_validation(self, run: Path) -> None:
        values = [float(row["val/mean_iou"]) for row in read_rows(run)]
        info = read_info(run / "weights" / "best.safetensors")
        assert info.extra["epoch"] == 1 + int(np.argmax(values))
        assert info.extra["mean_iou"] == pytest.approx(max(values), rel=1e-5)
        # ... and the evaluation at the end is the same measurement, with the normalisation folded into the convolutions
        evaluation = json.loads((run / "evaluation.json").read_text())
        assert evaluation["summary"]["mean_iou"] == pytest.approx(max(values), abs=2e-3)

    def test_tensorboard_holds_the_same_numbers(self, run: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        scalars = events.Scalars("val/mean_iou")
        assert [event.step for event in scalars] == [2, 4]
        expected = [float(row["val/mean_iou"]) for row in read_rows(run)]
        assert [event.value for event in scalars] == pytest.approx(expected, rel=1e-5)


class TestOutputs:
    """Every kind of output, and networks that lose a margin, go from pictures to a report."""

    @pytest.mark.parametrize("outputs", ["border", "distance", "multilabel"])
    def test_of_objects(self, objects: Path, tmp_path: Path, outputs: str) -> None:
        config = make_config(objects, model={"outputs": outputs, "options": {"width": 4, "depth": 3}}, epochs=1)
        result = train(config, tmp_path / "run", quiet=True)
        assert load_model(result.best).conventions.outputs == outputs
        (row,) = read_rows(tmp_path / "run")
        assert 0 <= float(row["val/mean_iou"]) <= 1
        event = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
        assert ("val/iou/border" in event) == (outputs == "border")
        assert ("train/distance" in row) == (outputs == "distance")

    def test_border_weights_and_deep_supervision(self, objects: Path, tmp_path: Path) -> None:
        config = make_config(
            objects,
            model={"options": {"width": 4, "depth": 3, "deep_supervision": True}},
            loss=[{"name": "border_cross_entropy"}, {"name": "lovasz", "weight": 0.5}],
            epochs=1,
        )
        train(config, tmp_path / "run", quiet=True)
        (row,) = read_rows(tmp_path / "run")
        assert {"train/border_cross_entropy", "train/lovasz"} <= row.keys()

    @pytest.mark.slow
    def test_unet_original(self, data: Path, tmp_path: Path) -> None:
        config = make_config(
            data, model={"name": "unet_original"}, augment={"patch": [188, 188]}, epochs=1, steps_per_epoch=1, batch=1
        )
        result = train(config, tmp_path / "run", quiet=True)
        assert math.isfinite(result.evaluation["mean_iou"])

    def test_bf16_and_the_papers_optimizer(self, data: Path, tmp_path: Path) -> None:
        config = make_config(data, precision="bf16", optimizer={"name": "sgd", "momentum": 0.99, "lr": 1e-3}, epochs=1)
        train(config, tmp_path / "run", quiet=True)
        weights = load_model(tmp_path / "run" / "weights" / "last.safetensors")
        assert all(p.dtype == torch.float32 for p in weights.parameters())

    @pytest.mark.slow
    def test_compiled(self, data: Path, tmp_path: Path) -> None:
        """Compiling changes the speed, not what is learned."""
        losses = []
        for compile_ in (False, True):
            train(make_config(data, compile=compile_, deterministic=True), tmp_path / str(compile_), quiet=True)
            losses.append([float(row["train/loss"]) for row in read_rows(tmp_path / str(compile_))])
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_a_network_of_the_callers_own(self, data: Path, tmp_path: Path) -> None:
        class Own(nn.Module):
            stride, margin = 1, 0
            architecture: ClassVar = {"name": "mine", "num_classes": 2, "options": {"in_channels": 1}}

            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 2, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x)

        model = Own()
        before = model.conv.weight.detach().clone()
        dataset = open_dataset(data)
        fewer = replace(dataset, splits={"train": dataset.splits["train"][:2], "val": dataset.splits["val"][:1]})
        result = train(make_config(data), tmp_path / "run", quiet=True, model=model, dataset=fewer)
        assert not torch.equal(model.conv.weight, before)
        evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        assert len(evaluation["images"]) == 1
        assert read_info(result.best).architecture["name"] == "mine"
        assert load_config(tmp_path / "run" / "config.yaml").model.name == "mine"


class TestLearning:
    def test_loss_falls_and_iou_rises(self, data: Path, tmp_path: Path) -> None:
        config = make_config(data, epochs=6, steps_per_epoch=10, optimizer={"lr": 5e-3, "ema": 0.9}, batch=4)
        train(config, tmp_path / "run", quiet=True)
        rows = read_rows(tmp_path / "run")
        assert float(rows[-1]["train/loss"]) < 0.5 * float(rows[0]["train/loss"])
        assert float(rows[-1]["val/mean_iou"]) > max(0.88, float(rows[0]["val/mean_iou"]))

    def test_the_averaged_weights_are_the_kept_ones(self, data: Path, tmp_path: Path) -> None:
        train(make_config(data, optimizer={"ema": 0.99}), tmp_path / "run", quiet=True)
        state = torch.load(tmp_path / "run" / "state" / "last.pt", weights_only=True)
        kept = load_model(tmp_path / "run" / "weights" / "last.safetensors").state_dict()
        assert all(torch.equal(tensor, state["average"]["model"][name]) for name, tensor in kept.items())
        assert not all(torch.equal(tensor, state["model"][name]) for name, tensor in kept.items())


class TestEnds:
    def test_patience(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A rate that changes nothing: the first validation stays the best."""
        config = make_config(data, epochs=20, patience=2, optimizer={"name": "sgd", "lr": 1e-30, "weight_decay": 0.0})
        config = config.model_copy(update={"model": config.model.model_copy(update={"options": {"width": 4, "norm": "group"}})})
        train(config, tmp_path / "run")
        assert len(read_rows(tmp_path / "run")) == 3
        assert "mean_iou has not risen for 2 epochs: ended after epoch 3" in capsys.readouterr().out
        train(config, tmp_path / "run", resume=True, quiet=True)
        assert len(read_rows(tmp_path / "run")) == 3
        train(config.model_copy(update={"patience": 4}), tmp_path / "run", resume=True, quiet=True)
        assert len(read_rows(tmp_path / "run")) == 5

    def test_three_bad_steps(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = loop.training_step

        def poisoned(*arguments: Any, **options: Any) -> Any:
            arguments[4][0].images[:] = math.nan
            return real(*arguments, **options)

        monkeypatch.setattr(loop, "training_step", poisoned)
        with pytest.raises(DelineateError, match=r"loss nan, gradient norm nan, 3 times in a row") as caught:
            train(make_config(data, steps_per_epoch=5), tmp_path / "run", quiet=True)
        message = str(caught.value)
        assert "\n" not in message
        assert "blobs_00" in message
        assert "optimizer.lr (now 0.001)" in message

    def test_single_bad_steps_are_counted_and_logged(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real, calls = loop.training_step, 0

        def sometimes(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls in (2, 3, 5):
                arguments[4][0].images[:] = math.inf
            return real(*arguments, **options)

        monkeypatch.setattr(loop, "training_step", sometimes)
        train(make_config(data, steps_per_epoch=4), tmp_path / "run")
        events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        skipped = [event for event in events if event["event"] == "skipped step"]
        assert [event["step"] for event in skipped] == [2, 3, 5]
        assert skipped[0]["pictures"][0].startswith("blobs_")
        assert [event["skipped_steps"] for event in events if event["event"] == "epoch"] == [2, 1]
        assert all(math.isfinite(float(row["train/loss"])) for row in read_rows(tmp_path / "run"))
        assert "step skipped; pictures blobs_" in capsys.readouterr().out

    def test_not_in_the_main_thread(self, data: Path, tmp_path: Path) -> None:
        thread = threading.Thread(target=train, args=(make_config(data), tmp_path / "run"), kwargs={"quiet": True})
        thread.start()
        thread.join()
        assert (tmp_path / "run" / "report.html").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"monitor": "mean_io"}, r"monitor 'mean_io' is no number of the validation; did you mean 'mean_iou'\?"),
            ({"monitor": "loss"}, "monitor 'loss' is no number"),
            ({"model": {"name": "unett"}}, "did you mean 'unet'"),
            ({"model": {"options": {"widht": 4}}}, "did you mean 'width'"),
            ({"model": {"options": {"in_channels": 3}}}, "leave in_channels away"),
            ({"loss": [{"name": "dice", "options": {"smoth": 1}}]}, "smoth"),
            ({"precision": "fp16"}, "fp16"),
            ({"device": "gpu"}, "device 'gpu'"),
            ({"model": {"name": "unet_original"}}, "16 k \\+ 60"),
        ],
    )
    def test_in_the_config(self, data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            train(make_config(data, **changes), tmp_path / "run", quiet=True)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()  # the name is free for the corrected run

    def test_unknown_split(self, data: Path, tmp_path: Path) -> None:
        config = make_config({"path": str(data), "val_split": "vall"})
        with pytest.raises(ConfigError, match=r"data.val_split 'vall': .* has train, val; did you mean 'val'\?"):
            train(config, tmp_path / "run", quiet=True)

    def test_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(DelineateError, match="nowhere"):
            train(make_config(tmp_path / "nowhere"), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    def test_an_empty_folder_is_no_run(self, data: Path, tmp_path: Path) -> None:
        train(make_config(data, epochs=1), tmp_path, quiet=True)
        assert (tmp_path / "results.csv").exists()

    def test_a_file_in_the_place_of_the_folder(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        with pytest.raises(ConfigError, match="exists"):
            train(make_config(data), tmp_path / "run", quiet=True)
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_place_that_cannot_be_written(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DelineateError, match="choose another --out"):
            train(make_config(data), tmp_path / "file" / "run", quiet=True)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A limit on the size of files stands in for it: what was there stays, and the message names the file."""
        path, parts = tmp_path / "last.pt", {"model": nn.Linear(300, 300)}
        save_state(path, Progress(epoch=1), parts)
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
        try:
            with pytest.raises(DelineateError, match=r"last\.pt: cannot be written") as caught:
                save_state(path, Progress(epoch=2), parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
        assert "\n" not in str(caught.value)
        assert load_state(path, parts).epoch == 1
        assert list(tmp_path.iterdir()) == [path]


class TestStart:
    """Starting from given weights."""

    def test_all_are_loaded(self, data: Path, weights: Path) -> None:
        config = make_config(data, model={"options": {"width": 4, "depth": 3}, "weights": str(weights)})
        model, notes = build_model(config, 2, fresh=True)
        expected = load_model(weights).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert notes == [f"started from {weights}"]

    def test_a_head_of_another_size_is_new(self, data: Path, weights: Path) -> None:
        config = make_config(data, model={"options": {"width": 4, "depth": 3}, "weights": str(weights)})
        model, (note,) = build_model(config, 5, fresh=True)
        expected, ours = load_model(weights).state_dict(), model.state_dict()
        assert {name for name in ours if ours[name].shape != expected[name].shape} == {"head.weight", "head.bias"}
        assert all(torch.equal(ours[name], expected[name]) for name in ours if not name.startswith("head."))
        assert note.endswith("but head from random weights: it tells 2 outputs and not 5 apart")

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"options": {"width": 8, "depth": 3}}, "it was made with width 4 instead of 8"),
            ({"name": "unet_original"}, "asks for 'unet_original'"),
        ],
    )
    def test_another_network_is_refused(self, data: Path, weights: Path, model: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build_model(make_config(data, model=model | {"weights": str(weights)}), 2, fresh=True)

    def test_a_run_starts_there(self, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = make_config(
            data,
            model={"options": {"width": 4, "depth": 3, "norm": "batch"}, "weights": str(weights)},
            optimizer={"lr": 1e-12},
            epochs=1,
        )
        train(config, tmp_path / "run")
        ours = load_model(tmp_path / "run" / "weights" / "last.safetensors")
        for mine, given in zip(ours.parameters(), load_model(weights).parameters(), strict=True):
            torch.testing.assert_close(mine, given)
        assert f"started from {weights}" in capsys.readouterr().out


class TestValidation:
    """Against plain forward passes over whole pictures."""

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_counts_and_loss(self, data: Path, precision: Any) -> None:
        config, dataset = make_config(data), open_dataset(data)
        conventions = Conventions(color="gray", mean=(0.3,), std=(0.2,))
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        torch.manual_seed(0)
        model = create_model("unet", 2, in_channels=1, width=4, depth=3).eval()
        loader = make_loader(dataset, dataset.splits["val"], config, conventions, train=False)
        loss = build_loss(config.loss, conventions, 2)
        numbers = Validation(fabric, loader, loss, conventions, ("a", "b"))(model)
        counts, losses = ConfusionMatrix(2), []
        for batch in loader:
            with torch.no_grad(), fabric.autocast():
                logits = model(batch.images)
            counts.update(logits.argmax(1), batch.labels)
            losses.append(float(loss(logits.float(), batch)[0]))
        assert numbers["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert numbers["mean_iou"] == float(counts.mean_iou())
        assert numbers["iou/b"] == counts.iou()[1]

    def test_large_pictures_go_through_windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network of one pixel's reach gives the same in windows as in one piece."""
        torch.manual_seed(0)
        model = nn.Conv2d(1, 2, 1)
        batch = Batch(torch.randn(1, 1, 150, 130), torch.randint(0, 2, (1, 150, 130)), names=("large",))
        conventions = Conventions(color="gray")
        loss = build_loss([LossTerm(name="cross_entropy")], conventions, 2)
        fabric = Fabric(accelerator="cpu", devices=1)
        whole = Validation(fabric, [batch], loss, conventions, ("a", "b"))(model)
        monkeypatch.setattr("delineate.train.validate.WHOLE", 100)
        monkeypatch.setattr("delineate.train.validate.WINDOW", 64)
        windows = Validation(fabric, [batch], loss, conventions, ("a", "b"))(model)
        assert windows == pytest.approx(whole, rel=1e-4)

    def test_ignored_pixels_do_not_count(self) -> None:
        labels = torch.full((1, 8, 8), 255)
        labels[0, 0] = 1
        batch = Batch(torch.zeros(1, 1, 8, 8), labels, names=("x",))
        conventions = Conventions(color="gray")
        loss = build_loss([LossTerm(name="cross_entropy")], conventions, 2)
        model = nn.Conv2d(1, 2, 1)
        nn.init.zeros_(model.weight)
        model.bias = nn.Parameter(torch.tensor([0.0, 1.0]))
        numbers = Validation(Fabric(accelerator="cpu", devices=1), [batch], loss, conventions, ("a", "b"))(model)
        assert numbers["pixel_accuracy"] == 1.0
        assert numbers["loss"] == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


class TestParts:
    def test_splits_are_made_or_taken_by_name(self, data: Path, tmp_path: Path) -> None:
        flat = make_blobs_dataset(tmp_path, count=10, size=32)
        dataset = prepare_dataset(make_config(flat).data)
        assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 8, "val": 2}
        turned = prepare_dataset(make_config({"path": str(data), "train_split": "val", "val_split": "train"}).data)
        original = open_dataset(data)
        assert turned.splits["train"] == original.splits["val"]
        assert turned.splits["val"] == original.splits["train"]

    def test_steps_have_their_own_seeds(self) -> None:
        draws = set()
        for seed, step, rank in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
            seed_step(seed, step, rank)
            draws.add(float(torch.rand(1)))
            first = torch.rand(1)
            seed_step(seed, step, rank)
            torch.rand(1)
            assert torch.equal(torch.rand(1), first)
        assert len(draws) == 4

    def test_the_callers_random_numbers_and_settings_stay(self, data: Path) -> None:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        with reproducible(make_config(data, deterministic=True), torch.device("cpu")):
            assert torch.are_deterministic_algorithms_enabled()
            seed_step(0, 0, 0)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.rand(3), expected)

    def test_results_without_validation_have_empty_cells(self) -> None:
        text = results_csv([{"event": "epoch", "epoch": 1, "train/loss": math.nan}, {"event": "skipped step", "epoch": 1}])
        header, row = text.splitlines()
        assert dict(zip(header.split(","), row.split(","), strict=True))["train/loss"] == ""
        assert row.startswith("1,")

    def test_only_our_own_leftovers_are_removed(self, tmp_path: Path) -> None:
        for name in (".last-abc12345.pt", "plots/.loss-x_yz0123.png", ".my-notes.txt", "keep-12345678.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        RunFolder(tmp_path).clean()
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".my-notes.txt", "keep-12345678.png"]

    def test_validate_every(self, data: Path, tmp_path: Path) -> None:
        train(make_config(data, epochs=5, validate_every=2, steps_per_epoch=1), tmp_path / "run", quiet=True)
        assert [bool(row["val/mean_iou"]) for row in read_rows(tmp_path / "run")] == [False, True, False, True, True]


class TestDisplay:
    ROW: ClassVar = {"epoch": 2, "train/loss": 0.5, "val/mean_iou": 0.75, "images_per_second": 12.34, "memory_mb": 812.0}

    def test_plain_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Display(epochs=10, steps=4, done=4, monitor="mean_iou", quiet=False) as display:
            display.step(2, 5, 0.6, 12.0, 800.0)
            display.epoch(self.ROW, 8)
            display.note("a [note]")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("epoch  2/10  loss 0.5000  mean_iou 0.7500  12.3 images/s  812 MB  0:00 left")
        assert lines[1:] == ["a [note]"]

    def test_quiet(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Display(epochs=10, steps=4, done=0, monitor="mean_iou", quiet=True) as display:
            display.step(1, 1, 0.6, 12.0, 800.0)
            display.epoch(self.ROW, 4)
            display.note("note")
        assert capsys.readouterr().out == ""

    def test_bar_on_a_terminal(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "160")
        with Display(epochs=10, steps=4, done=0, monitor="mean_iou", quiet=False) as display:
            display.step(1, 3, 0.6543, 12.0, 800.0)
            display.epoch(self.ROW, 4)
        output = capsys.readouterr().out
        assert "loss 0.6543" in output
        assert "mean_iou 0.7500" in output

    def test_a_missing_tensorboard_is_said_once(
        self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        train(make_config(data, tensorboard=True), tmp_path / "run")
        output = capsys.readouterr().out
        assert output.count("install delineate[tensorboard]") == 1
        assert not (tmp_path / "run" / "tensorboard").exists()
