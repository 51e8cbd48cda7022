"""Which ResNet or ResNeSt a state dict holds, by the names and shapes of its tensors."""

from __future__ import annotations

import re

from delineate.weights.importer import State

RESNETS: dict[tuple[str, tuple[int, ...], int], str] = {
    ("basic", (2, 2, 2, 2), 64): "resnet18",
    ("basic", (3, 4, 6, 3), 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 4): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 8): "resnext101_32x8d",
}  # by block, numbers of blocks, and channels that a value of the first 3x3 convolution comes from
RESNESTS: dict[tuple[int, ...], str] = {
    (1, 1, 1, 1): "resnest14",
    (2, 2, 2, 2): "resnest26",
    (3, 4, 6, 3): "resnest50",
    (3, 4, 23, 3): "resnest101",
    (3, 24, 36, 3): "resnest200",
    (3, 30, 48, 8): "resnest269",
}
DEEP_STEM = "conv1.0.weight"


def recognise_resnet(state: State, prefix: str) -> str | None:
    """The name of our encoder that has the tensors which begin with `prefix`; None: of no ResNet as torchvision has it."""
    second = state.get(f"{prefix}layer1.0.conv2.weight")
    if second is None or f"{prefix}conv1.weight" not in state:
        return None
    block = "bottleneck" if f"{prefix}layer1.0.conv3.weight" in state else "basic"
    return RESNETS.get((block, count_blocks(state, prefix), second.shape[1]))


def recognise_resnest(state: State, prefix: str) -> str | None:
    """The same for a ResNeSt of radix 2 and one cardinal group, as its authors and timm name its tensors."""
    attention = state.get(f"{prefix}layer1.0.conv2.fc2.weight")
    if attention is None or attention.shape[0] != 128 or attention.shape[1] != 32 or f"{prefix}{DEEP_STEM}" not in state:
        return None
    return RESNESTS.get(count_blocks(state, prefix))


def count_blocks(state: State, prefix: str) -> tuple[int, ...]:
    """Number of blocks of the stages layer1 to layer4."""
    blocks: list[set[str]] = [set() for _ in range(4)]
    for name in state:
        match = re.fullmatch(rf"{re.escape(prefix)}layer([1-4])\.(\d+)\..+", name)
        if match:
            blocks[int(match[1]) - 1].add(match[2])
    return tuple(map(len, blocks))


def count_input_channels(state: State, prefix: str) -> int:
    """Channels of the pictures that the encoder takes."""
    stem = state.get(f"{prefix}{DEEP_STEM}")
    return (state[f"{prefix}conv1.weight"] if stem is None else stem).shape[1]
