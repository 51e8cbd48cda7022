"""What tests of networks share: random weights as of a trained network, and comparison with a peer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomize(model: nn.Module) -> None:
    """Statistics and affine parameters of every normalisation as a trained network might have them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all but the classifier; nothing may be missing or left over."""
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    target.load_state_dict(state)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Differences of at most `tolerance` times the largest value, or ten times that of each value."""
    scale = float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs, atol=tolerance * scale, rtol=10 * tolerance)


def stages_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of a torchvision or timm ResNet, by running its parts by name."""
    part = model.get_submodule
    act = part("relu" if hasattr(model, "relu") else "act1")
    x = act(part("bn1")(part("conv1")(x)))
    maps = [x]
    x = part("maxpool")(x)
    for number in range(1, 5):
        x = part(f"layer{number}")(x)
        maps.append(x)
    return maps


def assert_maps_and_gradients_are_those_of(theirs: nn.Module, ours: nn.Module, x: Tensor) -> None:
    """Compare encoders with the same parameters on random weights: every map, and the gradients of the last one's square."""
    randomize(theirs)
    copy_weights(theirs, ours)
    theirs.eval()
    ours.eval()
    expected, found = stages_of(theirs, x), ours(x)
    height, width = x.shape[-2:]
    for reduction, channels, our_map, their_map in zip(ours.reductions, ours.channels, found, expected, strict=True):
        assert our_map.shape == (len(x), channels, -(-height // reduction), -(-width // reduction))
        assert_close(our_map, their_map)
    expected[-1].square().mean().backward()
    found[-1].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        their_gradient = gradients[name]
        assert parameter.grad is not None
        assert their_gradient is not None
        assert_close(parameter.grad, their_gradient)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of every tensor of a network but the classifier's, by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("fc.")}
