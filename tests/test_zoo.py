"""What every network of the zoo must do, and how the zoo answers wrong names and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from delineate.errors import ConfigError
from delineate.models import create_model, list_models


@dataclass(frozen=True)
class Case:
    """A network of the zoo, small enough to test, and the sizes of picture to try."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((1, 1), (7, 5), (33, 64))
    size: tuple[int, int] = (32, 48)  # where one size does
    batch: int = 2

    def build(self, device: torch.device, **options: Any) -> Any:
        return create_model(self.name, 3, **{**self.options, **options}).to(device)

    def picture(self, device: torch.device, size: tuple[int, int] | None = None) -> Tensor:
        height, width = size or self.size
        channels = self.options.get("in_channels", 1 if self.name == "unet_original" else 3)
        return torch.randn(self.batch, channels, height, width, device=device)

    def __str__(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.options.values())])


SMALL = {"width": 8, "depth": 3}
ORIGINAL_SIZES = ((188, 188), (188, 204))
CASES = [
    Case("unet", SMALL),
    Case("unet", {**SMALL, "in_channels": 1, "norm": "instance", "activation": "leaky_relu", "upsample": "transpose"}),
    Case("unet", {**SMALL, "norm": "group", "upsample": "bilinear", "dropout": 0.2}),
    Case("unet", {**SMALL, "deep_supervision": True}),
    Case("unet", {"encoder": "resnet10t", "decoder_channels": [32, 16, 16, 8, 8]}, size=(64, 64)),
    Case("unet_original", {"variant": "paper"}, ORIGINAL_SIZES, (188, 188), batch=1),
    Case("unet_original", {"variant": "release"}, ORIGINAL_SIZES, (188, 188), batch=1),
    Case("hrnet_w18_ocr", {"width": 2, "small": True, "channels": 16, "keys": 8, "dropout": 0.2}),
    Case("hmsa", {"options": SMALL, "channels": 8, "scales": [0.5, 1.0, 1.5]}),
]


def tensors_of(output: Any) -> list[Tensor]:
    """Logits, those of deep supervision and of auxiliary branches."""
    return [part for part in tree_leaves(output) if isinstance(part, Tensor)]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_a_network_that_is_built_again_from_its_architecture(name: str) -> None:
    with torch.device("meta"):  # nothing is drawn nor computed
        model = create_model(name, 3)
        again = create_model(**{k: v for k, v in model.architecture.items() if k != "options"}, **model.architecture["options"])
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes
    assert model.architecture["name"] == name


def test_forward_gives_logits_of_the_picture_less_the_margin(case: Case, device: torch.device) -> None:
    model = case.build(device).eval()
    for height, width in case.sizes:
        with torch.no_grad():
            logits = model(case.picture(device, (height, width)))
        assert logits.shape == (case.batch, 3, height - 2 * model.margin, width - 2 * model.margin)
        assert logits.isfinite().all()


def test_backward_reaches_every_parameter(case: Case, device: torch.device) -> None:
    model = case.build(device).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts some at zero, which nothing passes
    outputs = tensors_of(model(case.picture(device)))
    torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    unreached = [name for name, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert unreached == []


def test_architecture_and_state_rebuild_the_network(case: Case, device: torch.device) -> None:
    model = case.build(device).eval()
    architecture = model.architecture
    other = create_model(architecture["name"], architecture["num_classes"], **architecture["options"]).to(device).eval()
    assert other.architecture == architecture
    other.load_state_dict(model.state_dict())
    x = case.picture(device)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_memory_format_changes_nothing(case: Case, device: torch.device) -> None:
    model = case.build(device).eval()
    x = case.picture(device)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)
    with torch.no_grad():
        fast = model(x.contiguous(memory_format=torch.channels_last))
        plain = model.to(memory_format=torch.contiguous_format)(x)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4 * max(1.0, float(plain.abs().max())))


