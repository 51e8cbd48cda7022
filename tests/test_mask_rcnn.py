"""What every detector of the zoo must do: slots, empty pictures, options, training on bad data, compilation and export."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from delineate.errors import ConfigError
from delineate.losses.matching import CROWD_OVERLAP, sample_matches
from delineate.models import create_model, list_models
from delineate.models.mask_head import FCNMasks, MaskHead
from delineate.models.regions import regions
from delineate.models.rpn import Proposals, Selection
from delineate.ops.boxes import box_area
from delineate.ops.instances import Detections, InstanceTargets

SMALL = {"encoder": "resnet18", "width": 16, "box_width": 16, "samples": 16}
C4 = {"encoder": "resnet18", "mask_width": 16, "samples": 16}
CASES: dict[str, dict[str, Any]] = {
    "keypoint_rcnn_resnet50_fpn": {**SMALL, "keypoint_width": 16},
    "mask_keypoint_rcnn_resnet50_fpn": {**SMALL, "keypoint_width": 16, "num_keypoints": 5},
    "mask_rcnn_hrnet_w32": {**SMALL, "encoder": "hrnet_w18"},
    "mask_rcnn_resnest50_fpn": {**SMALL, "encoder": "resnest14"},
    "mask_rcnn_resnet101_fpn": {**SMALL, "norm": "frozen", "frozen_stages": 2},
    "mask_rcnn_resnet50_c4": C4,
    "mask_rcnn_resnet50_fpn": {**SMALL, "head_norm": "group", "in_channels": 1},
    "mask_rcnn_resnet50_fpn_v2": SMALL,
}
SIZE = (64, 96)
SIZES = torch.tensor([[64, 96], [50, 70]])


def build(name: str, **options: Any) -> Any:
    model: Any = create_model(name, 3, **{**CASES[name], **options})
    model.rpn.selections = {True: Selection(100, 12), False: Selection(100, 12)}
    model.score_threshold, model.detections_per_image = 0.05, 8
    return model


def make_pictures(model: Any) -> Tensor:
    images = torch.randn(2, model.architecture["options"]["in_channels"], *SIZE)
    images[1, :, 50:], images[1, :, :, 70:] = 0, 0
    return images


def make_targets(keypoints: int, boxes: Tensor | None = None) -> InstanceTargets:
    """Two objects in the first picture, none in the second."""
    boxes = torch.tensor([[[5.0, 8, 40, 50], [30, 10, 90, 60]]]) if boxes is None else boxes
    count = boxes.shape[1]
    boxes = torch.cat([boxes, torch.zeros_like(boxes)])
    valid = torch.tensor([[True], [False]]).expand(-1, count)
    masks = torch.zeros(2, count, *SIZE, dtype=torch.bool)
    masks[0, :, 20:40, 35:60] = True
    points = torch.cat([torch.rand(2, count, keypoints, 2) * 50 + 10, torch.full((2, count, keypoints, 1), 2.0)], 3)
    labels = torch.arange(count).expand(2, -1) % 3
    return InstanceTargets(boxes, labels, valid, torch.zeros_like(valid), masks, points)


def test_every_detector_is_tested() -> None:
    assert {name for name in list_models() if "rcnn" in name} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_detects_and_learns(name: str) -> None:
    model = build(name)
    images = make_pictures(model)
    with torch.no_grad():
        found = model.eval()(images, SIZES)
    assert isinstance(found, Detections)
    assert found.boxes.shape == (2, 8, 4)
    assert (found.boxes <= SIZES.flip(1).repeat(1, 2)[:, None]).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert (found.masks is not None) == model.has_masks
    if found.masks is not None:
        assert found.masks.shape == ((2, 8, 14, 14) if name.endswith("c4") else (2, 8, 28, 28))
    assert (found.keypoints is not None) == bool(model.num_keypoints)
    if found.keypoints is not None:
        assert found.keypoints.shape == (2, 8, model.num_keypoints, 2)
    losses = model.train()(images, SIZES, make_targets(model.num_keypoints))
    heads = {"mask"} if model.has_masks else set()
    heads |= {"keypoint"} if model.num_keypoints else set()
    assert set(losses) == {"rpn_objectness", "rpn_box", "classifier", "box"} | heads
    torch.stack(list(losses.values())).sum().backward()
    trained = {parameter_name: p.grad for parameter_name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())
    frozen = {parameter_name.split(".")[1] for parameter_name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"conv1", "layer1"} if name == "mask_rcnn_resnet101_fpn" else set())


@pytest.mark.parametrize(
    "options",
    [
        {"pooler": "roi_pool", "mask_head": "mlp", "class_agnostic_masks": True},
        {"pooler": "roi_warp", "mode": "max", "mask_activation": "softmax", "convention": "mmdetection"},
        {"mode": "max", "mask_activation": "softmax", "class_agnostic_masks": True, "convention": "torchvision"},
    ],
    ids=str,
)
def test_options_of_the_ablations_work_together(options: dict[str, Any]) -> None:
    model = build("mask_rcnn_resnet50_fpn", **options)
    images = make_pictures(model)
    losses = model.train()(images, SIZES, make_targets(0))
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(images, SIZES)
    assert found.masks[found.valid].min() >= 0
    assert found.masks[found.valid].max() <= 1
    other: Any = create_model(model.architecture["name"], 3, **model.architecture["options"])
    other.load_state_dict(model.state_dict())
    assert other.architecture == model.architecture


def test_a_picture_has_the_same_result_alone() -> None:
    model = build("mask_keypoint_rcnn_resnet50_fpn").eval()
    images = make_pictures(model)
    with torch.no_grad():
        both = model(images, SIZES)
        for i in range(2):
            alone = model(images[i : i + 1], SIZES[i : i + 1])
            for together, single in zip(both, alone, strict=True):
                if together is not None:
                    torch.testing.assert_close(together[i], single[0], rtol=1e-4, atol=1e-4)
    assert both.valid.any(1).all()


def test_without_proposals_or_detections_all_slots_are_empty() -> None:
    model = build("mask_keypoint_rcnn_resnet50_fpn").eval()
    model.score_threshold = 1.0
    with torch.no_grad():
        nothing = model(make_pictures(model), SIZES)
        no_proposals = model(torch.zeros(1, 3, *SIZE), torch.tensor([[0, 0]]))
    for found in (nothing, no_proposals):
        assert not found.valid.any()
        assert all(not field.any() for field in found if field is not None)


def test_bad_targets_give_finite_losses() -> None:
    """Degenerate, distant, doubled and one-pixel boxes; only crowds; no objects at all; no room for any."""
    model = build("mask_keypoint_rcnn_resnet50_fpn").train()
    images = make_pictures(model)
    bad = torch.tensor([[[5.0, 5, 5, 5], [9, 9, 3, 3], [500, 500, 600, 600], [8, 8, 9, 9], [0, 0, 96, 64], [0, 0, 96, 64]]])
    usual = make_targets(5)
    worst = [
        make_targets(5, bad),
        usual._replace(crowd=usual.valid),
        usual._replace(valid=torch.zeros_like(usual.valid)),
        InstanceTargets(*(field[:, :0] for field in usual if field is not None)),
        usual._replace(keypoints=torch.zeros(2, 2, 5, 3)),
    ]
    for targets in worst:
        model.zero_grad(set_to_none=True)
        losses = model(images, SIZES, targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_crowd_teaches_nothing() -> None:
    """Nothing in it is positive or negative, nor is it learned from as an object: not its class, mask or keypoints."""
    model = build("mask_keypoint_rcnn_resnet50_fpn", mask_convs=1, keypoint_convs=1).train()
    model.positives = 100
    model.sampler, model.rpn.sampler = (partial(sample_matches, count=9999, positive_fraction=p) for p in (0.0101, 0.5))
    looked_at: list[Tensor] = []
    model.box_regions.register_forward_pre_hook(lambda _, inputs: looked_at.append(inputs[1]))
    images, region = make_pictures(model)[:1], torch.tensor([48.0, 0, 96, 64])
    inside = torch.tensor([[50.0, 2, 60, 30], [48, 0, 96, 64], [60, 8, 96, 40], [40, 0, 90, 64]])
    outside = torch.tensor([[6.0, 8, 40, 52], [2, 40, 20, 60], [30, 0, 60, 64]])
    proposals = Proposals(torch.cat([inside, outside])[None], torch.ones(1, 7, dtype=torch.bool))
    usual = InstanceTargets(*(field[:1] for field in make_targets(5) if field is not None))
    usual.boxes[0, 1] = region
    usual = usual._replace(crowd=torch.tensor([[False, True]]))

    def learn(targets: InstanceTargets) -> tuple[list[Tensor], Tensor, Tensor]:
        """The gradient of every parameter, which anchors learn whether there is an object, and the regions of the heads."""
        torch.manual_seed(0)
        model.zero_grad()
        maps = model.neck(model.encoder(images))
        anchors = model.rpn(maps, SIZE)
        for level in anchors:
            level.logits.retain_grad()
        torch.stack(list(model.losses(maps, anchors, proposals, targets).values())).sum().backward()
        learning = torch.cat([level.logits.grad[0] != 0 for level in anchors])
        return [p.grad for p in model.parameters()], learning, looked_at.pop()[:, 1:]

    gradients, learning, rois = learn(usual)
    boxes = torch.cat([level.anchors for level in model.rpn(model.neck(model.encoder(images)), SIZE)])
    within = torch.cat([torch.maximum(boxes[:, :2], region[:2]), torch.minimum(boxes[:, 2:], region[2:])], 1)
    covered = (within[:, 2:] - within[:, :2]).clamp(min=0).prod(1) >= CROWD_OVERLAP * box_area(boxes)
    assert not learning[covered].any()
    assert sorted(rois.tolist()) == sorted([*outside.tolist(), usual.boxes[0, 0].tolist()])
    assert usual.masks is not None
    assert usual.keypoints is not None
    masks, keypoints = usual.masks.clone(), usual.keypoints.clone()
    masks[0, 1] = ~masks[0, 1]
    keypoints[0, 1] += 30
    other, *_ = learn(usual._replace(labels=usual.labels + torch.tensor([[0, 1]]), masks=masks, keypoints=keypoints))
    assert all(map(torch.equal, gradients, other))
    _, without, rois = learn(usual._replace(valid=torch.tensor([[True, False]])))  # no crowd, but background
    assert without[covered].all()
    assert torch.equal(without[~covered], learning[~covered])
    assert len(rois) == 8


def test_inference_compiles_and_exports_whole() -> None:
    """No graph break, and the results of eager; slots that eager leaves out are computed, but stay empty."""
    model = build("mask_keypoint_rcnn_resnet50_fpn", encoder="resnet10t", mask_convs=1, keypoint_convs=1).eval()
    images = make_pictures(model)
    model.detections_per_image = 40
    with torch.no_grad():
        expected = model(images, SIZES)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images, SIZES)
        exported = torch.export.export(model, (images, SIZES)).module()(images, SIZES)
    assert expected.valid.any(1).all()
    assert not expected.valid.all()
    for found in (compiled, exported):
        for ours, eager in zip(found, expected, strict=True):
            if eager is not None:
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_rows_of_valid_slots_and_back() -> None:
    boxes = torch.arange(24.0).view(2, 3, 4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    rows = regions(boxes, valid)
    assert rows.rois[:, 0].tolist() == [0, 0, 1]
    assert torch.equal(rows.take(boxes), rows.rois[:, 1:])
    assert torch.equal(rows.spread(rows.take(boxes)), torch.where(valid[..., None], boxes, 0))
    first = regions(boxes[:, :2], torch.tensor([[False, True], [True, False]]))
    assert rows.find(first).tolist() == [1, 2]
    assert len(regions(boxes, torch.zeros_like(valid)).rows) == 1  # so that a head has its gradient


def test_probabilities_of_masks() -> None:
    logits = torch.randn(2, 4, 3, 3)
    labels = torch.tensor([2, 0])
    layers = FCNMasks(4, 4, convs=0, width=4)
    own = MaskHead(layers).probabilities(logits, labels)
    assert torch.equal(own[0], logits[0, 2].sigmoid())
    among = MaskHead(layers, activation="softmax").probabilities(logits, labels)
    assert torch.equal(among[1], logits[1].softmax(0)[0])
    single = MaskHead(layers, activation="softmax", agnostic=True).probabilities(logits[:, :2], labels)
    torch.testing.assert_close(single, (logits[:, 0] - logits[:, 1]).sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet43"}, "did you mean 'resnet34'?"),
        ({"encoder": "vgg11", "norm": "frozen"}, "encoder 'vgg11' is timm's and keeps its own layers"),
        ({"pooler": "roi_aline"}, "pooler 'roi_aline' is unknown; did you mean 'roi_align'?"),
        ({"convention": "detectron"}, "convention 'detectron' is unknown; did you mean 'detectron2'?"),
        ({"norm": "group", "norm_eps": 0.0}, "norm_eps is 0.0, which norm 'group' does not have"),
        ({"mask_activation": "tanh"}, "mask_activation 'tanh' is unknown; known are sigmoid, softmax"),
        ({"num_keypoints": -1}, "option 'num_keypoints' is -1, expected a whole number of at least 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model("mask_rcnn_resnet50_fpn", 3, **options)
    assert message in str(caught.value)


def test_wrong_inputs_are_named() -> None:
    model = build("mask_keypoint_rcnn_resnet50_fpn").train()
    with pytest.raises(ValueError, match=r"images are \(1, 3, 50, 64\); expected .* multiples of 32"):
        model(torch.zeros(1, 3, 50, 64))
    with pytest.raises(ValueError, match="the targets have no masks"):
        model(make_pictures(model), SIZES, make_targets(5)._replace(masks=None))
    with pytest.raises(ValueError, match="the targets have no keypoints"):
        model(make_pictures(model), SIZES, make_targets(5)._replace(keypoints=None))
