"""A script without `if __name__ == "__main__":`, and a worker that is killed: one line each that says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from delineate.config import build_config
from delineate.data import make_loader, open_dataset
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import DelineateError
from delineate.weights import Conventions

UNGUARDED_SCRIPT = """
from delineate.config import build_config
from delineate.train import train

config = build_config({{
    "data": {{"path": {data!r}}},
    "model": {{"name": "unet", "options": {{"width": 4, "depth": 2}}}},
    "augment": {{"patch": [32, 32]}},
    "epochs": 1, "steps_per_epoch": 2, "batch": 2, "workers": 1, "device": "cpu", "devices": {devices},
}})
train(config, {out!r}, quiet=True)
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_unguarded_script_says_what_to_do(tmp_path: Path, devices: int) -> None:
    data, out, script = make_blobs_dataset(tmp_path / "data", 4, 64), tmp_path / "run", tmp_path / "script.py"
    script.write_text(UNGUARDED_SCRIPT.format(data=str(data), out=str(out), devices=devices))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("delineate.errors.ConfigError: ")
    assert '`if __name__ == "__main__":`' in last
    assert "bootstrapping" not in result.stderr  # Python's own long complaint, once a process
    assert not out.exists()


def test_killed_worker_is_no_riddle(tmp_path: Path) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path, 4, 64))
    config = build_config(
        {"data": {"path": str(tmp_path)}, "augment": {"patch": [32, 32]}, "steps_per_epoch": 100, "batch": 2, "workers": 1}
    )
    loader = make_loader(dataset, dataset.records, config, Conventions(), train=True)
    batches = iter(loader)
    next(batches)
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)  # pyright: ignore
    with pytest.raises(DelineateError, match=r"a loader process ended \(signal 9\).*set workers lower"):
        list(batches)
