"""What `roi_align_explained.py` draws: a photograph, features of it, what each operation reads of them, what rounding costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from delineate.demo import CUT, coin_photograph
from delineate.models.backbones.plain import PlainEncoder
from delineate.models.norms import group_norm
from delineate.ops.masks import paste_masks
from delineate.ops.roi import roi_align, roi_pool, roi_warp
from delineate.ops.roi_reference import Points, Rule, align_points, pool_points

STRIDE = 16
ENLARGED = 2
WINDOW = 12 * STRIDE
"""Side of the pictures in which a coin moves."""

OPERATIONS: dict[str, Callable[[Tensor, Sequence[Tensor], int], Tensor]] = {
    "RoIPool": lambda maps, boxes, size: roi_pool(maps, boxes, size, 1 / STRIDE),
    "RoIWarp": lambda maps, boxes, size: roi_warp(maps, boxes, size, 1 / STRIDE, 2),
    "RoIAlign": lambda maps, boxes, size: roi_align(maps, boxes, size, 1 / STRIDE, 2, aligned=True),
}
Network = Callable[[Tensor], Tensor]
"""Pictures (B, 1, H, W) in 0..1 to maps (B, 1, H / 16, W / 16) in 0..1."""


# ---- The photograph, and features of it ----


class Scene(NamedTuple):
    """The enlarged photograph and what is known of it."""

    photograph: Tensor  # (H, W) in 0..1
    coins: Tensor  # (N, H, W) bool
    boxes: Tensor  # (N, 4) float32 xyxy, whole pixels
    seen: int  # rows above are those of the training


def load_scene() -> Scene:
    photograph, objects = coin_photograph()
    picture = torch.from_numpy(photograph / 255).float()[None, None]
    coins = torch.stack([torch.from_numpy(objects == i) for i in range(1, int(objects.max()) + 1)])
    larger = [F.interpolate(x, scale_factor=ENLARGED, mode="bilinear") for x in (picture, coins[None].float())]
    coins = larger[1][0] >= 0.5
    boxes = masks_to_boxes(coins) + torch.tensor([0, 0, 1, 1])  # torchvision's end with the last pixel, ours after it
    return Scene(larger[0][0, 0], coins, boxes, CUT * ENLARGED)


def train_network(scene: Scene, steps: int) -> Network:
    """U-Net's contracting path with a 1x1 convolution, trained to say which share of each cell of 16 x 16 pixels is coin."""
    torch.manual_seed(0)
    encoder = PlainEncoder(1, (8, 16, 32, 64, 128), norm=group_norm, activation=nn.ReLU)
    head = nn.Conv2d(encoder.channels[-1], 1, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    both = torch.stack([scene.photograph, scene.coins.any(0).float()])[:, : scene.seen]
    for _ in range(steps):
        patches = torch.stack([random_patch(both, 8 * STRIDE) for _ in range(8)])
        pictures, covered = patches.split(1, 1)
        loss = F.binary_cross_entropy_with_logits(head(encoder(pictures)[-1]), F.avg_pool2d(covered, STRIDE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def network(pictures: Tensor) -> Tensor:
        return head(encoder(pictures)[-1]).sigmoid()  # (B, 1, H / 16, W / 16)

    return network


def random_patch(picture: Tensor, side: int) -> Tensor:
    """A square of (C, H, W), turned by quarters and mirrored."""
    y, x, turns, mirrored = (int(torch.randint(0, n, ())) for n in (*(s - side + 1 for s in picture.shape[1:]), 4, 2))
    patch = picture[:, y : y + side, x : x + side].rot90(turns, (1, 2))
    return patch.flip(2) if mirrored else patch


# ---- Geometry: what an operation reads along one axis, by the definitions that the operations themselves use ----


class Axis(NamedTuple):
    """A region along x or y, in cells: cell i lies from i to i + 1, with its centre at i + 0.5. M points a bin at most."""

    edges: np.ndarray  # (bins + 1,) start of the region, ends of its bins before any rounding
    low: np.ndarray  # (bins, M) int64, cell below each point
    high: np.ndarray  # (bins, M) int64, cell above
    fraction: np.ndarray  # (bins, M) how far from the centre of the one to that of the other
    exists: np.ndarray  # (bins, M) bool

    @property
    def points(self) -> np.ndarray:
        """(bins, M), NaN where there is none."""
        return np.where(self.exists, self.low + self.fraction + 0.5, np.nan)

    @property
    def first(self) -> np.ndarray:
        """(bins,) first cell that a bin reads."""
        return self.low.min(1)

    @property
    def last(self) -> np.ndarray:
        """(bins,) last cell that a bin reads."""
        return np.where(self.exists, self.high, -1).max(1)


def pool_axis(start: float, end: float, bins: int, length: int) -> Axis:
    """RoIPool: pixels `start` to `end` on a map of `length` cells, which holds the region."""
    points = pool_points(torch.tensor([start]), torch.tensor([end]), 1 / STRIDE, bins, length)
    axis = _axis(points, np.zeros(0))
    return axis._replace(edges=np.linspace(axis.first[0], axis.last[-1] + 1, bins + 1))


def align_axis(start: float, end: float, bins: int, length: int) -> Axis:
    """RoIAlign with two points a bin: pixels `start` to `end` on a map of `length` cells."""
    rule = Rule(bins, bins, quantized=False, sampling_ratio=2, aligned=True, mode="mean")
    points = align_points(torch.tensor([start]), torch.tensor([end]), 1 / STRIDE, bins, length, rule)
    return _axis(points, np.linspace(start / STRIDE, end / STRIDE, bins + 1))


def warp_axis(start: float, end: float, bins: int, length: int) -> Axis:
    """RoIWarp: RoIAlign of RoIPool's region."""
    edges = pool_axis(start, end, bins, length).edges * STRIDE
    return align_axis(edges[0], edges[-1], bins, length)


def _axis(points: Points, edges: np.ndarray) -> Axis:
    return Axis(edges, *(x[0].numpy() for x in (points.low, points.high, points.fraction, points.inside)))


AXES = {"RoIPool": pool_axis, "RoIWarp": warp_axis, "RoIAlign": align_axis}


def axes_of(operation: str, box: Tensor, bins: int, shape: Sequence[int]) -> tuple[Axis, Axis]:
    """Along x and y, of a map of `shape` (height, width)."""
    x0, y0, x1, y1 = box.tolist()
    return AXES[operation](x0, x1, bins, shape[1]), AXES[operation](y0, y1, bins, shape[0])


def interpolate(features: Tensor, x: Axis, y: Axis) -> np.ndarray:
    """The map (H, W) at each point of each bin: (y bins, x bins, y points, x points)."""
    cells, total = features.numpy(), 0.0
    for rows, v in ((y.low, 1 - y.fraction), (y.high, y.fraction)):
        for columns, w in ((x.low, 1 - x.fraction), (x.high, x.fraction)):
            weight = v[:, None, :, None] * w[None, :, None, :]
            total = total + weight * cells[rows[:, None, :, None], columns[None, :, None, :]]
    return np.asarray(total)


# ---- What rounding costs ----


class Moved(NamedTuple):
    """Masks decoded at each shift, against the true ones: (shifts, coins) both."""

    iou: np.ndarray
    offset: np.ndarray  # pixels from the true centre of mass to the decoded one


def move(scene: Scene, network: Network | None, shifts: Sequence[int]) -> dict[str, Moved]:
    """Move each unseen coin by `shifts` pixels along the diagonal, pool its features, decode its mask, compare.

    At shift 0 the coin's box begins where a cell begins. The features are the share of each cell that the coin covers or, with
    a network, what that says of it. "RoIPool, mean error undone" is pasted where the rounded region lies on average: its end is
    one cell too far, and that much a trained head could learn.
    """
    results: dict[str, list[list[Tensor]]] = {}
    unseen = [i for i, box in enumerate(scene.boxes) if box[1] >= scene.seen]
    excess = torch.tensor([0, 0, STRIDE, STRIDE])
    for shift in shifts:
        pictures, masks, boxes = (torch.stack(x) for x in zip(*(window(scene, i, shift) for i in unseen), strict=True))
        maps = network(pictures) if network else F.avg_pool2d(masks[:, None].float(), STRIDE)
        places = {name: (name, boxes) for name in OPERATIONS} | {"RoIPool, mean error undone": ("RoIPool", boxes + excess)}
        for label, (name, place) in places.items():
            found = decode(name, maps, boxes, place, masks.shape[1:])
            results.setdefault(label, []).append([mask_iou(found, masks), (center(found) - center(masks)).norm(dim=1)])
    return {label: Moved(*(torch.stack(x).numpy() for x in zip(*rows, strict=True))) for label, rows in results.items()}


def decode(operation: str, maps: Tensor, boxes: Tensor, places: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (N, height, width) of `size`, from maps (N, 1, H, W): a 14 x 14 patch of each box (N, 4), pasted over its place."""
    patches = OPERATIONS[operation](maps, boxes.split(1), 14)[:, 0]
    return paste_masks(patches, places, (size[0], size[1]))


def window(scene: Scene, index: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picture (1, S, S), mask (S, S) and box (4,) of a coin, two cells and `shift` pixels from the upper left corner.

    At its border the photograph is mirrored.
    """
    margin = 3 * STRIDE
    x, y = (int(c) - 2 * STRIDE - shift + margin for c in scene.boxes[index, :2])
    part = (..., slice(y, y + WINDOW), slice(x, x + WINDOW))
    picture = F.pad(scene.photograph[None], (margin, WINDOW, margin, WINDOW), mode="reflect")[part]
    mask = F.pad(scene.coins[index], (margin, WINDOW, margin, WINDOW))[part]
    return picture, mask, scene.boxes[index] - torch.tensor([x, y, x, y]) + margin


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of each pair of masks (N, H, W): (N,)."""
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def center(masks: Tensor) -> Tensor:
    """Centres of mass (N, 2) of masks (N, H, W), NaN for an empty one."""
    share = masks.double() / masks.sum((1, 2), keepdim=True)
    x, y = ((share.sum(axis) * torch.arange(masks.shape[3 - axis])).sum(1) for axis in (1, 2))
    return torch.stack([x, y], 1)
