"""Reading a run folder for its report: everything may be missing or unfinished, and what is missing is said."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from delineate.errors import DataError


@dataclass(slots=True)
class RunFiles:
    """What a run folder says, as plain values."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)  # column of results.csv -> a number an epoch, NaN where empty
    evaluation: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # sentences for the reader

    @property
    def epochs(self) -> int:
        """Number of epochs that were finished."""
        return max((len(column) for column in self.history.values()), default=0)

    @property
    def finds_objects(self) -> bool:
        """Whether it is the run of a detector, by its numbers."""
        return "val/box_AP" in self.history or "bbox/AP" in (self.evaluation.get("summary") or {})

    def column(self, name: str) -> list[float]:
        """A column of results.csv without rows that are empty or not finite."""
        return [value for value in self.history.get(name, []) if math.isfinite(value)]


def read_run(folder: str | Path) -> RunFiles:
    """Read what there is of config.yaml, plan.json, env.json, results.csv and evaluation.json.

    A missing or damaged file becomes a sentence in `missing`. Raises `DataError` where `folder` is no folder or holds none of
    these.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give the run folder that `delineate train` made")
    run = RunFiles(folder)
    run.config = _read(run, "config.yaml", yaml.safe_load, "the settings are not known")
    run.plan = _read(run, "plan.json", json.loads, None)
    run.environment = _read(run, "env.json", json.loads, "machine and versions are not known")
    run.history = _read(run, "results.csv", parse_history, "there are no curves: no epoch was finished")
    run.evaluation = _read(run, "evaluation.json", json.loads, "the network was not measured against truth")
    if not (run.config or run.history or run.evaluation):
        raise DataError(
            f"{folder}: holds no config.yaml, results.csv or evaluation.json; give the run folder that `delineate train` made"
        )
    wanted = run.config.get("epochs")
    if isinstance(wanted, int) and 0 < run.epochs < wanted:
        run.missing.append(
            f"The run ended after {run.epochs} of {wanted} epochs: it was stopped, or stopped itself (patience)."
        )
    if run.history and not any(run.column(name) for name in run.history if name.startswith("val/")):
        run.missing.append("There are no validation numbers in results.csv: the curves show training only.")
    return run


def parse_history(text: str) -> dict[str, list[float]]:
    """Columns of results.csv; what is no number becomes NaN, and a last line that was cut off is filled up with NaN.

    >>> parse_history("epoch,val/loss\\n1,0.5\\n2,")
    {'epoch': [1.0, 2.0], 'val/loss': [0.5, nan]}
    """
    rows = list(csv.DictReader(text.splitlines()))
    names = [name for name in (rows[0] if rows else {}) if isinstance(name, str)]
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _read(run: RunFiles, name: str, parse: Any, consequence: str | None) -> dict[str, Any]:
    """The parsed file, or {} and, where it matters, a sentence about its absence."""
    try:
        content = parse((run.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if consequence is not None:
            run.missing.append(f"{name} is missing: {consequence}.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.missing.append(f"{name} cannot be read ({str(error).splitlines()[0]}).")
        return {}
    if not content and consequence is not None:
        run.missing.append(f"{name} is empty: {consequence}.")
    return content if isinstance(content, dict) else {}
