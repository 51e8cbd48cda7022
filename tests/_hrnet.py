"""Networks on HRNet, small enough to test, and weights that follow from their names."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

TINY = {"width": 4, "small": True}
TINY_OCR = {**TINY, "channels": 16, "keys": 8}


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that stands under `name`, a function of name and shape."""
    if not shape:
        return torch.zeros((), dtype=torch.long)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        drawn = draw.uniform(0.8, 1.2, shape)
    elif last == "running_mean":
        drawn = draw.normal(0, 0.1, shape)
    elif len(shape) > 1:
        drawn = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif last == "weight":
        drawn = draw.uniform(0.5, 1, shape)
    else:
        drawn = draw.normal(0, 0.05, shape)
    return torch.from_numpy(drawn.astype(np.float32))


def official_hmsa(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for a network of ours under the names that NVIDIA/semantic-segmentation gives its tensors.

    Written the other way round than the importer, from the list of names in the reference.
    """
    return {theirs: value(theirs, tuple(tensor.shape)) for tensor, theirs in ((t, hmsa_name(n)) for n, t in state.items())}


def hmsa_name(name: str) -> str:
    """The name that NVIDIA/semantic-segmentation gives a tensor of our `hmsa_hrnet_w48_ocr`."""
    room, _, rest = name.partition(".")
    if room == "head":
        index, _, last = rest.partition(".")
        return f"scale_attn.{ {'0': 'conv0', '1': 'bn0', '3': 'conv1', '4': 'bn1', '6': 'conv2'}[index] }.{last}"
    if rest.startswith("backbone."):
        return rest
    if rest.startswith("classifier."):
        return rest.replace("classifier", "ocr.cls_head")
    parts = rest.split(".")  # head, pixels | regions | merge | attention, (query ...,) index, last
    nested = {"0": "0", "1": "1.0", "3": "2", "4": "3.0"}[parts[-2]]
    blocks = {"query": "f_pixel", "key": "f_object", "value": "f_down", "up": "f_up"}
    place = {
        "pixels": "conv3x3_ocr",
        "regions": "aux_head",
        "merge": "ocr_distri_head.conv_bn_dropout",
        "attention": f"ocr_distri_head.object_context_block.{blocks.get(parts[2])}",
    }[parts[1]]
    return f"ocr.{place}.{nested}.{parts[-1]}"