def test_bfloat16_autocast_stays_near_float32(case: Case, device: torch.device) -> None:
    model = case.build(device).eval()
    x = case.picture(device)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast(device.type, torch.bfloat16):
            rounded = model(x)
    assert not torch.equal(rounded.float(), exact)
    assert (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_export_gives_equal_logits(case: Case, device: torch.device) -> None:
    model = case.build(device).eval()
    x = case.picture(device)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


def test_trains_compiled_without_a_graph_break(case: Case, device: torch.device) -> None:
    """The graph is captured whole, forward and backward; eager kernels run it (code generation: the test below)."""
    if case.name.startswith("hrnet"):
        pytest.skip("tracing its hundreds of layers, one by one, takes longer than all the others")
    model = case.build(device, **({"dropout": 0.0} if "dropout" in case.options else {})).train()
    if case.options.get("variant") == "release":
        model.dropout.p = 0.0  # compiled code draws other numbers
    x = case.picture(device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_gradients(compiled, model, x), _gradients(model, model, x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:1], ids=str)
def test_compiled_code_gives_equal_logits_and_gradients(case: Case, device: torch.device) -> None:
    model = case.build(device)
    compiled: Any = torch.compile(model, fullgraph=True)
    x = case.picture(device)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        _gradients(compiled.train(), model, x), _gradients(model.train(), model, x), rtol=1e-3, atol=1e-3
    )


def test_export_of_the_padded_network_keeps_the_size_free(device: torch.device) -> None:
    model = create_model("unet", 3, **SMALL).to(device).eval()
    height, width = (model.stride * torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    program = torch.export.export(model, (torch.randn(2, 3, 32, 48, device=device),), dynamic_shapes=({2: height, 3: width},))
    x = torch.randn(2, 3, 64, 20, device=device)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


def _gradients(run: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = tensors_of(run(x))
    loss = torch.stack([(output**2).mean() for output in outputs]).sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unett", {}, "model 'unett' is unknown; did you mean 'unet'?"),
        ("hydra", {}, "model 'hydra' is unknown; known are deeplabv3"),
        ("unet", {"widht": 16}, "model 'unet' has no option 'widht'; did you mean 'width'?"),
        ("unet", {"q": 1}, "model 'unet' has no option 'q'; known are in_channels, encoder"),
        ("unet", {"width": 0}, "option 'width' is 0, expected a whole number of at least 1"),
        ("unet", {"width": True}, "option 'width' is True"),
        ("unet", {"depth": 1}, "option 'depth' is 1, a U-Net has at least 2 levels"),
        ("unet", {"dropout": 1.0}, "option 'dropout' is 1.0, expected a probability of at least 0 and below 1"),
        ("unet", {"norm": "bach"}, "norm 'bach' is unknown; did you mean 'batch'?"),
        ("unet", {"upsample": 3}, "option 'upsample' is 3, expected a name"),
        ("unet", {"deep_supervision": "yes"}, "option 'deep_supervision' is 'yes', expected true or false"),
        ("unet", {"decoder_channels": [8, 8]}, "decoder_channels has 2 numbers ([8, 8]), encoder 'plain' needs 4"),
        ("unet", {"encoder_depth": 4}, "encoder_depth is 4, which encoder 'plain' cannot have; a ResNet of ours has 2 to 5"),
        ("unet", {"encoder": "resnet18", "encoder_depth": 6}, "encoder_depth is 6, which encoder 'resnet18' cannot have"),
        ("unet", {"decoder_channels": [8, 0]}, "option 'decoder_channels' is [8, 0], expected a list of whole numbers"),
        ("unet", {"encoder": "resnet43"}, "; did you mean 'resnet34'?"),
        (
            "unet",
            {"encoder": "mixer_b16_224"},
            "encoder 'mixer_b16_224' cannot be built as a feature extractor (it takes pictures of one size only)",
        ),
        ("unet", {"encoder": "swin_tiny_patch4_window7_224"}, "choose a convolutional encoder such as 'resnet34'"),
        ("unet", {"encoder": "vit_tiny_patch14_reg4_dinov2"}, "encoder 'vit_tiny_patch14_reg4_dinov2' is unknown"),
        ("unet", {"encoder": "vit_small_patch14_dinov2"}, "shrinks by [14], not by powers of two"),
        ("unet", {"pretrained": True}, "pretrained=true needs a timm encoder"),
        ("unet_original", {"variant": "papers"}, "variant 'papers' is unknown; did you mean 'paper'?"),
    ],
)
def test_a_wrong_name_or_value_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model(name, 2, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
def test_a_wrong_number_of_classes_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"num_classes is .* expected a whole number"):
        create_model("unet", value)


def test_options_record_every_default_but_the_download() -> None:
    options = create_model("unet", 2, **SMALL).architecture["options"]
    assert options["width"] == 8
    assert options["norm"] == "batch"
    assert "pretrained" not in options
