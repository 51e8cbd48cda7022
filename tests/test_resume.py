"""Runs that are killed or interrupted at any moment and resumed end with the weights of a run that was left alone."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from delineate.config import TrainConfig, build_config, load_config
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import ConfigError, DataError
from delineate.train import train
from delineate.weights import read_info

# Real processes, forked from one that has imported everything, because importing torch would take most of the test's time.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["delineate.train", "delineate.predict.evaluate", "delineate.report.html"])

RUN = """
import os, signal, sys, torch
from delineate.train import train
torch.set_num_threads(1)
exec(before)
try:
    train(config, out, resume=resume, quiet=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blobs_dataset(tmp_path_factory.mktemp("data"), count=5, size=48, val=2)


def make_config(data: Path, **changes: Any) -> TrainConfig:
    content = {
        "data": {"path": str(data)},
        "input": {"color": "gray", "mean": [0.3], "std": [0.2]},
        "model": {"options": {"width": 4, "depth": 3, "dropout": 0.3}},
        "augment": {"patch": [32, 32], "rotate": 20.0, "noise": 0.05},
        "optimizer": {"ema": 0.9, "accumulate": 2, "warmup_steps": 3, "clip_norm": 1.0},
        "epochs": 3,
        "steps_per_epoch": 5,
        "batch": 2,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "seed": 3,
        "deterministic": True,
        "tensorboard": False,
    }
    return build_config(content | changes)


def start(config: TrainConfig, out: Path, *, resume: bool = False, before: str = "") -> BaseProcess:
    process = CONTEXT.Process(target=exec, args=(RUN, {"config": config, "out": out, "resume": resume, "before": before}))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def resume_to_the_end(config: TrainConfig, out: Path) -> None:
    """Go on as a user would: resume, or start anew where the run had not yet begun."""
    assert finish(start(config, out, resume=(out / "config.yaml").exists())) == 0


def history(out: Path) -> list[dict[str, str]]:
    """Rows of results.csv without what depends on the clock and the machine's load."""
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "memory_mb", "seconds")} for row in rows]


def assert_same(out: Path, reference: Path) -> None:
    for name in ("best", "last"):
        ours, theirs = (load_file(folder / "weights" / f"{name}.safetensors") for folder in (out, reference))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), f"{key} of {name} differs"
        assert read_info(out / "weights" / f"{name}.safetensors") == read_info(reference / "weights" / f"{name}.safetensors")
    assert history(out) == history(reference)
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert epochs == list(range(1, len(history(reference)) + 1))
    assert not [path for path in out.rglob(".*") if path.is_file()], "half-written files were left"
    assert (out / "report.html").exists()
    assert (out / "evaluation.json").exists()


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that is left alone, and how long it took."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(start(make_config(data), out.with_name("warm")))  # starts the server that the other processes are forked from
    begin = time.monotonic()
    assert finish(start(make_config(data), out)) == 0
    return out, time.monotonic() - begin


def test_repeats_bit_for_bit(data: Path, reference: tuple[Path, float]) -> None:
    assert_same(reference[0].with_name("warm"), reference[0])
    assert history(reference[0])[0]["train/loss"] != history(reference[0])[-1]["train/loss"]


SAVE_OFTEN = "import delineate.train.run; delineate.train.run.SAVE_SECONDS = 0"  # after every step, not every few minutes


@pytest.mark.parametrize("trial", range(3))
def test_killed_at_random_moments(data: Path, reference: tuple[Path, float], tmp_path: Path, trial: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"random seed {seed}")  # shown where the test fails
    chance = random.Random(seed)
    config, out = make_config(data), tmp_path / "run"
    for _ in range(2):
        process = start(config, out, resume=(out / "config.yaml").exists(), before=SAVE_OFTEN if trial else "")
        time.sleep(chance.uniform(0, reference[1]))
        process.kill()
        finish(process)
    resume_to_the_end(config, out)
    assert_same(out, reference[0])


