"""Hard examples, region mutual information and relaxed borders: the sources' own numbers, definitions, nothing to count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from delineate.losses import cross_entropy, ohem_cross_entropy, relaxed_cross_entropy, rmi_loss
from delineate.losses.rmi import _factor


def example(classes: int, *, ignored: bool = True) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 24, 20) and labels in blocks, a few of them not counted."""
    number = torch.arange(2 * classes * 24 * 20, dtype=torch.float64)
    logits = (3 * torch.sin(number * 0.37 + number**2 * 1e-4)).float().view(2, classes, 24, 20)
    blocks = (torch.arange(24)[:, None] // 7 + torch.arange(20) // 6)[None] + torch.arange(2)[:, None, None]
    labels = blocks % classes
    if ignored:
        labels[:, :3, 5:11] = 255
    return logits.requires_grad_(), labels


def numbers(loss: Tensor, logits: Tensor) -> list[float]:
    """The value, and the sum of the gradient's sizes."""
    (gradient,) = torch.autograd.grad(loss, logits)
    return [loss.item(), gradient.abs().sum().item()]


# NVIDIA/semantic-segmentation at 7726b14, loss/rmi.py, on `example`: classes, ignored, do_rmi, value, sizes of the gradient.
RMI = [
    (3, True, True, 1.0407304763793945, 1.8656787872314453),
    (3, True, False, 3.5246381759643555, 1.5284478664398193),
    (2, False, True, 0.19509530067443848, 1.7595762014389038),
    (5, True, True, 0.734438419342041, 3.099404811859131),
]


@pytest.mark.parametrize(("classes", "ignored", "regions", "value", "gradient"), RMI)
def test_rmi_is_nvidias(classes: int, ignored: bool, regions: bool, value: float, gradient: float) -> None:
    logits, labels = example(classes, ignored=ignored)
    loss = rmi_loss(logits, labels, share=0.5 if regions else 1.0)
    assert numbers(loss, logits) == pytest.approx([value, gradient], rel=2e-5)


def test_rmi_of_a_class_that_is_absent_is_nvidias() -> None:
    logits, labels = example(3)
    loss = rmi_loss(logits, torch.where(labels == 2, 0, labels))
    assert numbers(loss, logits) == pytest.approx([-0.6165847778320312, 1.730126976966858], rel=2e-5)


def test_rmi_of_masks_is_that_of_class_ids() -> None:
    logits, labels = example(3)
    masks = (labels[:, None] == torch.arange(3).view(1, 3, 1, 1)).float()
    masks = torch.where(labels[:, None] == 255, -1.0, masks)
    torch.testing.assert_close(rmi_loss(logits, masks), rmi_loss(logits, labels))


def test_rmi_asks_for_the_structure_of_the_truth() -> None:
    """Of two predictions with the same cross-entropy, the one whose errors are moved together with the truth is better."""
    truth = (torch.arange(32)[:, None] // 8 + torch.arange(32) // 8)[None] % 2
    right = 3.0 * torch.stack([1 - 2 * truth, 2 * truth - 1], 1)
    wrong = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.2
    scattered = torch.where(wrong, -right, right)
    together = torch.where(wrong.flatten(1).sort(1).values.view_as(wrong), -right, right)
    values = [rmi_loss(x, truth, share=0.0).item() for x in (right, together, scattered)]
    assert values[0] < min(values[1:])


def test_factors_of_singular_matrices_are_finite() -> None:
    matrix = torch.diag_embed(torch.tensor([[1.0, 2.0], [1.0, -1e-2], [1e6, -3.0], [0.0, 0.0]], dtype=torch.float64))
    matrix.requires_grad_()
    factor = _factor(matrix)
    added = (factor @ factor.mT - matrix).diagonal(dim1=-2, dim2=-1)[:, 1]
    assert added.tolist() == pytest.approx([5e-4, 5e-2, 5.0, 5e-4])
    (gradient,) = torch.autograd.grad(factor.diagonal(dim1=-2, dim2=-1).log().sum(), matrix)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_rmi_is_finite_for_certain_and_for_constant_predictions(scale: float) -> None:
    logits, labels = example(3)
    for x in (scale * logits, scale * (labels[:, None] == torch.arange(3).view(1, 3, 1, 1)) - scale / 2 + 0 * logits):
        value, gradient = numbers(rmi_loss(x, labels), logits)
        assert torch.tensor([value, gradient]).isfinite().all()


# HRNet-Semantic-Segmentation at 0bbb288, lib/core/criterion.py, on `example(4)`: threshold, min_kept, weights, value, gradient.
OHEM: list[tuple[Any, ...]] = [
    (0.7, 100_000, None, 2.7280709743499756, 1.5485321283340454),
    (0.3, 100, None, 3.6913039684295654, 1.8742247819900513),
    (0.05, 50, None, 4.657578468322754, 1.9710910320281982),
    (0.7, 1, None, 2.9852890968322754, 1.6791852712631226),
    (0.3, 100, [0.5, 1.0, 2.0, 1.5], 4.728785991668701, 2.377333402633667),
]


@pytest.mark.parametrize(("threshold", "kept", "weights", "value", "gradient"), OHEM)
def test_ohem_is_hrnets(threshold: float, kept: int, weights: list[float] | None, value: float, gradient: float) -> None:
    logits, labels = example(4)
    loss = ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=kept, class_weights=weights)
    assert numbers(loss, logits) == pytest.approx([value, gradient], rel=1e-5)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_relaxed_is_the_log_of_the_union(reach: int) -> None:
    logits, labels = example(4)
    weights = [0.5, 1.0, 2.0, 1.5]
    probability, total, weight = logits.detach().softmax(1), 0.0, 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        near = labels[b, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].unique()
        own = weights[int(labels[b, y, x])]
        total -= own * probability[b, near[near != 255], y, x].sum().log().item()
        weight += own
    loss = relaxed_cross_entropy(logits, labels, reach=reach, class_weights=weights)
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)
    if reach == 0:
        torch.testing.assert_close(loss, cross_entropy(logits, labels, class_weights=weights))


