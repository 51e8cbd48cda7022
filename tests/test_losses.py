"""Values and gradients of the losses against PyTorch, torchvision, segmentation_models_pytorch and MONAI."""

from __future__ import annotations

from collections.abc import Callable

import monai.losses
import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from segmentation_models_pytorch.losses.lovasz import _lovasz_softmax
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

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

B, K, H, W = 3, 4, 9, 7


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(B, K, H, W, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    """Class ids with every class in every picture, and some pixels not counted."""
    labels = torch.randint(0, K, (B, H, W))
    labels[:, 0, :K] = torch.arange(K)
    labels[:, 1:3, 2:5] = 255
    return labels


@pytest.fixture
def masks() -> Tensor:
    """Masks that overlap, every class in every picture, some pixels of some classes not counted."""
    masks = (torch.rand(B, K, H, W) < 0.4).double()
    masks[:, :, 0, 0] = 1
    masks[:, 1, 3:5] = -1
    return masks


def agree(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor, **tolerance: float) -> None:
    """Equal values, and equal gradients, which are not zero."""
    results = []
    for loss in (ours, theirs):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        results.append((value.detach(), x.grad))
    (value, gradient), (other_value, other_gradient) = results
    assert gradient.abs().max() > 0
    torch.testing.assert_close(value, other_value, check_dtype=False, **tolerance)
    torch.testing.assert_close(gradient, other_gradient, check_dtype=False, **tolerance)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(logits: Tensor, labels: Tensor, weights: list[float] | None, smoothing: float) -> None:
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    agree(
        lambda x: cross_entropy(x, labels, class_weights=weights, label_smoothing=smoothing),
        lambda x: F.cross_entropy(x, labels, tensor, ignore_index=255, label_smoothing=smoothing),
        logits,
    )


def test_multilabel_cross_entropy_is_torchs_over_the_counted_pixels(logits: Tensor, masks: Tensor) -> None:
    valid = masks >= 0
    agree(
        lambda x: cross_entropy(x, masks),
        lambda x: F.binary_cross_entropy_with_logits(x[valid], masks[valid]),
        logits,
    )
    weights = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    weight = weights.view(-1, 1, 1).expand_as(masks)[valid]
    agree(
        lambda x: cross_entropy(x, masks, class_weights=weights, label_smoothing=0.2),
        lambda x: (
            F.binary_cross_entropy_with_logits(x[valid], 0.8 * masks[valid] + 0.1, weight, reduction="sum") / weight.sum()
        ),
        logits,
    )


def test_border_cross_entropy_weighs_pixels(logits: Tensor, labels: Tensor, masks: Tensor) -> None:
    weight = torch.rand(B, H, W, dtype=torch.float64) * 10 + 1

    def plain(x: Tensor) -> Tensor:
        counted = weight[labels != 255]
        return (counted * F.cross_entropy(x, labels, ignore_index=255, reduction="none")[labels != 255]).sum() / counted.sum()

    agree(lambda x: border_cross_entropy(x, labels, weight), plain, logits)
    agree(lambda x: border_cross_entropy(x, labels, torch.full_like(weight, 7)), lambda x: cross_entropy(x, labels), logits)
    agree(lambda x: border_cross_entropy(x, masks, torch.full_like(weight, 7)), lambda x: cross_entropy(x, masks), logits)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dice_loss, smp.DiceLoss),
        (jaccard_loss, smp.JaccardLoss),
        (lambda *args, **options: tversky_loss(*args, alpha=0.2, beta=0.9, **options), smp.TverskyLoss),
    ],
)
def test_region_losses_are_smps_where_all_classes_occur(
    logits: Tensor, labels: Tensor, masks: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Callable], smooth: float
) -> None:
    extra = {"alpha": 0.2, "beta": 0.9} if theirs is smp.TverskyLoss else {}
    multiclass = theirs(mode="multiclass", smooth=smooth, ignore_index=255, **extra)
    agree(lambda x: ours(x, labels, smooth=smooth), lambda x: multiclass(x, labels), logits)
    multilabel = theirs(mode="multilabel", smooth=smooth, ignore_index=-1, **extra)
    agree(lambda x: ours(x, masks, smooth=smooth), lambda x: multilabel(x, masks), logits)


