"""A faster copy of a network for inference: batch normalisation folded into convolutions, derived kernels computed once."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from delineate.errors import DelineateError
from delineate.models.blocks import Merge, NearestConv
from delineate.models.mask_rcnn import MaskRCNN
from delineate.models.norms import FrozenBatchNorm2d

M = TypeVar("M", bound=nn.Module)
PROBE = 64  # side of the picture that shows which normalisation follows which convolution


def fuse_for_inference(model: M) -> M:
    """Return a copy of `model` for inference, in evaluation mode, that gives the same logits up to rounding (float32: 1e-5).

    Each batch normalisation that only follows a convolution becomes part of it, and the kernels of `NearestConv` are computed
    for good; of a detector, in what makes its maps: what becomes of their regions is not looked into. The copy can be cast
    (`.bfloat16()`), compiled and exported, but neither trained nor saved as the original. Raises `DelineateError` where a
    foreign encoder is built such that its logits would change.
    """
    home = next(model.parameters())
    fused: Any = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    for name, module in list(fused.named_modules()):
        if isinstance(module, NearestConv):
            _replace(fused, name, _as_transposed(module))
    if any(_is_foldable(module) for module in fused.modules()):
        _fold_all(fused)
    fused.architecture = {**fused.architecture, "fused": True}  # `save_model` refuses what could not be loaded again
    return fused.to(device=home.device, dtype=home.dtype, memory_format=torch.channels_last)


def _fold_all(model: Any) -> None:
    names = {module: name for name, module in model.named_modules()}
    generator = torch.Generator().manual_seed(0)
    channels = model.architecture["options"].get("in_channels", 3)
    picture = torch.rand(1, channels, PROBE, PROBE, generator=generator).double()
    with torch.no_grad():
        before, pairs = _find_pairs(model, picture)
        for norm, producer in pairs:
            _fold(norm, producer)
            _replace(model, names[norm], getattr(norm, "act", nn.Identity()))  # timm's BatchNormAct2d carries its activation
        difference = (_answer(model, picture) - before).abs().max() / before.abs().max()
    if not difference < 1e-6:
        raise DelineateError(f"the network cannot be fused (logits change by {difference:.1%}); predict with it as it is")


def _find_pairs(model: nn.Module, picture: Tensor) -> tuple[Tensor, list[tuple[Any, nn.Module]]]:
    """The logits of `picture`, and the pairs (batch normalisation, convolution whose output nothing else reads)."""
    produced: dict[int, tuple[nn.Module, int]] = {}
    readers: dict[int, list[tuple[nn.Module, int]]] = {}
    alive: list[Tensor] = []  # so that no id is given twice

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        alive.append(output)
        produced[id(output)] = (module, output._version)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            alive.append(inputs[0])
            readers.setdefault(id(inputs[0]), []).append((module, inputs[0]._version))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, Merge) or type(module) is nn.Conv2d:
                hooks.callback(module.register_forward_hook(after).remove)
            if _is_foldable(module) or not any(True for _ in module.children()):
                hooks.callback(module.register_forward_pre_hook(before).remove)
        logits = _answer(model, picture)
    pairs = []
    for key, (producer, written) in produced.items():
        match readers.get(key, []):
            case [(norm, version)] if _is_foldable(norm) and version == written:  # not changed in place in between
                pairs.append((norm, producer))
    return logits, list(dict.fromkeys(pairs))  # a network that runs at several scales meets each pair several times


def _answer(model: nn.Module, picture: Tensor) -> Tensor:
    """Logits; of a detector its maps, one after the other."""
    if isinstance(model, MaskRCNN):
        return torch.cat([part.flatten() for part in model.neck(model.encoder(picture))])
    return model(picture)


def _is_foldable(module: nn.Module) -> bool:
    if isinstance(module, FrozenBatchNorm2d):
        return True
    if not isinstance(module, nn.BatchNorm2d):
        return False
    known = type(module) is nn.BatchNorm2d or hasattr(module, "act")
    return known and module.affine and module.track_running_stats


def _fold(norm: Any, producer: nn.Module) -> None:
    """Let `producer` emit what `norm` would make of its output."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    merged = [producer.up, producer.skip] if isinstance(producer, Merge) else [producer]
    parts = [_last(part) for part in merged if part is not None]
    for part in parts:  # the parts of a merge are summed, so each is scaled and one of them shifted
        transposed = isinstance(part, nn.ConvTranspose2d)
        part.weight.mul_(scale[None, :, None, None] if transposed else scale[:, None, None, None])
        if part.bias is not None:
            part.bias.mul_(scale)
    if parts[0].bias is None:
        parts[0].bias = nn.Parameter(shift, requires_grad=False)
    else:
        parts[0].bias.add_(shift)


def _last(module: nn.Module) -> Any:
    return module[-1] if isinstance(module, nn.Sequential) else module


def _as_transposed(module: NearestConv) -> nn.ConvTranspose2d:
    in_channels, out_channels = module.weight.shape[:2]
    options: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    convolution = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False, **options)
    convolution.weight = nn.Parameter(module.kernel().detach().contiguous(), requires_grad=False)
    return convolution


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
