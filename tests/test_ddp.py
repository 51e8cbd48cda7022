"""Several processes: the losses of one process with the larger batch, one message for an error, clean ends, torchrun."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from delineate.config import TrainConfig, build_config, dump_config
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import ConfigError, DataError
from delineate.losses.matching import sample_matches
from delineate.train import train
from delineate.train.build import prepare_dataset
from delineate.train.processes import make_fabric
from delineate.train.task import make_task

SRC = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blobs_dataset(tmp_path_factory.mktemp("data"), count=8, size=48, val=3)


def make_config(data: Path, /, **changes: Any) -> TrainConfig:
    content = {
        "data": {"path": str(data)},
        "input": {"color": "gray", "mean": [0.3], "std": [0.2]},
        # Statistics of batch normalisation would be those of each process; dropout draws differently in each.
        "model": {"options": {"width": 4, "depth": 3, "norm": "instance"}},
        "augment": {"patch": [32, 32]},
        "loss": [{"name": "cross_entropy"}],
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 1.0},
        "epochs": 2,
        "steps_per_epoch": 4,
        "batch": 2,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "deterministic": True,
        "tensorboard": False,
    }
    return build_config(content | changes)


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "results.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


PIXELS = ("train/loss", "val/loss", "val/mean_iou", "val/pixel_accuracy")


def assert_equal_runs(ours: Path, theirs: Path, columns: tuple[str, ...] = PIXELS) -> None:
    names = ("epoch", "step", "lr", *columns)
    for a, b in zip(rows(ours), rows(theirs), strict=True):
        assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names}, rel=1e-5)
    mine, others = (load_file(out / "weights" / "last.safetensors") for out in (ours, theirs))
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def one_process(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    train(make_config(data, batch=4), out, quiet=True)
    return out


def test_two_processes_are_one_with_twice_the_batch(data: Path, one_process: Path, tmp_path: Path) -> None:
    result = train(make_config(data, devices=2), tmp_path / "run", quiet=True)
    assert result.report is not None
    assert rows(tmp_path / "run")[0]["train/loss"] != rows(tmp_path / "run")[1]["train/loss"]
    assert_equal_runs(tmp_path / "run", one_process)


def torchrun(data: Path, out: Path, **changes: Any) -> subprocess.Popen[str]:
    """Start two processes that train, as `torchrun delineate train` would."""
    config = out.with_suffix(".yaml")
    config.write_text(dump_config(make_config(data, **changes)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command += ["delineate", "train", str(config), "--out", str(out)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_under_torchrun(data: Path, one_process: Path, tmp_path: Path) -> None:
    process = torchrun(data, tmp_path / "run")
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.count("epoch 1/2") == 1  # the first process speaks
    assert output.count("report ") == 1
    assert_equal_runs(tmp_path / "run", one_process)


@pytest.mark.slow
def test_an_error_under_torchrun_is_said_once(data: Path, tmp_path: Path) -> None:
    broken = make_blobs_dataset(tmp_path / "broken", count=8, size=48, val=3)
    (broken / "train" / "images" / "blobs_005.png").write_bytes(b"no picture")
    process = torchrun(broken, tmp_path / "run")
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("delineate:")]
    assert len(ours) == 1
    assert "blobs_005.png" in ours[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_detectors_average_the_gradients_of_their_batches(tmp_path: Path) -> None:
    """Two processes, one of which sees a picture without objects: nothing hangs, they learn as one process that accumulates
    two batches does, and share the validation. Every region is learned from, because each process draws its own."""
    data = make_blobs_dataset(tmp_path / "data", 2, 48, val=3, kind="instance", channels=3)
    empty = sorted((data / "train" / "instances").iterdir())[0]
    Image.fromarray(torch.zeros(48, 48, dtype=torch.uint8).numpy()).save(empty)
    options = {"encoder": "resnet18", "norm": "group", "width": 8, "box_width": 16, "mask_convs": 1}
    common: dict[str, Any] = {
        "data": {"path": str(data), "group_aspect": False},
        "input": {"resize": {"shortest": 64, "longest": 64}},
        "model": {"name": "mask_rcnn_resnet50_fpn", "options": options},
        "batch": 1,
        "epochs": 1,
    }
    sgd = {"name": "sgd", "lr": 0.01, "schedule": "constant"}
    spread = make_config(data, **common, devices=2, steps_per_epoch=2, optimizer=sgd)
    alone = make_config(data, **common, steps_per_epoch=4, optimizer=sgd | {"accumulate": 2})
    model: Any = make_task(spread, prepare_dataset(spread.data), fresh=True).model
    model.positives = 64
    model.sampler, model.rpn.sampler = (partial(sample_matches, count=10_000, positive_fraction=p) for p in (0.0064, 1.0))
    for config, name in ((spread, "spread"), (alone, "alone")):
        train(config, tmp_path / name, quiet=True, model=copy.deepcopy(model))
    assert_equal_runs(tmp_path / "spread", tmp_path / "alone", ("train/loss", "train/mask", "val/mask_AP", "val/box_AP50"))


def test_an_error_in_one_process_ends_all_with_its_message(data: Path, tmp_path: Path) -> None:
    """The picture is read by one of the two only; the other one waits for it."""
    broken = make_blobs_dataset(tmp_path / "broken", count=8, size=48, val=3)
    (broken / "train" / "images" / "blobs_005.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"blobs_005\.png") as caught:
        train(make_config(broken, devices=2), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


START = """
import sys
from pathlib import Path
from delineate.config import load_config
from delineate.train import train
if __name__ == "__main__":
    try:
        train(load_config(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3] == "resume")
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.slow
def test_interrupted_and_resumed(data: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the first process alone here; it passes it on, and all stop after the same step."""
    out, script, config = tmp_path / "run", tmp_path / "start.py", tmp_path / "config.yaml"
    script.write_text(START)
    optimizer = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "schedule": "constant"}  # the same for any number of epochs
    config.write_text(dump_config(make_config(data, devices=2, epochs=500, optimizer=optimizer)))
    command = [sys.executable, str(script), str(config), str(out)]
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "new"], env=environment, stdout=subprocess.PIPE, text=True)
    while not (out / "state" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped after step" in output or "epoch   2/500" in output
    progress = torch.load(out / "state" / "last.pt", weights_only=True)["progress"]
    assert progress["step"] > 0
    settings: dict[str, Any] = {"epochs": progress["epoch"] + 1, "optimizer": optimizer}
    train(make_config(data, devices=2, **settings), out, resume=True, quiet=True)
    train(make_config(data, batch=4, **settings), tmp_path / "whole", quiet=True)
    assert_equal_runs(out, tmp_path / "whole")


def test_what_cannot_be_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        make_fabric(make_config(data, nodes=2))
    if torch.cuda.is_available():
        with pytest.raises(ConfigError, match="GPUs"):
            make_fabric(make_config(data, device="cuda", devices=64))
        with pytest.raises(ConfigError, match="is one"):
            make_fabric(make_config(data, device="cuda:0", devices=2))


def test_torchrun_with_another_number_of_devices(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    for name, value in {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="devices is 3, but torchrun started 4"):
        make_fabric(make_config(data, devices=3))
    fabric = make_fabric(make_config(data))
    assert fabric.world_size == 8
