"""Mask R-CNN and Keypoint R-CNN against torchvision's, with the same random weights: detections, losses and gradients.

The networks are torchvision's own classes on a ResNet-18, to be quick, with random batch-normalisation statistics, and last
layers scaled so that there are many detections of many classes and of every level. That makes them sensitive, so they compute
in float64.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models import detection as peers
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import resnet18
from torchvision.ops import MultiScaleRoIAlign

from delineate.losses.matching import NEGATIVE, POSITIVE, Sample
from delineate.models import create_model
from delineate.models.rpn import Selection
from delineate.ops import assign_levels
from delineate.ops.instances import InstanceTargets
from delineate.weights.torchvision import from_torchvision

SIZES = [(150, 200), (170, 140)]
WIDTH, PROPOSALS, DETECTIONS = 32, 100, 60
CANONICAL = 48.0  # side of a box that is read from P4, 224 by default: small pictures have boxes of all levels, P2 to P5
CLASSES = {"first": 20, "second": 20, "keypoints": 1}  # of each kind of network
OURS = {
    "first": "mask_rcnn_resnet50_fpn",
    "second": "mask_rcnn_resnet50_fpn_v2",
    "keypoints": "keypoint_rcnn_resnet50_fpn",
}


@pytest.fixture
def pictures(real_data: Path) -> list[Tensor]:
    files = sorted((real_data / "coco2017_mini" / "val2017").glob("*.jpg"))
    decoded = (decode_image(str(file), "RGB").double() / 255 for file in files[: len(SIZES)])  # type: ignore[arg-type]
    return [x[:, :height, :width].contiguous() for x, (height, width) in zip(decoded, SIZES, strict=True)]


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build_peer(kind: str) -> Any:
    """Torchvision's network, with few channels, proposals and detections, taking pictures as they are."""
    norm = nn.BatchNorm2d if kind == "second" else None
    outputs = CLASSES[kind] + 1
    body = resnet18(weights=None)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], WIDTH, norm_layer=norm)
    second = FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 4, [64], norm)
    box_pool, detail_pool = (MultiScaleRoIAlign(list("0123"), n, 2, canonical_scale=int(CANONICAL)) for n in (7, 14))
    options: dict[str, Any] = {
        "min_size": 1,
        "max_size": 10_000,
        "rpn_head": RPNHead(WIDTH, 3, conv_depth=2 if kind == "second" else 1),
        "rpn_post_nms_top_n_test": PROPOSALS,
        "rpn_post_nms_top_n_train": PROPOSALS,
        "box_roi_pool": box_pool,
        "box_head": second if kind == "second" else TwoMLPHead(WIDTH * 49, 64),
        "box_predictor": FastRCNNPredictor(64, outputs),
        "box_detections_per_img": DETECTIONS,
    }
    if kind == "keypoints":
        options["keypoint_roi_pool"] = detail_pool
        options["keypoint_head"] = KeypointRCNNHeads(WIDTH, [WIDTH] * 8)
        options["keypoint_predictor"] = KeypointRCNNPredictor(WIDTH, 17)
    else:
        options["mask_roi_pool"] = detail_pool
        options["mask_head"] = MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1, norm)
        options["mask_predictor"] = MaskRCNNPredictor(WIDTH, WIDTH, outputs)
    model = (peers.KeypointRCNN if kind == "keypoints" else peers.MaskRCNN)(backbone, **options)
    model.transform.resize = lambda image, target=None: (image, target)  # type: ignore[method-assign]
    return model


