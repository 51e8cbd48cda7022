"""How weights follow gradients: the optimiser of a config, and its learning rate at each step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from delineate.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Return SGD with momentum or AdamW (Loshchilov and Hutter 2019) over the parameters of `model` that are trained.

    Weights decay; biases and the scales and shifts of normalisation, all that has fewer than two dimensions, do not.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Return the learning rate of optimiser step `step` (0, 1, ...) of `total`.

    It rises in a line from `warmup_factor` over `warmup_steps` steps and then follows the schedule, with p the share of the
    other steps done: constant 1, poly (1 - p)^power, cosine (1 + cos(pi p)) / 2, times `lr`; multi_step is `lr` times `gamma`
    for each of the `milestones`, shares of the whole run, that is over. It depends on the numbers alone, so a resumed run
    has the rate it would have had; where the epochs are extended, it is that of the longer schedule from there on.

    >>> config = OptimizerConfig(lr=1.0, schedule="poly", power=1.0, warmup_steps=2)
    >>> [learning_rate(config, step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = min(config.warmup_steps, total)
    if step < warmup:
        return config.warmup_factor * config.lr + (1 - config.warmup_factor) * (config.lr * (step + 1) / warmup)
    if config.schedule == "multi_step":
        return config.lr * config.gamma ** sum(step >= round(share * total) for share in config.milestones)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    factors = {"constant": 1.0, "poly": (1 - done) ** config.power, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return config.lr * factors[config.schedule]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group of parameters the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
