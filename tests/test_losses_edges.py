"""What the losses do where there is nothing to count, or far too much: always a number, with a finite gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from delineate.losses import (
    border_cross_entropy,
    cross_entropy,
    dice_loss,
    distance_loss,
    focal_loss,
    jaccard_loss,
    lovasz_loss,
    tversky_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]


def _border(logits: Tensor, labels: Tensor) -> Tensor:
    return border_cross_entropy(logits, labels, torch.linspace(1, 10, logits[:, 0].numel()).reshape(logits[:, 0].shape))


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "smoothed": lambda x, y: cross_entropy(x, y, label_smoothing=0.1),
    "border": _border,
    "dice": dice_loss,
    "dice_count": lambda x, y: dice_loss(x, y, absent="count", per_image=True),
    "dice_sharp": lambda x, y: dice_loss(x, y, smooth=0.0, absent="count"),
    "jaccard": jaccard_loss,
    "tversky": lambda x, y: tversky_loss(x, y, gamma=0.75, per_image=True),
    "focal": focal_loss,
    "focal_root": lambda x, y: focal_loss(x, y, gamma=0.5),
    "lovasz": lovasz_loss,
    "lovasz_per_image": lambda x, y: lovasz_loss(x, y, per_image=True),
}
ALL = pytest.mark.parametrize("name", LOSSES)


def value_and_gradient(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = loss(x, labels)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def make_labels(kind: str, shape: tuple[int, ...]) -> Tensor:
    batch, classes, height, width = shape
    if kind == "ids":
        labels = torch.randint(0, classes, (batch, height, width))
        return labels.masked_fill(torch.rand(labels.shape) < 0.2, 255)
    return torch.randint(-1, 2, shape).float()


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
def test_all_ignored_is_zero_with_zero_gradient(name: str, kind: str) -> None:
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.full((2, 4, 5), 255) if kind == "ids" else torch.full((2, 3, 4, 5), -1.0)
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    assert value == 0
    assert not gradient.any()


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
def test_ignored_pixels_do_not_matter(name: str, kind: str) -> None:
    labels = make_labels(kind, (2, 3, 4, 5))
    ignored = (labels == 255).unsqueeze(1).expand(2, 3, 4, 5) if kind == "ids" else labels < 0
    logits = torch.randn(2, 3, 4, 5)
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    other, _ = value_and_gradient(LOSSES[name], torch.where(ignored, 100 * torch.randn(2, 3, 4, 5), logits), labels)
    torch.testing.assert_close(value, other)
    assert not gradient[ignored].any()


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_extreme_logits_never_give_nan(name: str, kind: str, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), 2, data.draw(st.integers(1, 3)))
    extremes = st.sampled_from([0.0, 1.0, -1.0, 88.0, -104.0, 1e4, -1e4, 1e30, -1e30, 1e-38])
    count = torch.Size(shape).numel()
    logits = torch.tensor(data.draw(st.lists(extremes, min_size=count, max_size=count))).reshape(shape)
    choices = [*range(shape[1]), 255] if kind == "ids" else [-1.0, 0.0, 1.0]
    size = count // shape[1] if kind == "ids" else count
    labels = torch.tensor(data.draw(st.lists(st.sampled_from(choices), min_size=size, max_size=size)))
    labels = labels.reshape(shape[0], *shape[2:]) if kind == "ids" else labels.reshape(shape)
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    assert value.isfinite()
    assert value >= 0
    assert gradient.isfinite().all()


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(2, 3, 64, 64)).to(dtype)
    labels = make_labels(kind, (2, 3, 64, 64))
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    exact, exact_gradient = value_and_gradient(LOSSES[name], logits.float(), labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)  # not only close to half precision
    assert gradient.dtype == dtype
    smallest = 6e-8 if dtype == torch.float16 else 0.0  # of the steps of fp16, which a GradScaler lifts gradients over
    torch.testing.assert_close(gradient.float(), exact_gradient, atol=smallest, rtol=1e-2)
    biggest = torch.full_like(logits, torch.finfo(dtype).max if dtype == torch.float16 else 1e30)
    value, gradient = value_and_gradient(LOSSES[name], biggest * logits.sign(), labels)
    assert value.isfinite()
    assert gradient.isfinite().all()


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
def test_gradients_are_those_of_the_values(name: str, kind: str) -> None:
    logits = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, make_labels_once[kind]), (logits,))


make_labels_once = {
    "ids": torch.tensor([[[0, 1, 2, 255], [1, 1, 0, 2]], [[2, 2, 255, 0], [0, 0, 1, 1]]]),
    "masks": torch.tensor([1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0, 1.0]).repeat(6).reshape(2, 3, 2, 4),
}


@ALL
@pytest.mark.parametrize("kind", ["ids", "masks"])
def test_compiled_without_a_break_it_is_the_same(name: str, kind: str) -> None:
    logits, labels = torch.randn(2, 3, 8, 8), make_labels(kind, (2, 3, 8, 8))
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(value_and_gradient(compiled, logits, labels), value_and_gradient(LOSSES[name], logits, labels))
    torch._dynamo.reset()


def test_perfect_and_worst_predictions() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    right = torch.stack([labels == 0, labels == 1], dim=1) * 200.0 - 100
    for loss in (cross_entropy, dice_loss, jaccard_loss, tversky_loss, focal_loss, lovasz_loss):
        assert loss(right, labels) == pytest.approx(0, abs=1e-6)
    for loss in (dice_loss, jaccard_loss, tversky_loss):
        assert loss(-right, labels, smooth=0.0) == pytest.approx(1)
    assert lovasz_loss(-right, labels) == pytest.approx(1)


def test_absent_classes_are_skipped_or_ask_for_no_false_positives() -> None:
    masks = torch.zeros(1, 1, 4, 4)  # nothing there
    logits = torch.zeros(1, 1, 4, 4)
    value, gradient = value_and_gradient(dice_loss, logits, masks)
    assert value == 0
    assert not gradient.any()
    value, gradient = value_and_gradient(lambda x, y: dice_loss(x, y, absent="count"), logits, masks)
    assert value == pytest.approx(1 - 1 / (16 * 0.5 / 2 + 1))  # |P| = 8 pixels
    assert (gradient > 0).all()  # downhill is fewer false positives


def test_per_image_is_the_mean_over_pictures() -> None:
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    for loss in (dice_loss, jaccard_loss, tversky_loss, lovasz_loss):
        each = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(loss(logits, labels, per_image=True), each.mean())
        assert not torch.isclose(loss(logits, labels), each.mean())


def test_big_batches_are_summed_precisely() -> None:
    logits = torch.randn(1, 2, 1500, 1500)
    labels = torch.randint(0, 2, (1, 1500, 1500))
    for loss in (cross_entropy, dice_loss, focal_loss, lovasz_loss):
        torch.testing.assert_close(loss(logits, labels).double(), loss(logits.double(), labels), rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cross_entropy(x, torch.zeros(2, 5, 5).long()), "expected .2, 4, 4. class ids or .2, 3, 4, 4. masks"),
        (lambda x: cross_entropy(x, torch.zeros(2, 4, 4)), "expected an integer type"),
        (lambda x: cross_entropy(x[0], torch.zeros(2, 4, 4)), "expected .B, K, H, W."),
        (lambda x: cross_entropy(x, torch.zeros(2, 4, 4).long(), class_weights=[1.0]), "there are 3 classes"),
        (lambda x: cross_entropy(x, torch.zeros(2, 4, 4).long(), label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda x: border_cross_entropy(x, torch.zeros(2, 4, 4).long(), torch.ones(2, 4, 3)), "weight has shape"),
        (lambda x: focal_loss(x, torch.zeros(2, 4, 4).long(), alpha=0.5), "alpha is 0.5"),
        (lambda x: focal_loss(x, torch.zeros(2, 4, 4).long(), gamma=-1), "gamma is -1"),
        (lambda x: tversky_loss(x, torch.zeros(2, 4, 4).long(), beta=0.0), "beta 0.0"),
        (lambda x: dice_loss(x, torch.zeros(2, 4, 4).long(), absent="drop"), "absent is 'drop'"),  # type: ignore[arg-type]
        (lambda x: dice_loss(x[:, :1], torch.zeros(2, 4, 4).long(), background=False), "only one class"),
        (lambda x: distance_loss(x[:, 0], torch.zeros(2, 4, 3), torch.ones(2, 4, 4).bool()), "differ"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 4, 4))