def test_smp_counts_absent_classes_as_perfect(logits: Tensor, labels: Tensor) -> None:
    labels[labels == 3] = 0
    theirs = smp.DiceLoss(mode="multiclass", ignore_index=255)
    # Its mean runs over all 4 classes, with 0 for the absent one; ours over the 3 that are there.
    agree(lambda x: dice_loss(x, labels, smooth=0) * 3 / 4, lambda x: theirs(x, labels), logits)


@pytest.mark.parametrize("absent", [0, 3])
def test_the_background_is_left_out_and_absent_classes_too(logits: Tensor, labels: Tensor, absent: int) -> None:
    labels[labels == absent] = 1
    theirs = smp.DiceLoss(mode="multiclass", ignore_index=255, classes=[1, 2, 3])
    counted = 2 if absent == 3 else 3
    agree(lambda x: dice_loss(x, labels, smooth=0, background=False) * counted / 3, lambda x: theirs(x, labels), logits)


def test_gamma_is_inside_the_mean_over_classes_and_smps_outside(logits: Tensor, labels: Tensor) -> None:
    theirs = smp.TverskyLoss(mode="multiclass", ignore_index=255, alpha=0.3, beta=0.7, gamma=2.0)
    agree(lambda x: tversky_loss(x, labels, smooth=0) ** 2, lambda x: theirs(x, labels), logits)

    def by_hand(x: Tensor) -> Tensor:
        p, t = x.softmax(1).movedim(1, 0)[:, labels != 255], F.one_hot(labels[labels != 255], K).T  # (K, N)
        index = (p * t).sum(1) / ((p * t).sum(1) + 0.3 * (p * (1 - t)).sum(1) + 0.7 * ((1 - p) * t).sum(1))
        return ((1 - index) ** 2).mean()

    agree(lambda x: tversky_loss(x, labels, smooth=0, gamma=2.0), by_hand, logits)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("absent_class", [False, True])
def test_region_losses_are_monais(
    logits: Tensor, labels: Tensor, per_image: bool, background: bool, absent_class: bool
) -> None:
    if absent_class:
        labels[labels == 3] = 1
    common = {"softmax": True, "to_onehot_y": True, "batch": not per_image, "include_background": background}
    ours = {"per_image": per_image, "background": background, "absent": "count", "smooth": 0.5}
    cases = [
        (dice_loss, {}, monai.losses.DiceLoss(smooth_nr=1.0, smooth_dr=1.0, ignore_index=255, **common)),
        (jaccard_loss, {}, monai.losses.DiceLoss(jaccard=True, smooth_nr=1.0, smooth_dr=1.0, ignore_index=255, **common)),
        (
            tversky_loss,
            {"alpha": 0.3, "beta": 0.7},
            monai.losses.TverskyLoss(alpha=0.3, beta=0.7, smooth_nr=0.5, smooth_dr=0.5, ignore_index=255, **common),
        ),
    ]
    for loss, extra, theirs in cases:
        agree(
            lambda x, loss=loss, extra=extra: loss(x, labels, **ours, **extra),
            lambda x, theirs=theirs: theirs(x, labels.unsqueeze(1)),
            logits,
        )


def test_multilabel_dice_is_monais(logits: Tensor, masks: Tensor) -> None:
    masks = masks.clamp(min=0)
    theirs = monai.losses.DiceLoss(sigmoid=True, smooth_nr=2.0, smooth_dr=2.0)
    agree(lambda x: dice_loss(x, masks, per_image=True, smooth=1.0), lambda x: theirs(x, masks), logits)


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_softmax_is_smps(logits: Tensor, labels: Tensor, per_image: bool) -> None:
    logits = logits.float()  # smp's knows only this type
    theirs = smp.LovaszLoss(mode="multiclass", per_image=per_image, ignore_index=255)
    agree(lambda x: lovasz_loss(x, labels, per_image=per_image), lambda x: theirs(x, labels), logits)
    if not per_image:
        labels[labels == 2] = 0  # both leave an absent class out
        agree(lambda x: lovasz_loss(x, labels), lambda x: theirs(x, labels), logits)