def randomize(model: nn.Module, picture: Tensor) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            second = ".layer" in name and name.endswith("bn2")  # beside the shortcut: small, or activations grow
            nn.init.uniform_(module.weight, *((0.1, 0.4) if second else (0.5, 1.5)))
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.get_buffer("running_mean").uniform_(-0.1, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 2.0)
    head = "roi_heads."
    scale_outputs(model, picture, {"rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.4})
    model.get_submodule("rpn.head.bbox_pred").get_parameter("bias").data.view(-1, 4)[:, 2:] += 0.5  # for more large boxes
    scale_outputs(model, picture, {head + "box_predictor.cls_score": 1.0, head + "box_predictor.bbox_pred": 1.0})
    last = head + "mask_predictor.mask_fcn_logits", head + "keypoint_predictor.kps_score_lowres"
    scale_outputs(model, picture, {name: 2.0 for name in last if name in dict(model.named_modules())})


def scale_outputs(model: nn.Module, picture: Tensor, deviations: dict[str, float]) -> None:
    """Give the outputs of each of these layers the mean 0 and this standard deviation, channel by channel."""
    seen: dict[str, list[Any]] = {name: [] for name in deviations}
    for name in deviations:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen[name].append(out))
    with torch.no_grad():
        model([picture])
        for name, deviation in deviations.items():
            module: Any = model.get_submodule(name)
            module._forward_hooks.clear()
            values = torch.cat([out.movedim(1, -1).flatten(0, -2) for out in seen[name]])
            gain = deviation / values.std(0)
            module.bias.copy_((module.bias - values.mean(0)) * gain)
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            module.weight.mul_(gain.view([-1 if i == axis else 1 for i in range(module.weight.dim())]))


def build_pair(kind: str, picture: Tensor) -> tuple[Any, Any]:
    peer = build_peer(kind).double().eval()
    randomize(peer, picture)
    options: dict[str, Any] = {"keypoint_width": WIDTH} if kind == "keypoints" else {}
    options |= {"encoder": "resnet18", "convention": "torchvision", "width": WIDTH, "box_width": 64}
    model: Any = create_model(OURS[kind], CLASSES[kind], **options)
    model.double().eval()
    model.load_state_dict(from_torchvision(peer.state_dict()))
    model.rpn.selections = {True: Selection(2000, PROPOSALS), False: Selection(1000, PROPOSALS)}
    model.detections_per_image = DETECTIONS
    for part in (model.box_regions, model.mask_regions, model.keypoint_regions):
        if part is not None:
            part.conventions = replace(part.conventions, canonical_size=CANONICAL)
    return peer, model


def count_levels(boxes: list[Tensor]) -> list[int]:
    """How many boxes are read from each of P2 to P5."""
    return assign_levels(torch.cat(boxes), 2, 5, CANONICAL).bincount(minlength=6)[2:].tolist()


def test_detections_are_those_of_torchvision(kind: str, pictures: list[Tensor]) -> None:
    peer, model = build_pair(kind, pictures[0])
    images, _ = peer.transform(pictures)
    with torch.no_grad():
        features = peer.backbone(images.tensors)
        proposals = peer.rpn(images, features)[0]
        found, _ = peer.roi_heads(features, proposals, images.image_sizes)
        ours = model(images.tensors, torch.tensor(images.image_sizes))
    counts = ours.valid.sum(1).tolist()
    assert counts == [len(one["boxes"]) for one in found]
    assert sum(counts) > 100
    assert len(ours.labels[ours.valid].unique()) >= min(CLASSES[kind], 15)
    assert min(count_levels(proposals)) > 0
    assert min(count_levels([one["boxes"] for one in found])) > 0
    for i, (count, one) in enumerate(zip(counts, found, strict=True)):
        part = type(ours)(*(None if field is None else field[i, :count] for field in ours))
        assert torch.equal(part.labels, one["labels"] - 1)
        torch.testing.assert_close(part.boxes, one["boxes"], rtol=0, atol=0.01)
        torch.testing.assert_close(part.scores, one["scores"], rtol=0, atol=1e-4)
        if kind == "keypoints":
            torch.testing.assert_close(part.keypoints, one["keypoints"][..., :2], rtol=0, atol=0.05)
            torch.testing.assert_close(part.keypoint_logits, one["keypoints_scores"], rtol=0, atol=1e-3)
        else:
            torch.testing.assert_close(part.masks.logit(), one["masks"][:, 0].logit(), rtol=0, atol=1e-3)


def rank(count: int) -> Tensor:
    """A fixed shuffling, so that both samplers draw the same."""
    return torch.arange(count) * 7919 % count


class PeerSampler:
    """Torchvision's sampler with `rank` in place of chance."""

    def __init__(self, count: int, fraction: float) -> None:
        self.count, self.positives = count, int(count * fraction)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive = [self._first(one >= 1, self.positives) for one in labels]
        negative = [self._first(one == 0, self.count - int(p.sum())) for one, p in zip(labels, positive, strict=True)]
        return positive, negative

    def _first(self, wanted: Tensor, count: int) -> Tensor:
        order = torch.where(wanted, rank(len(wanted)), len(wanted) + 1).argsort()[: min(count, int(wanted.sum()))]
        return torch.zeros_like(wanted, dtype=torch.uint8).index_fill(0, order, 1)

    def ours(self, kinds: Tensor) -> Sample:
        labels = [torch.where(one == POSITIVE, 1, torch.where(one == NEGATIVE, 0, -1)) for one in kinds]
        index, valid = torch.zeros(len(kinds), self.count, dtype=torch.int64), torch.zeros(len(kinds), self.count).bool()
        for i, (positive, negative) in enumerate(zip(*self(labels), strict=True)):
            rows = torch.cat([positive.nonzero()[:, 0], negative.nonzero()[:, 0]])
            index[i, : len(rows)], valid[i, : len(rows)] = rows, True
        return Sample(index, valid)


def make_truth(kind: str) -> list[dict[str, Tensor]]:
    """Objects of the first picture; the second has none."""
    boxes = torch.tensor([[20.3, 30.1, 120.7, 110.2], [5.0, 60.0, 60.5, 149.0], [100.0, 10.0, 190.0, 60.0]]).double()
    height, width = SIZES[0]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    center, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    inside = ((x - center[:, :1, None]) / radius[:, :1, None]) ** 2 + ((y - center[:, 1:, None]) / radius[:, 1:, None]) ** 2
    points = boxes[:, None, :2] + torch.rand(3, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
    visible = torch.randint(0, 3, (3, 17, 1)).double()
    labels = torch.tensor([1, 1, 1] if kind == "keypoints" else [3, 20, 1])
    full = {
        "boxes": boxes,
        "labels": labels,
        "masks": (inside <= 1).byte(),
        "keypoints": torch.cat([points, visible], 2).float(),
    }
    height, width = SIZES[1]
    shapes = {"boxes": (0, 4), "labels": (0,), "masks": (0, height, width), "keypoints": (0, 17, 3)}
    return [full, {key: torch.zeros(shape, dtype=full[key].dtype) for key, shape in shapes.items()}]


def to_targets(truth: list[dict[str, Tensor]], size: tuple[int, int]) -> InstanceTargets:
    capacity = max(len(one["boxes"]) for one in truth)
    batch = len(truth)
    valid = torch.arange(capacity) < torch.tensor([len(one["boxes"]) for one in truth])[:, None]
    boxes, labels = torch.zeros(batch, capacity, 4).double(), torch.zeros(batch, capacity, dtype=torch.int64)
    masks, points = torch.zeros(batch, capacity, *size).bool(), torch.zeros(batch, capacity, 17, 3)
    for i, one in enumerate(truth):
        count = len(one["boxes"])
        boxes[i, :count], labels[i, :count], points[i, :count] = one["boxes"], one["labels"] - 1, one["keypoints"]
        masks[i, :count, : one["masks"].shape[1], : one["masks"].shape[2]] = one["masks"].bool()
    return InstanceTargets(boxes, labels, valid, torch.zeros_like(valid), masks, points)


LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "classifier": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}


def test_losses_and_gradients_are_those_of_torchvision(kind: str, pictures: list[Tensor]) -> None:
    """Batch normalisation learns in this test; all proposals are sampled, so that their order does not count."""
    peer, model = build_pair(kind, pictures[0])
    truth = make_truth(kind)
    peer.train()
    model.train()
    anchors, regions = PeerSampler(4096, 0.5), PeerSampler(512, 0.25)
    peer.rpn.fg_bg_sampler, peer.roi_heads.fg_bg_sampler = anchors, regions
    model.rpn.sampler, model.sampler = anchors.ours, regions.ours
    images, _ = peer.transform(pictures)
    expected = peer(pictures, truth)
    losses = model(images.tensors, torch.tensor(images.image_sizes), to_targets(truth, images.tensors.shape[-2:]))
    assert set(losses) == {ours for ours, theirs in LOSSES.items() if theirs in expected}
    for name, value in losses.items():
        theirs = expected[LOSSES[name]].double()  # the objectness loss is float32 there
        torch.testing.assert_close(value.double(), theirs, rtol=1e-6, atol=0, msg=lambda m, name=name: f"{name}: {m}")
    torch.stack([value.double() for value in expected.values()]).sum().backward()
    torch.stack(list(losses.values())).sum().backward()
    gradients = from_torchvision({name: p.grad for name, p in peer.named_parameters()})
    for name, parameter in model.named_parameters():
        norm = gradients[name].norm().clamp(min=1e-9)  # a bias before softmax has none but by rounding
        error = (parameter.grad - gradients[name]).norm() / norm
        assert error < 1e-4, f"{name}: {error:.1e}"
