"""U-Net, FPN, DeepLabV3 and DeepLabV3+ of segmentation_models_pytorch: the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from delineate.errors import ConfigError
from delineate.models.backbones.named import OWN_ENCODERS, named_encoder
from delineate.weights.conventions import Conventions
from delineate.weights.encoders import count_input_channels, recognise_encoder, room
from delineate.weights.importer import Imported, Importer, Rule, State, ambiguous, rename

DECODERS = {
    "decoder.aspp.0.convs.0.0.weight": "deeplabv3plus",
    "decoder.aspp.convs.0.0.weight": "deeplabv3",
    "decoder.blocks.0.block.0.0.weight": "linknet",
    "decoder.blocks.x_0_0.conv1.0.weight": "unetplusplus",
    "decoder.center.top_conv.weight": "manet",
    "decoder.feature_norms.0.weight": "upernet",
    "decoder.fpa.branch1.1.conv.weight": "pan",
    "decoder.mlp_stage.0.linear.weight": "segformer",
    "decoder.p5.weight": "fpn",
    "decoder.projection_blocks.0.project.0.weight": "dpt",
    "decoder.psp.blocks.0.pool.1.0.weight": "pspnet",
    "decoder.blocks.0.conv1.0.weight": "unet",  # last: MA-Net has these too
}  # by a tensor that the network has
READ = ("unet", "fpn", "deeplabv3", "deeplabv3plus")
REFUSED_PARTS = {
    "decoder.blocks.0.attention1.": "decoder_attention_type='scse'",
    "decoder.blocks.0.conv1.0.bias": "decoder_use_norm=False",
    "classification_head.": "aux_params, a classifier of whole pictures",
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
FPN_RULES: list[Rule] = [
    (r"decoder\.p5\.(.+)", r"decoder.0.lateral.3.0.\1"),
    (r"decoder\.p([234])\.skip_conv\.(.+)", lambda m: f"decoder.0.lateral.{int(m[1]) - 2}.0.{m[2]}"),
    (
        r"decoder\.seg_blocks\.([0-3])\.block\.(\d)\.block\.([01])\.(.+)",  # coarsest first; ours has four layers a step
        lambda m: f"decoder.1.levels.{3 - int(m[1])}.{4 * int(m[2]) + int(m[3])}.{m[4]}",
    ),
    (CLASSIFIER, r"classifier.\1"),
]
UNET_RULES: list[Rule] = [
    (r"decoder\.blocks\.(\d+)\.conv1\.1\.(.+)", r"decoder.blocks.\1.norm.\2"),
    (r"decoder\.blocks\.(\d+)\.conv2\.0\.(.+)", r"decoder.blocks.\1.conv.conv.\2"),
    (r"decoder\.blocks\.(\d+)\.conv2\.1\.(.+)", r"decoder.blocks.\1.conv.norm.\2"),
    (CLASSIFIER, r"head.\1"),
]


def recognise(state: State) -> Sequence[str]:
    """The architecture with its encoder, such as "unet_resnet34"; without it, if that is not known."""
    decoder = next((name for mark, name in DECODERS.items() if mark in state), None)
    if decoder is None or not any(name.startswith("encoder.") for name in state):
        return []
    encoder = recognise_encoder(state, encoder_prefix(state))
    return [f"{decoder}_{encoder}" if encoder else decoder]


def convert(
    state: State,
    arch: str,
    num_classes: int | None,
    *,
    encoder: str | None = None,
    output_stride: int | None = None,
    rates: Sequence[int] | None = None,
) -> Imported:
    """The same network of our zoo; DeepLab's output stride and rates leave no trace in the tensors and must be given."""
    head, _, recognised = arch.partition("_")
    if head not in READ:
        raise ConfigError(f"this is smp's {head}, which we do not have; of smp's networks {', '.join(READ)} are read")
    for part, reason in REFUSED_PARTS.items():
        if any(name.startswith(part) for name in state):
            raise ConfigError(f"this is smp's {head} with {reason}, which ours does not have")
    encoder = choose_encoder(state, head, recognised, encoder)
    prefix = encoder_prefix(state)
    renamed = rename(state, [(rf"{re.escape(prefix)}(.+)", rf"{room(encoder)}.\1")])
    count = len(renamed["segmentation_head.0.bias"])
    channels = count_input_channels(state, prefix)
    options: dict[str, Any] = {"encoder": encoder, "in_channels": channels}
    body = named_encoder(encoder, channels)
    if head != "unet":
        check_depth(state, head, body.channels[-1])
    if head == "unet":
        model, (renamed, more) = "unet", rename_unet(renamed, dict(zip(body.reductions, body.channels, strict=True)))
        options |= more
    elif head == "fpn":
        model, (renamed, more) = "semantic_fpn_resnet50", rename_fpn(renamed)
        options |= more
    else:
        if output_stride is None:
            raise ambiguous("output_stride", "the encoder may be dilated", "8", "16")
        if rates is None:
            raise ambiguous("rates", "the tensors do not show the dilations", "[12, 24, 36]", "[6, 12, 18]")
        model, (renamed, more) = f"{head}_resnet50", rename_deeplab(renamed, plus=head == "deeplabv3plus")
        options |= more | {"output_stride": output_stride, "rates": list(rates), "align_corners": True}
        options["dilation"] = dilation_of(encoder, prefix)
    color = "gray" if channels == 1 else "rgb"
    conventions = Conventions(color=color) if channels == 3 else Conventions(color=color, mean=(0.0,), std=(1.0,))
    return Imported(model, count, renamed, tuple(f"class {index}" for index in range(count)), conventions, options)


