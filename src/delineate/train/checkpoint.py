"""The state of a run: all that it needs to go on as if it had not been stopped, in one file of tensors and plain values."""

from __future__ import annotations

import math
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from delineate.errors import DataError
from delineate.files import atomic_path

FORMAT = 1  # changes when states can no longer be read by the version before


@dataclass(slots=True)
class Progress:
    """Where a run is. Randomness is no part of it: it depends on the seed and on these numbers only."""

    data: str = ""  # fingerprint of the data set that is trained on
    epoch: int = 0  # epochs that are finished, validation included
    batch: int = 0  # batches of the current epoch that are done
    step: int = 0  # optimiser steps, those that were skipped included
    sums: dict[str, float] = field(default_factory=dict)  # "loss" and its terms, summed over the steps of this epoch
    steps: int = 0  # optimiser steps of this epoch that went into `sums`
    skipped: int = 0  # steps of this epoch without a finite loss and gradient
    skipped_in_a_row: int = 0
    train_seconds: float = 0.0  # of this epoch, without validation and the start
    pictures: int = 0  # trained on in that time
    seconds: float = 0.0  # of the whole run
    best: float | None = None  # the monitored number of the best epoch
    best_epoch: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)  # what log.jsonl and results.csv say

    @property
    def speed(self) -> float:
        """Pictures a second of this epoch's training; NaN where it was too short to say."""
        return self.pictures / self.train_seconds if self.train_seconds else math.nan

    def begin_epoch(self) -> None:
        """Count the current epoch as finished, and start the next one with nothing done."""
        self.epoch += 1
        self.batch = self.steps = self.skipped = self.pictures = 0
        self.train_seconds, self.sums = 0.0, {}


def save_state(path: str | Path, progress: Progress, parts: dict[str, Any]) -> None:
    """Write `progress` and the `state_dict()` of each of `parts` to `path`, whole or not at all."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_path(path) as temporary:
        _save({"format": FORMAT, "progress": asdict(progress)} | state, temporary)


def load_state(path: str | Path, parts: dict[str, Any]) -> Progress:
    """Load what `save_state` wrote into `parts`, and return the progress; runs no code from the file.

    Raises `DataError` for a file that is damaged, of another version or of another run.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: is damaged ({reason}); start a new run, with --set model.weights=... from this one's last weights"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or parts.keys() - state.keys():
        raise DataError(f"{path}: is not the state of a run of this version of delineate; start a new run")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not fit the run ({str(error).splitlines()[0]}); start a new one") from error


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides why a write failed
            raise OSError(0, f"torch.save failed: {str(error).splitlines()[0]}") from error
