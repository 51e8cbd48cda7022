"""U-Net, DeepLabV3 and DeepLabV3+ of segmentation_models_pytorch on ResNet and ResNeXt: the names of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from delineate.weights.conventions import Conventions
from delineate.weights.encoders import count_input_channels, recognise_resnet
from delineate.weights.importer import Imported, Importer, Rule, State, ambiguous, rename

HEADS = {
    "decoder.blocks.0.conv1.0.weight": "unet",
    "decoder.aspp.convs.0.0.weight": "deeplabv3",
    "decoder.aspp.0.convs.0.0.weight": "deeplabv3plus",
}
CLASSIFIER = r"segmentation_head\.0\.(.+)"
DEEPLAB_RULES: list[Rule] = [
    (r"decoder\.conv\.(.+)", r"decoder.1.0.\1"),
    (r"decoder\.bn\.(.+)", r"decoder.1.1.\1"),
    (CLASSIFIER, r"classifier.\1"),
]
PLUS_RULES: list[Rule] = [
    (r"decoder\.aspp\.1\.([01])\.weight", r"decoder.context.1.\1.weight"),
    (r"decoder\.aspp\.2\.(.+)", r"decoder.context.1.2.\1"),
    (r"decoder\.block1\.(.+)", r"decoder.reduce.\1"),
    (r"decoder\.block2\.0\.([01])\.weight", r"decoder.merge.0.\1.weight"),
    (r"decoder\.block2\.1\.(.+)", r"decoder.merge.0.2.\1"),
    (CLASSIFIER, r"classifier.\1"),
]
UNET_RULES: list[Rule] = [
    (r"decoder\.blocks\.(\d+)\.conv1\.1\.(.+)", r"decoder.blocks.\1.norm.\2"),
    (r"decoder\.blocks\.(\d+)\.conv2\.0\.(.+)", r"decoder.blocks.\1.conv.conv.\2"),
    (r"decoder\.blocks\.(\d+)\.conv2\.1\.(.+)", r"decoder.blocks.\1.conv.norm.\2"),
    (CLASSIFIER, r"head.\1"),
]


def recognise(state: State) -> Sequence[str]:
    """The architecture with its encoder, such as "unet_resnet34"."""
    encoder = recognise_resnet(state, "encoder.")
    return [f"{head}_{encoder}" for mark, head in HEADS.items() if encoder and mark in state]


def convert(
    state: State,
    arch: str,
    num_classes: int | None,
    *,
    output_stride: int | None = None,
    rates: Sequence[int] | None = None,
) -> Imported:
    """The same network of our zoo; DeepLab's output stride and rates leave no trace in the tensors and must be given."""
    head, encoder = arch.split("_", 1)
    count = len(state["segmentation_head.0.bias"])
    channels = count_input_channels(state, "encoder.")
    options: dict[str, Any] = {"encoder": encoder, "in_channels": channels}
    if head == "unet":
        model, renamed = "unet", rename_unet(state)
        options["decoder_channels"] = unet_channels(state)
    else:
        if output_stride is None:
            raise ambiguous("output_stride", "the encoder may be dilated", "8", "16")
        if rates is None:
            raise ambiguous("rates", "the tensors do not show the dilations", "[12, 24, 36]", "[6, 12, 18]")
        model, (renamed, more) = f"{head}_resnet50", rename_deeplab(state, plus=head == "deeplabv3plus")
        options |= more | {"output_stride": output_stride, "rates": list(rates), "align_corners": True, "dilation": "smp"}
    color = "gray" if channels == 1 else "rgb"
    conventions = Conventions(color=color) if channels == 3 else Conventions(color=color, mean=(0.0,), std=(1.0,))
    return Imported(model, count, renamed, tuple(f"class {index}" for index in range(count)), conventions, options)


def rename_deeplab(state: State, *, plus: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under the names of our DeepLab, and the options that their names and shapes show."""
    prefix, target = ("decoder.aspp.0", "decoder.context.0") if plus else ("decoder.aspp", "decoder.0")
    separable = f"{prefix}.convs.1.0.0.weight" in state
    options: dict[str, Any] = {"channels": len(state[f"{prefix}.project.0.weight"]), "auxiliary_weight": 0.0}
    if plus:
        options |= {"variant": "smp", "separable": separable, "fine_channels": len(state["decoder.block1.0.weight"])}
    context = _context_rules(prefix.replace(".", r"\."), target, separable)
    return rename(state, [*context, *(PLUS_RULES if plus else DEEPLAB_RULES)]), options


def _context_rules(prefix: str, target: str, separable: bool) -> list[Rule]:
    rules: list[Rule] = [
        (rf"{prefix}\.convs\.4\.1\.(.+)", rf"{target}.branches.4.conv.\1"),
        (rf"{prefix}\.convs\.4\.2\.(.+)", rf"{target}.branches.4.norm.\1"),
        (rf"{prefix}\.project\.(.+)", rf"{target}.project.\1"),
    ]
    if separable:
        rules += [
            (rf"{prefix}\.convs\.([123])\.0\.([01])\.weight", rf"{target}.branches.\1.\2.weight"),
            (rf"{prefix}\.convs\.([123])\.1\.(.+)", rf"{target}.branches.\1.2.\2"),
        ]
    return [*rules, (rf"{prefix}\.convs\.(.+)", rf"{target}.branches.\1")]


def rename_unet(state: State) -> dict[str, Tensor]:
    """Tensors under the names of our U-Net, gradients too.

    Where smp convolves the concatenation of the enlarged map and the skip connection, ours convolves each and adds.
    """
    first = r"decoder.blocks.{}.conv1.0.weight"
    renamed = rename({name: x for name, x in state.items() if not name.endswith("conv1.0.weight")}, UNET_RULES)
    for index, enlarged in enumerate([_deepest_channels(state), *unet_channels(state)[:-1]]):
        weight = state[first.format(index)]
        merge = f"decoder.blocks.{index}.merge"
        renamed[f"{merge}.up.weight"] = weight[:, :enlarged].transpose(0, 1)
        if enlarged < weight.shape[1]:
            renamed[f"{merge}.skip.weight"] = weight[:, enlarged:]
    return renamed


def unet_channels(state: State) -> list[int]:
    """Channels of each step up of smp's U-Net, coarsest first."""
    count = len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})
    return [len(state[f"decoder.blocks.{index}.conv2.0.weight"]) for index in range(count)]


def _deepest_channels(state: State) -> int:
    return len(state["encoder.layer4.0.downsample.1.weight"])


IMPORTER = Importer("smp", recognise, convert)
