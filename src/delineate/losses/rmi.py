"""Region mutual information: how much the probabilities around a pixel say of the labels around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from delineate.losses.shapes import compute_dtype, is_multilabel

_ALPHA = 5e-4  # added to the diagonal of covariances, which sums of products over pixels need not be positive without
_LEAST = 1e-6  # probability
_TINY = 1e-8  # added to a Cholesky factor's diagonal before the logarithm
_RETRIES = 8


def rmi_loss(
    logits: Tensor, labels: Tensor, *, share: float = 0.5, radius: int = 3, pool: int = 4, ignore_index: int = 255
) -> Tensor:
    """`share` times binary cross-entropy plus 1 - `share` times the upper bound of -I, I the mutual information of regions.

    `logits` (B, K, H, W), of which each class' sigmoid is taken. Labels (B, H, W) class ids, `ignore_index` not counted, or
    (B, K, H, W) masks of 0 and 1, -1 not counted. Both are pooled by means over `pool` pixels; the values in a square of
    `radius` by `radius` cells around each cell are one point of a distribution. With the covariances of points of labels Y and
    of probabilities P, I is bounded from below by -log det(C_YY - C_YP C_PP^-1 C_PY) / 2 (Zhao et al. 2019, arXiv:1910.12037),
    here divided by radius^2, summed over classes, the mean over pictures: the form of NVIDIA's hierarchical multi-scale
    attention, with its constants. The binary cross-entropy is the sum over classes, the mean over pixels. The loss may be below
    0. Computed in float64; a covariance that is singular in spite of what is added to its diagonal gets ten times as much, and
    so on. Raises ValueError for pictures smaller than a square, and for a share that is none. Scalar, float32.

    >>> truth = (torch.arange(24) // 6 % 2).expand(1, 24, 24)
    >>> sure = 8.0 * torch.stack([1 - truth, truth], 1) - 4
    >>> bool(rmi_loss(sure, truth) < rmi_loss(-sure, truth))
    True
    """
    if not 0 <= share <= 1 or radius < 1 or pool < 1:
        raise ValueError(f"share {share}, radius {radius}, pool {pool}; expected a share from 0 to 1, and sizes of at least 1")
    truth, valid = _masks(logits, labels, ignore_index)
    logits = logits.to(compute_dtype(logits))
    pixels = valid.sum() / logits.shape[1]
    binary = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    binary = torch.where(valid, binary, 0.0).sum() / (pixels + 1)
    if share == 1:
        return binary
    probability = torch.where(valid, logits.sigmoid(), 0.0) + _LEAST
    information = _information(_points(truth, radius, pool), _points(probability, radius, pool))  # (B, K)
    return share * binary - (1 - share) * information.mean(0).sum().to(logits.dtype) / radius**2


def _masks(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Masks (B, K, H, W) of 0 and 1, and what of them counts."""
    dtype = compute_dtype(logits)
    if is_multilabel(logits, labels):
        valid = labels >= 0
        return (labels * valid).to(dtype), valid
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return (labels.unsqueeze(1) == classes).to(dtype), (labels != ignore_index).unsqueeze(1).expand_as(logits)


def _points(maps: Tensor, radius: int, pool: int) -> Tensor:
    """The values around each cell of pooled maps (B, K, H, W), without their mean: (B, K, radius^2, points) float64."""
    pooled = F.avg_pool2d(maps, pool, stride=pool, padding=pool // 2) if pool > 1 else maps
    if min(pooled.shape[-2:]) < radius:
        raise ValueError(
            f"pictures of {maps.shape[-2]} x {maps.shape[-1]} pixels have {pooled.shape[-2]} x {pooled.shape[-1]} cells, fewer "
            f"than a region of {radius} x {radius}"
        )
    points = F.unfold(pooled.double().flatten(0, 1)[:, None], radius).unflatten(0, maps.shape[:2])
    return points - points.mean(-1, keepdim=True)


def _information(truth: Tensor, probability: Tensor) -> Tensor:
    """The lower bound of the mutual information of points (B, K, D, N), but for what does not depend on the network: (B, K)."""
    crossed = truth @ probability.mT  # (B, K, D, D): the covariances are not divided by N
    factor = _factor(probability @ probability.mT)
    explained = torch.linalg.solve_triangular(factor, crossed.mT, upper=False)  # C_YP C_PP^-1 C_PY = E^T E
    left = _factor(truth @ truth.mT - explained.mT @ explained)
    return -(left.diagonal(dim1=-2, dim2=-1) + _TINY).log().sum(-1)


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factor of matrices (..., D, D) with as little as will do added to their diagonals, 5e-4 or 5e-3 or ..."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    with torch.no_grad():
        added = _ALPHA * 10.0 ** torch.arange(_RETRIES, device=matrix.device, dtype=matrix.dtype)
        failed = torch.linalg.cholesky_ex(matrix[..., None, :, :] + added[:, None, None] * identity).info != 0
        least = added[failed.long().argmin(-1)]  # the first that did not fail
    return torch.linalg.cholesky_ex(matrix + least[..., None, None] * identity).L
