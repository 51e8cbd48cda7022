"""Which ResNet, ResNeSt or ResNet-D a state dict holds, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from delineate.errors import ConfigError
from delineate.models.backbones.named import OWN_ENCODERS
from delineate.models.zoo import list_models
from delineate.weights.conventions import Conventions
from delineate.weights.importer import Imported, State

RESNETS: dict[tuple[str, tuple[int, ...], int], str] = {
    ("basic", (2, 2, 2, 2), 64): "resnet18",
    ("basic", (3, 4, 6, 3), 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 128): "wide_resnet50_2",
    ("bottleneck", (3, 4, 6, 3), 4): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 8): "resnext101_32x8d",
}  # by block, numbers of blocks, and channels that a value of the first 3x3 convolution comes from
RESNET_DS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18d",
    ("basic", (3, 4, 6, 3)): "resnet34d",
    ("bottleneck", (2, 2, 2, 2)): "resnet26d",
    ("bottleneck", (3, 4, 6, 3)): "resnet50d",
    ("bottleneck", (3, 4, 23, 3)): "resnet101d",
    ("bottleneck", (3, 8, 36, 3)): "resnet152d",
    ("bottleneck", (3, 24, 36, 3)): "resnet200d",
}  # of timm, by block and numbers of blocks
RESNESTS: dict[tuple[int, ...], str] = {
    (1, 1, 1, 1): "resnest14",
    (2, 2, 2, 2): "resnest26",
    (3, 4, 6, 3): "resnest50",
    (3, 4, 23, 3): "resnest101",
    (3, 24, 36, 3): "resnest200",
    (3, 30, 48, 8): "resnest269",
}
HEADS = {
    "deeplabv3": "deeplabv3_resnet50",
    "deeplabv3plus": "deeplabv3plus_resnet50",
    "fcn": "fcn_resnet50",
    "mask_rcnn_fpn": "mask_rcnn_resnet50_fpn",
    "semantic_fpn": "semantic_fpn_resnet50",
    "unet": "unet",
}  # each with a network of the zoo that takes any encoder
DEEP_STEM = "conv1.0.weight"


def recognise_encoder(state: State, prefix: str) -> str | None:
    """The name of the encoder, ours or timm's, that has the tensors which begin with `prefix`; None: of none that is known."""
    return recognise_resnet(state, prefix) or recognise_resnest(state, prefix) or recognise_resnet_d(state, prefix)


def recognise_resnet(state: State, prefix: str) -> str | None:
    """The name of our encoder that has the tensors which begin with `prefix`; None: of no ResNet as torchvision has it."""
    second = state.get(f"{prefix}layer1.0.conv2.weight")
    if second is None or f"{prefix}conv1.weight" not in state:
        return None
    return RESNETS.get((block_kind(state, prefix), count_blocks(state, prefix), second.shape[1]))


def recognise_resnest(state: State, prefix: str) -> str | None:
    """The same for a ResNeSt of radix 2 and one cardinal group, as its authors and timm name its tensors."""
    attention = state.get(f"{prefix}layer1.0.conv2.fc2.weight")
    if attention is None or attention.shape[0] != 128 or attention.shape[1] != 32 or f"{prefix}{DEEP_STEM}" not in state:
        return None
    return RESNESTS.get(count_blocks(state, prefix))


def recognise_resnet_d(state: State, prefix: str) -> str | None:
    """timm's name of a ResNet-D (He et al. 2019): three 3x3 convolutions in its stem, pooling in its shortcuts."""
    stem = [state.get(f"{prefix}conv1.{index}.weight") for index in (0, 3, 6)]
    shortcut, second = state.get(f"{prefix}layer2.0.downsample.1.weight"), state.get(f"{prefix}layer1.0.conv2.weight")
    if [x is not None and len(x) for x in stem] != [32, 32, 64] or shortcut is None or second is None:
        return None
    if shortcut.ndim != 4 or second.shape[1] != 64:
        return None
    return RESNET_DS.get((block_kind(state, prefix), count_blocks(state, prefix)))


def block_kind(state: State, prefix: str) -> str:
    return "bottleneck" if f"{prefix}layer1.0.conv3.weight" in state else "basic"


def room(encoder: str) -> str:
    """Where the tensors of an encoder stand in our networks: timm's are a module within `encoder`."""
    return "encoder" if encoder in OWN_ENCODERS else "encoder.net"


def count_blocks(state: State, prefix: str) -> tuple[int, ...]:
    """Number of blocks of the stages layer1 to layer4."""
    blocks: list[set[str]] = [set() for _ in range(4)]
    for name in state:
        match = re.fullmatch(rf"{re.escape(prefix)}layer([1-4])\.(\d+)\..+", name)
        if match:
            blocks[int(match[1]) - 1].add(match[2])
    return tuple(map(len, blocks))


def count_input_channels(state: State, prefix: str) -> int:
    """Channels of the pictures that the encoder takes, whose stem is a ResNet's or its first convolution."""
    stems = (f"{prefix}{DEEP_STEM}", f"{prefix}conv1.weight", *(name for name in state if name.startswith(prefix)))
    return next(state[name].shape[1] for name in stems if name in state and state[name].ndim == 4)


def networks_on(encoder: str) -> list[str]:
    """Architectures that can start from the weights of a classifier."""
    return [f"{head}_{encoder}" for head in HEADS]


def convert_classifier(state: State, encoder: str, arch: str, num_classes: int | None, options: Mapping[str, Any]) -> Imported:
    """The network `arch` of `networks_on` whose encoder has the weights of a classifier; all else is random.

    The classifier's last layer, `fc`, is left out. Raises `ConfigError` without `num_classes`.
    """
    if num_classes is None:
        raise ConfigError(
            "num_classes is not known: the file is a classifier of pictures; say how many classes the network has"
        )
    head = HEADS[arch.removesuffix(f"_{encoder}")]
    model = arch if arch in list_models() else head
    return Imported(
        model,
        num_classes,
        {f"{room(encoder)}.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")},
        tuple(f"class {index}" for index in range(num_classes)),
        Conventions(),
        {**options, "encoder": encoder, "in_channels": count_input_channels(state, "")},
        fresh=("auxiliary", "box_head", "classifier", "decoder", "head", "mask_head", "neck", "rpn"),
    )
