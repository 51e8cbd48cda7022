"""From stored pixel values to the numbers a network reads: colour, range, mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from delineate.errors import ConfigError, DataError
from delineate.weights.conventions import Color, Conventions

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"; they sum to one, so that grey stored as RGB stays what it was


def to_color(image: Tensor, color: Color) -> Tensor:
    """Convert grey or RGB pictures (..., 1|3, H, W) of any dtype to `color`; integer pictures are rounded and keep their dtype.

    >>> to_color(torch.full((1, 2, 2), 7, dtype=torch.uint8), "rgb").shape
    torch.Size([3, 2, 2])
    """
    channels = image.shape[-3]
    if channels not in (1, 3):
        raise DataError(f"a picture has {channels} channels; expected 1 (grey) or 3 (RGB), so keep the ones that matter")
    if color == "gray":
        return image if channels == 1 else _luma(image)
    if channels == 1:
        return image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    if color == "bgr":  # by slices, because torch cannot flip uint16
        return torch.cat([image[..., c : c + 1, :, :] for c in (2, 1, 0)], dim=-3)
    return image


def image_statistics(image: Tensor, color: Color | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of whole pictures (..., C, H, W), in `color` where it is given.

    Both are float32 of shape (..., C), in the unit of the stored values. A constant channel has the deviation 1, so that
    dividing by it is safe.
    """
    image = image if color is None else to_color(image.float(), color)
    channels = image.reshape(-1, image.shape[-2] * image.shape[-1])
    moments = [torch.var_mean(channel.double(), correction=0) for channel in channels]  # one by one: float64 is large
    variance, mean = (torch.stack(values).reshape(image.shape[:-2]) for values in zip(*moments, strict=True))
    std = variance.sqrt()
    constant = std <= 1e-6 * mean.abs()  # also where the rounding of float32 values leaves a trace
    return mean.float(), torch.where(constant, 1.0, std).float()


def normalize(image: Tensor, conventions: Conventions, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Turn stored pixels (..., 1|3, H, W) of uint8, uint16 or float into the float32 input (..., C, H, W) of a network.

    The picture is brought to `conventions.color`, divided by `value_range`, the mean subtracted, divided by the deviation.
    With `normalization="image"` both are those of the whole picture: pass `statistics`, made by
    `image_statistics(picture, conventions.color)`, when `image` is a part of it; they are measured on `image` otherwise.

    >>> x = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    >>> normalize(x, Conventions(color="gray", mean=(0.5,), std=(0.5,)))
    tensor([[[-1.,  1.]]])
    """
    x = to_color(image.as_subclass(Tensor).float(), conventions.color)  # early: torch knows few operations on uint16
    if conventions.normalization == "image":
        mean, std = image_statistics(x) if statistics is None else statistics
    else:
        mean = _fixed(conventions, "mean", x.device) * conventions.value_range
        std = _fixed(conventions, "std", x.device) * conventions.value_range
    return (x - mean.to(x.device)[..., None, None]) / std.to(x.device)[..., None, None]


def type_factor(dtype: str, conventions: Conventions) -> float:
    """What pixels stored as `dtype` are multiplied by to reach the range that a network is trained on.

    It is not 1 for 16-bit pictures of a network of 8-bit ones, and the reverse: white is then what the type can hold.

    >>> type_factor("uint16", Conventions()) * 65535, type_factor("uint8", Conventions(value_range=4095.0)) * 255
    (255.0, 4095.0)
    """
    if conventions.normalization == "image":  # mean and deviation of the picture itself make up for any factor
        return 1.0
    if dtype == "uint16" and conventions.value_range == 255:
        return 255 / 65535
    return conventions.value_range / 255 if dtype == "uint8" and conventions.value_range > 255 else 1.0


def _luma(image: Tensor) -> Tensor:
    red, green, blue = image.float().split(1, dim=-3)
    gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return gray.to(image.dtype) if image.is_floating_point() else gray.round().to(image.dtype)


def _fixed(conventions: Conventions, field: str, device: torch.device) -> Tensor:
    values: tuple[float, ...] = getattr(conventions, field)
    if len(values) not in (1, conventions.channels):
        raise ConfigError(
            f"input.{field} has {len(values)} values for color {conventions.color!r}; give {conventions.channels} or 1"
        )
    return torch.tensor(values, device=device)
