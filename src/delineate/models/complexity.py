"""How large and how costly a network is: parameters and multiply-adds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from delineate.models.semantic import SemanticModel
from delineate.models.zoo import create_model, list_models


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A line of the table that `delineate models` prints."""

    name: str
    parameters: int
    flops: int  # of one picture of `size`
    size: tuple[int, int, int]  # channels, height, width


def count_parameters(model: nn.Module) -> int:
    """Number of values that training changes.

    >>> count_parameters(nn.Conv2d(3, 8, 3))
    224
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Floating-point operations of the forward pass on one picture of `size` (C, H, W), in evaluation mode.

    A multiply-add counts as two operations, as in torch.utils.flop_counter (many papers count it as one: halve the number).
    Convolutions and matrix products are counted, biases, normalisations, activations and resizing are not. Nothing is
    computed: shapes go through the network on the meta device. A detector is counted with every proposal and detection that it
    has room for.

    >>> count_flops(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10)) == 2 * 10 * 10 * 8 * 3 * 9
    True
    """
    shadow = copy.deepcopy(model).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops()


def model_table(names: Sequence[str] | None = None) -> list[ModelRow]:
    """A row for each of `names` in the zoo, None: for all, with default options and 3 classes, on about 512 x 512 pixels."""
    rows = []
    for name in list_models() if names is None else names:
        with torch.device("meta"):  # nothing is drawn nor computed
            model = create_model(name, 3)
        channels = model.architecture["options"]["in_channels"]
        side = 572 if isinstance(model, SemanticModel) and model.margin else 512
        size = (channels, side, side)
        rows.append(ModelRow(name, count_parameters(model), count_flops(model, size), size))
    return rows


def print_model_table(rows: list[ModelRow]) -> None:
    """Print the rows of `model_table`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "input", title="Networks (default options, 3 classes)", title_justify="left")
    table.add_column("million parameters", justify="right")
    table.add_column("GFLOPs", justify="right")
    for row in rows:
        size = " x ".join(map(str, row.size))
        table.add_row(row.name, size, f"{row.parameters / 1e6:.2f}", f"{row.flops / 1e9:.1f}")
    Console().print(table)
