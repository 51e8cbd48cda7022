"""delineate: train, run and measure image-segmentation models.

The public names are imported when first used, so that `import delineate` costs nothing and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from delineate import data, losses, metrics, models, ops, weights
    from delineate.models.zoo import create_model, list_models
    from delineate.predict import Predictor, Results
    from delineate.weights import load_model, save_model

_NAMES = {
    "create_model": "delineate.models.zoo",
    "list_models": "delineate.models.zoo",
    "load_model": "delineate.weights",
    "save_model": "delineate.weights",
    "Predictor": "delineate.predict",
    "Results": "delineate.predict",
}
_MODULES = ("data", "losses", "metrics", "models", "ops", "weights")

__all__ = [
    "Predictor",
    "Results",
    "create_model",
    "data",
    "list_models",
    "load_model",
    "losses",
    "metrics",
    "models",
    "ops",
    "save_model",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"delineate.{name}")
    raise AttributeError(f"module 'delineate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