# What a run does at the end of its second epoch is to rename last, (best,) state, log and results into place.
KILL_AT_RENAME = """
import delineate.files as files
count, rename = 0, os.replace
def replace(source, target):
    global count
    count += 1
    if count == {number} and {first}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if count == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


@pytest.mark.parametrize(("number", "first"), [(2, True), (4, False), (7, True), (10, False), (12, True)])
def test_killed_around_each_write(data: Path, reference: tuple[Path, float], tmp_path: Path, number: int, first: bool) -> None:
    config, out = make_config(data), tmp_path / "run"
    process = start(config, out, before=f"global os, signal\n{KILL_AT_RENAME.format(number=number, first=first)}")
    assert finish(process) == -signal.SIGKILL
    resume_to_the_end(config, out)
    assert_same(out, reference[0])


KILL_WHILE_SAVING = """
import io
saves, save = 0, torch.save
def half(state, file):
    global saves
    saves += 1
    if saves < 2:
        return save(state, file)
    buffer = io.BytesIO()
    save(state, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
"""


def test_killed_in_the_middle_of_writing_the_state(data: Path, reference: tuple[Path, float], tmp_path: Path) -> None:
    config, out = make_config(data), tmp_path / "run"
    assert finish(start(config, out, before=KILL_WHILE_SAVING)) == -signal.SIGKILL
    assert list((out / "state").glob(".last-*"))  # half a file
    resume_to_the_end(config, out)
    assert_same(out, reference[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_between_two_steps(
    data: Path, reference: tuple[Path, float], tmp_path: Path, number: signal.Signals, step: int
) -> None:
    """The signal comes in the middle of a step of an epoch: it is finished, the state saved, and the exit code is 130."""
    config, out = make_config(data), tmp_path / "run"
    before = f"""
import delineate.train.loop as loop
calls, real = 0, loop.training_step
def step(*arguments, **options):
    global calls
    calls += 1
    if calls == {step}:
        os.kill(os.getpid(), {int(number)})
    return real(*arguments, **options)
loop.training_step = step
"""
    assert finish(start(config, out, before=before)) == 130
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    assert state["progress"]["step"] in (step, step + 1)
    assert len(history(out)) == step // 3
    resume_to_the_end(config, out)
    assert_same(out, reference[0])


def test_interrupted_while_validating(data: Path, reference: tuple[Path, float], tmp_path: Path) -> None:
    config, out = make_config(data), tmp_path / "run"
    before = """
import delineate.train.validate as validate
calls, real = 0, validate.Validation._picture
def picture(*arguments):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments)
validate.Validation._picture = picture
"""
    assert finish(start(config, out, before=before)) == 130
    assert len(history(out)) == 1
    resume_to_the_end(config, out)
    assert_same(out, reference[0])


def test_the_second_ctrl_c_ends_at_once(data: Path, tmp_path: Path) -> None:
    before = """
