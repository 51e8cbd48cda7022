"""The folder of a run: what lies where, what may be resumed, and the description of the machine."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import delineate
from delineate.config import TrainConfig, dump_config, load_config
from delineate.errors import ConfigError
from delineate.files import make_folder, write_json, write_text
from delineate.ops import native

MAY_CHANGE = ("epochs", "patience", "workers", "tensorboard")
"""Keys that resuming may change: they say when the run ends or how it is served, not what is computed."""

_TEMPORARY = re.compile(r"\.[\w.]+-\w{8}(\.\w+)?")  # as `delineate.files.atomic_path` names them
_BEFORE = ("epoch", "step", "lr", "train/loss")
_PIXELS = ("val/loss", "val/mean_iou", "val/mean_dice", "val/pixel_accuracy")
_OBJECTS = re.compile(r"val/((keypoint|mask|box)_AP(50|75)?|[psr]q(_things|_stuff)?)")
_AFTER = ("images_per_second", "memory_mb", "seconds")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places in a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def state(self) -> Path:
        """What the run goes on from."""
        return self.path / "state" / "last.pt"

    @property
    def best(self) -> Path:
        """The weights of the best validation."""
        return self.path / "weights" / "best.safetensors"

    @property
    def last(self) -> Path:
        """The weights after the last epoch."""
        return self.path / "weights" / "last.safetensors"

    def check(self, config: TrainConfig, *, resume: bool) -> None:
        """Raise `ConfigError` where the run cannot be: a new one where something lies, a resumed one that would be another."""
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ConfigError(f"{self.path}: exists; choose another --out, or go on with it by --resume {self.path}")
            return
        if not self.config.is_file():
            raise ConfigError(f"{self.path}: is not a run folder (no config.yaml); give the folder that `train` made")
        former, wanted = (_flat(c.model_dump(mode="json")) for c in (absolute(load_config(self.config)), absolute(config)))
        keys = [key for key in former | wanted if former.get(key) != wanted.get(key) and key not in MAY_CHANGE]
        if keys:
            changes = ", ".join(f"{key} from {former.get(key)!r} to {wanted.get(key)!r}" for key in keys)
            raise ConfigError(
                f"{self.path}: resuming cannot change {changes}; only {', '.join(MAY_CHANGE)} may, so start a new run"
            )

    def begin(self, config: TrainConfig, plan: dict[str, Any] | None) -> None:
        """Make the folder, if it is not there, and write config.yaml, env.json and plan.json."""
        make_folder(self.path)
        write_text(self.config, dump_config(absolute(config)))
        write_json(self.path / "env.json", describe_machine(config))
        if plan is not None:
            write_json(self.path / "plan.json", plan)

    def clean(self) -> None:
        """Remove the half-written files of a run that was killed."""
        for leftover in self.path.rglob(".*-*"):
            if _TEMPORARY.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove a folder that `begin` made, in which nothing was trained."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_history(self, log: Sequence[dict[str, Any]]) -> None:
        """Write log.jsonl, an event a line, and results.csv, an epoch a line, anew: both say what the state says."""
        write_text(self.path / "log.jsonl", "".join(json.dumps(_plain(event)) + "\n" for event in log))
        write_text(self.path / "results.csv", results_csv(log))


def absolute(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute paths, so that it means the same from everywhere."""
    data = config.data.model_copy(update={"path": config.data.path.resolve()})
    weights = config.model.weights
    model = config.model.model_copy(update={"weights": None if weights is None else weights.resolve()})
    return config.model_copy(update={"data": data, "model": model})


def results_csv(log: Sequence[dict[str, Any]]) -> str:
    """Return the text of results.csv; a number that is missing or not finite is an empty cell.

    >>> print(results_csv([{"event": "epoch", "epoch": 1, "train/dice": 0.5}]).split(",val")[0])
    epoch,step,lr,train/loss,train/dice
    """
    rows = [event for event in log if event["event"] == "epoch"]
    terms = dict.fromkeys(key for row in rows for key in row if key.startswith("train/") and key not in _BEFORE)
    text = io.StringIO()
    measured = tuple(dict.fromkeys(key for row in rows for key in row if _OBJECTS.fullmatch(key))) or _PIXELS
    writer = csv.DictWriter(text, (*_BEFORE, *terms, *measured, *_AFTER), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def describe_machine(config: TrainConfig) -> dict[str, Any]:
    """Return versions, processor, device and threads: what a reader needs to judge the numbers of a run."""
    packages = ("torch", "torchvision", "lightning-fabric", "timm", "numpy")
    return {
        "delineate": delineate.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native_kernels": native.available,
        "device": config.device,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": " ".join(sys.argv),
    }


def _commit() -> str | None:
    """The commit of delineate's own checkout, where it runs from one."""
    root = Path(delineate.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    dotted = {f"{prefix}.{key}" if prefix else key: value for key, value in content.items()}
    return {key: value for name, part in dotted.items() for key, value in _flat(part, name).items()}


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    """The event without NaN and infinity, which JSON does not have."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in event.items()}