def encoder_prefix(state: State) -> str:
    """smp has encoders of its own, and, within them, timm's (those that it names "tu-NAME")."""
    return "encoder.model." if any(name.startswith("encoder.model.") for name in state) else "encoder."


def choose_encoder(state: State, head: str, recognised: str, said: str | None) -> str:
    """The encoder that the tensors show, or that of timm which the user says it is."""
    if recognised:
        if said not in (None, recognised):
            raise ConfigError(f"encoder is {said}, but the tensors are those of {recognised}; leave it away")
        return recognised
    if encoder_prefix(state) == "encoder.":
        first = next(name for name in state if name.startswith("encoder."))
        raise ConfigError(
            f"this is smp's {head} on an encoder that is not read ({first} ...); "
            "read are ResNet, ResNeXt 50_32x4d and 101_32x8d, and timm's (tu-NAME in smp)"
        )
    if said is None:
        raise ambiguous("encoder", "it is one of timm's, and the tensors do not say which", "NAME, where smp has tu-NAME")
    name = said.removeprefix("tu-")
    if name in OWN_ENCODERS:
        raise ConfigError(
            f"the tensors are not those of our {name} (smp takes other maps of timm's HRNet); this {head} is not read"
        )
    return name


def dilation_of(encoder: str, prefix: str) -> str:
    """How a dilated encoder of smp's own, or of timm within smp, is dilated, in the words of our DeepLab."""
    if encoder.startswith("resnest"):
        return "timm"
    return "smp" if prefix == "encoder." else "published"


def rename_fpn(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under the names of our semantic FPN, and its options."""
    channels = len(state["decoder.seg_blocks.0.block.0.block.0.weight"])
    if state["segmentation_head.0.weight"].shape[1] != channels:
        raise ConfigError("this is smp's fpn with decoder_merge_policy='cat'; only the sum, 'add', is read")
    options = {
        "pyramid_channels": len(state["decoder.p5.weight"]),
        "channels": channels,
        "variant": "smp",
        "dropout": 0.2,
        "align_corners": True,
    }
    return rename(state, FPN_RULES), options


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


def check_depth(state: State, head: str, deepest: int) -> None:
    """Refuse a network that does not read the encoder's last map, of `deepest` channels."""
    first = next(mark for mark, name in DECODERS.items() if name == head)
    if state[first].shape[1] != deepest:
        seen = state[first].shape[1]
        raise ConfigError(
            f"this is smp's {head} with an encoder_depth below 5 (it reads {seen} channels, "
            f"the encoder's last map has {deepest}); of smp's networks only unet may have one"
        )


def rename_unet(state: State, channels: Mapping[int, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under the names of our U-Net, gradients too, and its options. The encoder's maps have `channels[reduction]`.

    Where smp convolves the concatenation of the enlarged map and the skip connection, ours convolves each and adds. Of a
    network with encoder_depth below 5 smp keeps the tensors of the stages that it does not run.
    """
    widths = [len(state[f"decoder.blocks.{index}.conv2.0.weight"]) for index in range(count_steps(state))]
    depth = len(widths)
    if 2**depth not in channels:
        raise ConfigError(f"this unet halves pictures {depth} times, its encoder has maps at {list(channels)}")
    first = "decoder.blocks.{}.conv1.0.weight"
    unused = tuple(f"encoder.layer{number}." for number in range(depth, 5))
    renamed = rename({name: x for name, x in state.items() if not name.startswith(unused)}, UNET_RULES)
    for index, enlarged in enumerate([channels[2**depth], *widths[:-1]]):
        weight = renamed.pop(first.format(index))
        merge = f"decoder.blocks.{index}.merge"
        renamed[f"{merge}.up.weight"] = weight[:, :enlarged].transpose(0, 1)
        if enlarged < weight.shape[1]:
            renamed[f"{merge}.skip.weight"] = weight[:, enlarged:]
    return renamed, {"decoder_channels": widths, "encoder_depth": depth}


def count_steps(state: State) -> int:
    """Steps up of smp's U-Net."""
    return len({name.split(".")[2] for name in state if name.startswith("decoder.blocks.")})


IMPORTER = Importer("smp", recognise, convert)