@pytest.mark.parametrize("loss", [ohem_cross_entropy, relaxed_cross_entropy])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_nothing_to_count_is_zero(loss: Any, scale: float) -> None:
    logits, labels = example(3)
    assert numbers(loss(scale * logits, torch.full_like(labels, 255)), logits) == [0.0, 0.0]
    value, gradient = numbers(loss(scale * logits, labels), logits)
    assert torch.tensor([value, gradient]).isfinite().all()
    half = loss(scale * logits.bfloat16(), labels)
    assert half.dtype == torch.float32


def test_nothing_to_count_does_not_move_rmi() -> None:
    logits, labels = example(3)
    assert numbers(rmi_loss(logits, torch.full_like(labels, 255)), logits)[1] == 0


@pytest.mark.parametrize("loss", [ohem_cross_entropy, relaxed_cross_entropy, rmi_loss])
def test_they_compile_as_one_graph(loss: Any) -> None:
    logits, labels = example(3)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels), loss(logits, labels))


def test_what_cannot_be_is_refused() -> None:
    logits, labels = example(3)
    masks = torch.zeros_like(logits)
    for loss in (ohem_cross_entropy, relaxed_cross_entropy):
        with pytest.raises(ValueError, match="labels are masks"):
            loss(logits, masks)
    with pytest.raises(ValueError, match="threshold is 0"):
        ohem_cross_entropy(logits, labels, threshold=0.0)
    with pytest.raises(ValueError, match="reach is -1"):
        relaxed_cross_entropy(logits, labels, reach=-1)
    with pytest.raises(ValueError, match="share 2"):
        rmi_loss(logits, labels, share=2)
    with pytest.raises(ValueError, match="4 x 20 pixels have 2 x 6 cells"):
        rmi_loss(logits[:, :, :4], labels[:, :4])
