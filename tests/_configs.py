"""What the configs of small trainings in tests have in common."""

from __future__ import annotations

from typing import Any

QUICK: dict[str, Any] = {
    "batch": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "tensorboard": False,
}
