"""Panoptic FPN: its semantic head, and how objects and stuff become one. (Parity with Detectron2: test_weights_importing.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from delineate.models import create_model
from delineate.models.panoptic_fpn import semantic_loss
from delineate.ops.instances import InstanceTargets
from delineate.predict import Predictor
from delineate.predict.masks import Crop
from delineate.predict.panoptic import merge_panoptic, semantic_classes
from delineate.weights.conventions import Conventions

SKY, ROAD = 1, 2  # kinds of stuff; 0: any object


def square(left: int, top: int, size: int = 4) -> Crop:
    return Crop(left, top, np.ones((size, size), bool))


def merge(masks: list[Crop], scores: list[float], semantic: np.ndarray, **options: Any) -> tuple[np.ndarray, list[int]]:
    labels = torch.arange(len(masks))
    options = {"min_stuff_area": 1, **options}
    merged = merge_panoptic(masks, torch.tensor(scores), labels, torch.from_numpy(semantic), num_classes=10, **options)
    return merged.segments, merged.labels.tolist()


def test_the_better_object_keeps_its_pixels_and_stuff_fills_the_rest() -> None:
    semantic = np.full((6, 10), SKY, np.int64)
    semantic[:, 8:] = ROAD
    segments, labels = merge([square(0, 0), square(3, 0)], [0.9, 0.8], semantic)
    expected = np.full((6, 10), 3)
    expected[:, 8:] = 4
    expected[:4, 3:7] = 2
    expected[:4, :4] = 1
    np.testing.assert_array_equal(segments, expected)
    assert labels == [0, 1, 10, 11]


@pytest.mark.parametrize(("left", "kept"), [(1, False), (2, True), (3, True)])
def test_an_object_that_is_taken_to_more_than_half_is_left_out(left: int, kept: bool) -> None:
    """Of its four columns, the first object has three, two or one."""
    _, labels = merge([square(0, 0), square(left, 0)], [0.9, 0.8], np.zeros((4, 8), np.int64))
    assert labels == ([0, 1] if kept else [0])


def test_weak_and_empty_objects_and_small_stuff_are_left_out() -> None:
    semantic = np.zeros((4, 12), np.int64)
    semantic[0, :5], semantic[1, :4] = SKY, ROAD
    nothing = Crop(0, 0, np.zeros((2, 2), bool))
    segments, labels = merge([nothing, square(8, 0), square(4, 0)], [0.9, 0.5, 0.49], semantic, min_stuff_area=5)
    assert labels == [1, 10]
    assert (segments == 2).sum() == 5
    assert not segments[2, :8].any()  # void: neither an object nor stuff


def test_no_objects_and_no_stuff() -> None:
    segments, labels = merge([], [], np.zeros((3, 3), np.int64))
    assert not segments.any()
    assert labels == []


@pytest.mark.parametrize("size", [(37, 50), (90, 61), (1, 1)])
def test_classes_one_by_one_are_those_of_all_at_once(size: tuple[int, int]) -> None:
    logits = torch.randn(5, 16, 24)
    resized = (60, 90)  # of the padded 64 x 96
    whole = F.interpolate(logits[None], scale_factor=4.0, mode="bilinear", align_corners=False)[:, :, :60, :90]
    expected = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(semantic_classes(logits, resized, size), expected)


def test_the_loss_is_half_the_mean_of_what_counts() -> None:
    logits, classes = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(0, 3, (2, 32, 32))
    classes[:, :7] = 255
    enlarged = F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)
    expected = 0.5 * F.cross_entropy(enlarged, classes, ignore_index=255)
    torch.testing.assert_close(semantic_loss(logits, classes), expected)
    nothing = semantic_loss(logits, torch.full_like(classes, 255))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.fixture
def network() -> Any:
    return create_model(
        "panoptic_fpn_resnet50", 3, encoder="resnet18", width=32, box_width=32, num_stuff=2, stuff_width=32, samples=16
    )


def test_training_gives_the_semantic_loss_too(network: Any) -> None:
    boxes, labels = torch.tensor([[[4.0, 4, 40, 40]]]), torch.tensor([[1]])
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[..., 4:40, 4:40] = True
    semantic = torch.randint(0, 3, (1, 64, 64))
    yes = torch.ones(1, 1, dtype=torch.bool)
    targets = InstanceTargets(boxes, labels, yes, ~yes, masks, None, semantic)
    losses = network.train()(torch.randn(1, 3, 64, 64), None, targets)
    losses["semantic"].backward()
    assert network.semantic_head.classifier.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="the targets have no classes of pixels"):
        network(torch.randn(1, 3, 64, 64), None, targets._replace(semantic=None))


def test_a_picture_becomes_segments(network: Any) -> None:
    network.classes = ("a", "b", "c")
    network.conventions = Conventions(outputs="instances", stuff=("sky", "road"))
    with torch.no_grad():
        network.semantic_head.classifier.bias.copy_(torch.tensor([0.0, 0.0, 100.0]))
    results = Predictor(network, device="cpu", precision="fp32", score_threshold=0.99)(np.zeros((70, 90, 3), np.uint8))
    assert results.panoptic is not None
    assert results.stuff == ("sky", "road")
    assert results.panoptic.labels.tolist() == [len(results.classes) + 1]
    assert (results.panoptic.segments == 1).all()