import delineate.train.loop as loop
def step(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)
loop.training_step = step
"""
    assert finish(start(make_config(data), tmp_path / "run", before=before)) == 130


def test_state_holds_tensors_and_plain_values_only(reference: tuple[Path, float]) -> None:
    state = torch.load(reference[0] / "state" / "last.pt", weights_only=True)
    assert {"format", "progress", "model", "optimizer", "average", "scaler"} == state.keys()
    assert state["progress"]["epoch"] == 3
    assert state["progress"]["step"] == 9


class TestResume:
    """What resuming may and may not do; runs in this process."""

    @pytest.fixture
    def run(self, data: Path, reference: tuple[Path, float], tmp_path: Path) -> Path:
        import shutil

        return Path(shutil.copytree(reference[0], tmp_path / "run"))

    def test_a_finished_run_only_writes_its_report_again(self, data: Path, run: Path, reference: tuple[Path, float]) -> None:
        (run / "report.html").unlink()
        train(make_config(data), run, resume=True, quiet=True)
        assert_same(run, reference[0])

    def test_more_epochs(self, data: Path, run: Path) -> None:
        before = history(run)
        train(make_config(data, epochs=5), run, resume=True, quiet=True)
        after = history(run)
        assert after[:3] == before
        assert [row["epoch"] for row in after] == ["1", "2", "3", "4", "5"]
        assert [row["step"] for row in after] == ["3", "6", "9", "12", "15"]
        assert load_config(run / "config.yaml").epochs == 5
        assert float(after[3]["lr"]) > float(after[2]["lr"])  # the rate of the longer schedule
        torch.load(run / "state" / "last.pt", weights_only=True)

    def test_fewer_epochs_than_are_done(self, data: Path, run: Path) -> None:
        with pytest.raises(ConfigError, match="epochs is 2, but 3 are done"):
            train(make_config(data, epochs=2), run, resume=True, quiet=True)

    def test_other_changes_are_named(self, data: Path, run: Path) -> None:
        changed = make_config(data, batch=4, optimizer={"ema": 0.9, "accumulate": 2, "lr": 0.5})
        with pytest.raises(ConfigError, match="cannot change") as caught:
            train(changed, run, resume=True, quiet=True)
        message = str(caught.value)
        assert "batch from 2 to 4" in message
        assert "optimizer.lr from 0.001 to 0.5" in message
        assert "optimizer.clip_norm from 1.0 to None" in message
        assert "optimizer.ema" not in message
        assert "\n" not in message

    def test_the_configs_own_copy_resumes(self, run: Path, reference: tuple[Path, float]) -> None:
        train(load_config(run / "config.yaml", {"epochs": 3, "workers": 0}), run, resume=True, quiet=True)
        assert_same(run, reference[0])

    def test_a_new_run_does_not_take_the_folder(self, data: Path, run: Path) -> None:
        with pytest.raises(ConfigError, match=r"run: exists; choose another --out, or go on with it by --resume"):
            train(make_config(data), run, quiet=True)

    def test_a_folder_that_is_no_run(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"is not a run folder \(no config.yaml\)"):
            train(make_config(data), tmp_path, resume=True, quiet=True)

    @pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 half a zip"])
    def test_a_damaged_state(self, data: Path, run: Path, content: bytes) -> None:
        (run / "state" / "last.pt").write_bytes(content)
        with pytest.raises(DataError, match=r"last.pt: is damaged") as caught:
            train(make_config(data), run, resume=True, quiet=True)
        assert "\n" not in str(caught.value)

    def test_a_truncated_state(self, data: Path, run: Path) -> None:
        state = run / "state" / "last.pt"
        state.write_bytes(state.read_bytes()[:-2000])
        with pytest.raises(DataError, match=r"last.pt: is damaged"):
            train(make_config(data), run, resume=True, quiet=True)

    def test_a_state_that_would_run_code_is_refused(self, data: Path, run: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(run / "evil"),)

        torch.save({"format": 1, "progress": Evil()}, run / "state" / "last.pt")
        with pytest.raises(DataError, match=r"last\.pt"):
            train(make_config(data), run, resume=True, quiet=True)
        assert not (run / "evil").exists()

    def test_other_data(self, reference: tuple[Path, float], run: Path, tmp_path: Path) -> None:
        """The same path, but a picture more: the epochs would be others."""
        from dataclasses import replace

        from delineate.data import open_dataset

        config = load_config(run / "config.yaml")
        dataset = open_dataset(config.data.path)
        fewer = replace(dataset, splits=dataset.splits | {"train": dataset.splits["train"][:-1]})
        with pytest.raises(DataError, match="other pictures or classes than when the run"):
            train(config, run, resume=True, quiet=True, dataset=fewer)

    def test_the_state_of_another_network(self, data: Path, run: Path) -> None:
        state = torch.load(run / "state" / "last.pt", weights_only=True)
        state["model"].pop(next(iter(state["model"])))
        torch.save(state, run / "state" / "last.pt")
        with pytest.raises(DataError, match="does not fit the run"):
            train(make_config(data), run, resume=True, quiet=True)
