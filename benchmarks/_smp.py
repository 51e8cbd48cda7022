"""The weights of segmentation_models_pytorch's U-Net under our names, so that both networks compute the same."""

from __future__ import annotations

from torch import Tensor, nn


def from_smp(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename what `smp.Unet(...).state_dict()` holds, or gradients of the same names, for our `unet` of the same encoder."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            ours[f"encoder.net.{rest}"] = tensor
        elif part == "segmentation_head":
            ours[f"head.{rest.removeprefix('0.')}"] = tensor
        elif rest.endswith("conv1.0.weight"):  # convolves the concatenation [up, skip]; ours convolves each and adds
            merge = f"decoder.blocks.{rest.split('.')[1]}.merge"
            up_channels = model.get_parameter(f"{merge}.up.weight").shape[0]
            ours[f"{merge}.up.weight"] = tensor[:, :up_channels].transpose(0, 1)
            if up_channels < tensor.shape[1]:
                ours[f"{merge}.skip.weight"] = tensor[:, up_channels:]
        else:
            rest = rest.replace("conv1.1.", "norm.").replace("conv2.0.", "conv.conv.").replace("conv2.1.", "conv.norm.")
            ours[f"decoder.{rest}"] = tensor
    return ours
