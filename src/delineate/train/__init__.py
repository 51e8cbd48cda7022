"""Training: `train` and what it returns."""

from delineate.train.loop import RunResult, train

__all__ = ["RunResult", "train"]