def test_lovasz_sigmoid_is_lovasz_softmax_of_two_classes(logits: Tensor, masks: Tensor) -> None:
    logits = logits.float()

    def theirs(x: Tensor) -> Tensor:
        two = torch.stack([torch.zeros_like(x), x], dim=2)  # softmax of (0, x) is (1 - sigmoid, sigmoid)
        ids = masks.where(masks >= 0, 255).long()
        losses = [_lovasz_softmax(two[:, k].softmax(1), ids[:, k], classes=[1], ignore=255) for k in range(K)]
        return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()

    agree(lambda x: lovasz_loss(x, masks), theirs, logits)


def test_lovasz_of_certain_predictions_is_one_minus_iou() -> None:
    labels = torch.randint(0, 3, (1, 16, 16))
    predicted = torch.randint(0, 3, (1, 16, 16))
    logits = F.one_hot(predicted, 3).permute(0, 3, 1, 2) * 200.0
    iou = [((labels == k) & (predicted == k)).sum() / ((labels == k) | (predicted == k)).sum() for k in range(3)]
    torch.testing.assert_close(lovasz_loss(logits, labels), 1 - torch.stack(iou).mean())


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_is_torchvisions(logits: Tensor, masks: Tensor, alpha: float | None, gamma: float) -> None:
    valid = masks >= 0
    agree(
        lambda x: focal_loss(x, masks, gamma=gamma, alpha=alpha),
        lambda x: sigmoid_focal_loss(
            x[valid], masks[valid], alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean"
        ),
        logits,
    )


def test_softmax_focal_is_smps_function_and_monais(logits: Tensor, labels: Tensor) -> None:
    labels = labels.where(labels != 255, 0)
    agree(lambda x: focal_loss(x, labels), lambda x: softmax_focal_loss_with_logits(x, labels, gamma=2.0), logits)
    # MONAI's mean runs over classes as well as pixels, although one class a pixel has a term.
    theirs = monai.losses.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)
    agree(lambda x: focal_loss(x, labels) / K, lambda x: theirs(x, labels.unsqueeze(1)), logits)


def test_smp_focal_of_classes_is_one_against_the_rest(logits: Tensor, labels: Tensor) -> None:
    labels = labels.where(labels != 255, 0)
    theirs = smp.FocalLoss(mode="multiclass", gamma=2.0)
    masks = F.one_hot(labels, K).permute(0, 3, 1, 2).double()
    agree(lambda x: focal_loss(x, masks), lambda x: theirs(x, labels), logits)  # sigmoids, although classes exclude each other
    assert not torch.isclose(focal_loss(logits, labels), theirs(logits, labels))


def test_focal_without_gamma_is_cross_entropy(logits: Tensor, labels: Tensor, masks: Tensor) -> None:
    weights = [0.5, 1.0, 2.0, 3.0]
    for truth in (labels, masks):
        agree(
            lambda x, truth=truth: focal_loss(x, truth, gamma=0.0, class_weights=weights),
            lambda x, truth=truth: cross_entropy(x, truth, class_weights=weights),
            logits,
        )


def test_distance_loss_is_smooth_l1_over_the_counted_pixels() -> None:
    prediction = torch.randn(B, H, W, dtype=torch.float64)
    distance, valid = torch.rand(B, H, W, dtype=torch.float64), torch.rand(B, H, W) < 0.7
    distance[~valid] = torch.nan  # whatever stands where nothing counts must not leak
    agree(
        lambda x: distance_loss(x, distance, valid),
        lambda x: F.smooth_l1_loss(x[valid], distance[valid], beta=0.1),
        prediction,
    )
