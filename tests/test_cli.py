"""The command line: help without torch, exit codes, one-line errors, and flag over file over default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from delineate.cli import run


@pytest.mark.parametrize(
    "statement", ["import delineate", "import delineate.cli", "from delineate.cli import run; run(['--help'])"]
)
def test_nothing_heavy_is_imported_before_a_verb_runs(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'matplotlib', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("verb", ["demo", "data", "plan", "train", "predict", "eval", "score", "models"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"delineate {verb}" in capsys.readouterr().out


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("delineate: ")
    assert error.count("\n") == 1, error
    return error


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["trian"]) == 2
    assert "train" in one_line(capsys)
    assert run(["train", "--epochs", "many"]) == 2
    assert "epochs" in one_line(capsys)
    assert run(["train"]) == 2
    assert "--data" in one_line(capsys)
    assert run(["train", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in one_line(capsys)


def test_a_misspelt_key_is_named_with_a_suggestion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: pictures\noptimizer: {learning_rate: 0.1, warmup_step: 3}\n")
    assert run(["train", str(config)]) == 2
    error = one_line(capsys)
    assert str(config) in error
    assert "did you mean 'warmup_steps'?" in error


def test_missing_data_exits_with_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for verb in (["train", "--data"], ["data", "stats"], ["plan"]):
        assert run([*verb, str(tmp_path / "nothing")]) == 3
        assert str(tmp_path / "nothing") in one_line(capsys)


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer is visible in what training receives."""
    import delineate.train

    seen = {}

    def record(config, out, **_):
        seen["config"], seen["out"] = config, out
        raise KeyboardInterrupt

    monkeypatch.setattr(delineate.train, "train", record)
    config = tmp_path / "config.yaml"
    config.write_text("data: pictures\nepochs: 7\nbatch: 3\noptimizer: {lr: 0.5, momentum: 0.8}\n")
    assert run(["train", str(config), "--epochs", "9", "--set", "optimizer.lr=0.25", "--set", "augment.patch=[64, 96]"]) == 130
    c = seen["config"]
    assert (c.epochs, c.optimizer.lr, c.augment.patch) == (9, 0.25, (64, 96))  # flags
    assert (c.batch, c.optimizer.momentum) == (3, 0.8)  # file
    assert c.seed == 0  # default
    assert c.data.path == tmp_path / "pictures"  # relative to the file that names it
    assert seen["out"] == Path("runs/pictures-unet")


def test_what_wins_over_a_plan_is_said_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import delineate.train
    from delineate.config import build_config
    from delineate.data.synthetic import make_blobs_dataset
    from delineate.train import planner
    from delineate.train.plan import Plan

    seen = []
    monkeypatch.setattr(planner, "plan", lambda *_, **__: Plan(build_config({"data": {"path": "x"}, "epochs": 40}), {}))
    monkeypatch.setattr(delineate.train, "train", lambda config, *_, **__: seen.append(config.epochs) or sys.exit(9))
    data = str(make_blobs_dataset(tmp_path, 1, 8))
    for flags in (["--epochs", "2", "--set", "batch=1"], []):
        with pytest.raises(SystemExit):
            run(["train", "--data", data, *flags])
    assert seen == [2, 40]
    assert capsys.readouterr().out.count("\ninstead, as asked for: epochs 2, batch 1\n") == 1
    monkeypatch.setattr(planner, "plan", lambda *_, **__: pytest.fail("a wrong flag is told before the plan is made"))
    assert run(["train", "--data", data, "--set", "batch=none"]) == 2


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "delineate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("delineate").__version__
