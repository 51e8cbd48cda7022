"""What a detector is trained on: resized pictures with their objects, pasted objects, batches, and orders of pictures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from delineate.config import AugmentConfig, TrainConfig, build_config
from delineate.data import open_dataset
from delineate.data.batch import InstanceBatch
from delineate.data.copy_paste import copy_paste
from delineate.data.dataset import Dataset
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.data.instance_targets import load_objects, make_instance_batch
from delineate.data.jitter import RandomResize
from delineate.data.load import load_sample
from delineate.data.object_faults import is_degenerate
from delineate.data.sample import Sample
from delineate.data.samplers import aspect_grouped_order, even_order, repeat_factor_order
from delineate.data.synthetic import blobs, make_blobs_dataset
from delineate.skeleton import KeypointSchema
from delineate.train.instance_truth import without_outline
from delineate.weights.conventions import Conventions, Resize

STILL: dict[str, Any] = {"flip_horizontal": 0.0}
CONVENTIONS = Conventions(outputs="instances", resize=Resize(48, 80))
SCHEMA = KeypointSchema(("left", "right"), flip_pairs=((0, 1),))


def make_sample(size: tuple[int, int] = (60, 90), seed: int = 0, *, codes: bool = False) -> Sample:
    """A picture of blobs; the two keypoints of each are the left and right end of its box's middle line."""
    image, objects = blobs(size, seed, channels=3)
    masks = torch.from_numpy(objects[None] == np.arange(1, objects.max() + 1)[:, None, None])
    x0, y0, x1, y1 = (masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])).unbind(-1)
    middle = (y0 + y1) / 2
    points = torch.stack([torch.stack([x0 + 0.5, middle], -1), torch.stack([x1 - 0.5, middle], -1)], 1)
    sample = Sample(
        tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()),
        f"picture{seed}",
        masks=tv_tensors.Mask(masks),
        boxes=tv_tensors.BoundingBoxes(torch.stack([x0, y0, x1, y1], -1), format="XYXY", canvas_size=size),  # pyright: ignore
        labels=torch.zeros(len(masks), dtype=torch.int64),
        crowd=torch.zeros(len(masks), dtype=torch.bool),
        keypoints=tv_tensors.KeyPoints(points, canvas_size=size),  # pyright: ignore
        visibility=torch.full((len(masks), 2), 2, dtype=torch.uint8),
    )
    if codes:
        from delineate.data.raster import encode_mask

        sample = replace(sample, masks=None, codes=tuple(encode_mask(mask.numpy()) for mask in masks))
    return sample


def resized(sample: Sample, resize: Resize | None = None, seed: int = 0, **augment: Any) -> Sample:
    resize = resize or Resize(48, 80)
    return RandomResize(AugmentConfig(**augment), resize, SCHEMA)(sample, np.random.default_rng(seed))


def plain(value: Any) -> Tensor:
    return value.as_subclass(Tensor)


class TestResize:
    def test_is_torchs_bilinear_and_boxes_scale_exactly(self) -> None:
        sample = make_sample()
        moved = resized(sample, Resize(45, 1000), **STILL)
        assert moved.size == (45, 67)
        expected = F.interpolate(plain(sample.image)[None].float(), (45, 67), mode="bilinear", align_corners=False)[0]
        assert plain(moved.image) == pytest.approx(expected, abs=0.02)
        factor = torch.tensor([67 / 90, 45 / 60] * 2)
        assert plain(moved.boxes) == pytest.approx(plain(sample.boxes) * factor, abs=1e-3)
        assert plain(moved.keypoints) == pytest.approx(plain(sample.keypoints) * factor[:2], abs=1e-3)

    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 1500), st.booleans())
    def test_sides_are_those_of_prediction(self, height: int, width: int, shortest: int, longest: int, pillow: bool) -> None:
        resize = Resize(shortest, longest, "pillow" if pillow else "bilinear")
        sides = RandomResize(AugmentConfig(**STILL), resize).draw((height, width), np.random.default_rng(0)).patch
        assert sides == resize.new_size((height, width))
        assert 1 <= min(sides) <= shortest
        assert max(sides) <= max(1, longest)
        assert max(sides) >= longest - 1 or min(sides) >= shortest - 1

    def test_one_of_several_lengths(self) -> None:
        sizes = {min(resized(make_sample(), Resize(48, 999), seed, shortest=(20, 30, 40)).size) for seed in range(20)}
        assert sizes == {20, 30, 40}

    def test_a_flip_exchanges_left_and_right(self) -> None:
        sample = make_sample()
        flipped = resized(sample, Resize(60, 90), flip_horizontal=1.0)
        assert torch.equal(plain(flipped.image), plain(sample.image).flip(-1).float())
        assert torch.equal(plain(flipped.masks), plain(sample.masks).flip(-1))
        points, mirrored = plain(sample.keypoints), plain(flipped.keypoints)
        assert mirrored[:, 0, 0] == pytest.approx(90 - points[:, 1, 0])  # the left end was the right one
        assert plain(flipped.boxes)[:, 0] == pytest.approx(90 - plain(sample.boxes)[:, 2])

    def test_quarter_turns(self) -> None:
        seen = {resized(make_sample(), Resize(30, 99), seed, rotate90=True).size for seed in range(12)}
        assert seen == {(30, 45), (45, 30)}

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10**6), st.tuples(st.integers(8, 90), st.integers(8, 90)))
    def test_jitter_cuts_a_part_of_the_patch_at_most(self, seed: int, patch: tuple[int, int]) -> None:
        moved = resized(make_sample(codes=True), seed=seed, patch=patch, jitter=(0.1, 2.0))
        (height, width), boxes = moved.size, plain(moved.boxes)
        assert height <= patch[0]
        assert width <= patch[1]
        assert plain(moved.masks).shape == (len(boxes), height, width)
        assert plain(moved.masks).flatten(1).any(1).all()
        assert torch.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        tight = masks_to_boxes(plain(moved.masks)) + torch.tensor([0, 0, 1, 1]) if len(boxes) else boxes
        assert (tight[:, :2] >= boxes[:, :2] - 1.01).all()  # to the pixel that a resampled edge falls on
        assert (tight[:, 2:] <= boxes[:, 2:] + 1.01).all()

    def test_sizes_of_jitter_are_uniform_over_its_range(self) -> None:
        resize = RandomResize(AugmentConfig(patch=(64, 96), jitter=(0.5, 1.5)), Resize())
        rng = np.random.default_rng(0)
        heights = np.array([resize._draw_size(np.array([60.0, 90.0]), rng)[0] for _ in range(2000)])
        assert (heights.min(), heights.max()) == (32, 96)
        assert np.mean(heights <= 64) == pytest.approx(0.5, abs=0.04)

    def test_codes_maps_and_masks_give_the_same(self, tmp_path: Path) -> None:
        whole, coded = make_sample(seed=3), make_sample(seed=3, codes=True)
        one, other = (resized(s, jitter=(0.5, 2.0), patch=(40, 40)) for s in (whole, coded))
        assert torch.equal(plain(one.masks), plain(other.masks))
        dataset = open_dataset(make_blobs_dataset(tmp_path, 1, (40, 50), kind="instance", channels=3))
        mapped = load_objects(dataset, dataset.records[0])
        masks = load_sample(dataset, dataset.records[0], ("masks", "boxes"))
        one, other = (resized(s, jitter=(0.5, 2.0), patch=(40, 40)) for s in (mapped, masks))
        assert torch.equal(plain(one.masks), plain(other.masks))
        assert torch.equal(plain(one.boxes), plain(other.boxes))
        assert one.instance_map is None


class TestCopyPaste:
    def test_pastes_pixels_and_hides_what_lies_behind(self) -> None:
        behind, other = make_sample(seed=1), make_sample((50, 100), seed=2)
        count = len(plain(behind.boxes))
        pasted = copy_paste(behind, other, np.random.default_rng(0))
        front = plain(pasted.masks)[-1]
        new = (plain(pasted.image) != plain(behind.image)).any(0)
        assert new.any()
        masks = plain(pasted.masks)
        assert (masks.sum(0) <= 1).all()  # nothing that is covered stays
        inside = new[:50, :90]
        assert torch.equal(plain(pasted.image)[:, :50, :90][:, inside], plain(other.image)[:, :, :90][:, inside])
        assert front.any()
        assert len(masks) > count
        tight = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
        assert torch.equal(plain(pasted.boxes), tight)
        assert len(pasted.labels) == len(pasted.crowd) == len(plain(pasted.keypoints)) == len(masks)  # pyright: ignore

    def test_drops_what_is_wholly_covered_and_hides_its_points(self) -> None:
        size = (20, 20)

        def one(mask: Tensor, points: list[list[float]]) -> Sample:
            box = masks_to_boxes(mask[None]) + torch.tensor([0, 0, 1, 1])
            return Sample(
                tv_tensors.Image(torch.full((3, *size), 7, dtype=torch.uint8)),
                "a",
                masks=tv_tensors.Mask(mask[None]),
                boxes=tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=size),  # pyright: ignore
                labels=torch.tensor([0]),
                crowd=torch.tensor([False]),
                keypoints=tv_tensors.KeyPoints(torch.tensor([points]), canvas_size=size),  # pyright: ignore
                visibility=torch.tensor([[2, 2]], dtype=torch.uint8),
            )

        wide, left, right = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
        wide[4:8, 2:18], left[4:8, 2:10], right[0:20, 9:20] = True, True, True
        seed = next(s for s in range(9) if np.random.default_rng(s).random(1)[0] < 0.5)
        sample = copy_paste(one(wide, [[3, 5], [15, 5]]), one(right, [[9.5, 1], [19, 19]]), np.random.default_rng(seed))
        assert plain(sample.boxes).tolist() == [[2, 4, 9, 8], [9, 0, 20, 20]]
        assert sample.visibility is not None
        assert sample.visibility.tolist() == [[2, 1], [2, 2]]
        gone = copy_paste(one(left, [[3, 5], [4, 5]]), one(wide, [[3, 5], [4, 5]]), np.random.default_rng(seed))
        assert plain(gone.boxes).tolist() == [[2, 4, 18, 8]]

    def test_crowds_and_empty_pictures(self) -> None:
        crowd = replace(make_sample(seed=1), crowd=torch.ones(len(plain(make_sample(seed=1).boxes)), dtype=torch.bool))
        base = make_sample(seed=2)
        assert copy_paste(base, crowd, np.random.default_rng(0)) is base


class TestBatch:
    def test_pads_pictures_masks_and_rows(self) -> None:
        samples = [resized(make_sample(seed=1), Resize(40, 80)), resized(make_sample((90, 60), seed=2), Resize(50, 80))]
        batch = make_instance_batch([(plain(s.image), s) for s in samples])
        counts = [len(plain(s.boxes)) for s in samples]
        assert batch.images.shape == (2, 3, 96, 64)
        assert batch.sizes.tolist() == [[40, 60], [75, 50]]
        assert batch.targets.valid.sum(1).tolist() == counts
        assert batch.targets.boxes.shape == (2, max(counts), 4)
        assert batch.targets.masks is not None
        assert torch.equal(batch.targets.masks[0, : counts[0], :40, :60], plain(samples[0].masks))
        assert not batch.targets.masks[0, :, 40:].any()
        assert not batch.images[1, :, :, 50:].any()
        assert not batch.targets.boxes[~batch.targets.valid].any()
        assert len(batch.to("meta")) == 2
        assert batch.to("meta").targets.masks.device.type == "meta"  # pyright: ignore

    def test_leaves_out_boxes_without_area_and_keeps_crowds(self) -> None:
        sample = make_sample(seed=1)
        boxes = plain(sample.boxes).clone()
        boxes[0], boxes[1], boxes[2] = torch.tensor([5.0, 5, 5, 9]), torch.tensor([95.0, 5, 99, 9]), torch.tensor(torch.nan)
        sample.boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sample.size)  # pyright: ignore
        assert sample.crowd is not None
        sample.crowd[3] = True
        targets = make_instance_batch([(plain(sample.image).float(), sample)]).targets
        assert int(targets.valid.sum()) == len(boxes) - 3
        assert targets.crowd[0].tolist() == [True] + [False] * (len(boxes) - 4)
        assert torch.isfinite(targets.boxes).all()

    def test_a_picture_without_objects(self) -> None:
        sample = make_sample(seed=1)
        none = torch.zeros(len(plain(sample.boxes)), dtype=torch.bool)
        names = ("masks", "boxes", "labels", "crowd", "keypoints", "visibility")
        empty = replace(sample, **{name: plain(getattr(sample, name))[none] for name in names})
        empty = resized(replace(empty, boxes=tv_tensors.BoundingBoxes(empty.boxes, format="XYXY", canvas_size=(60, 90))))  # pyright: ignore
        targets = make_instance_batch([(plain(empty.image), empty)]).targets
        assert targets.valid.shape == (1, 1)
        assert not targets.valid.any()

    def test_unlabelled_points_are_zero(self) -> None:
        sample = make_sample(seed=1)
        assert sample.visibility is not None
        sample.visibility[0, 0] = 0
        plain(sample.keypoints)[1, 1] = torch.nan
        points = make_instance_batch([(plain(sample.image).float(), sample)]).targets.keypoints
        assert points is not None
        assert points[0, 0, 0].tolist() == [0, 0, 0]
        assert points[0, 1, 1].tolist() == [0, 0, 0]
        assert points[0, 0, 1, 2] == 2


def write_coco(folder: Path, objects: list[list[dict[str, Any]]], size: tuple[int, int] = (40, 60)) -> Path:
    """A COCO file of grey pictures; each object is a dict that is laid over a square of 10 pixels."""
    images, annotations = [], []
    for number, members in enumerate(objects, start=1):
        height, width = size if number % 2 else size[::-1]
        Image.fromarray(np.full((height, width, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for member in members:
            square = {"bbox": [5, 5, 10, 10], "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]], "area": 100, "iscrowd": 0}
            annotations.append(square | {"id": len(annotations) + 1, "image_id": number, "category_id": 1} | member)
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "rare"}]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def make_config(dataset: Dataset, **settings: Any) -> TrainConfig:
    content = {"data": {"path": str(dataset.root)}, "batch": 2, "workers": 0, "device": "cpu"}
    return build_config(content | settings)


class TestLoader:
    def test_of_the_worst_annotations(self, tmp_path: Path) -> None:
        flat = {"bbox": [3, 3, 0, 5], "segmentation": [[3, 3, 3, 8]]}
        outside = {"bbox": [200, 200, 9, 9], "segmentation": [[200, 200, 209, 200, 209, 209]]}
        path = write_coco(tmp_path, [[{}, flat, outside, {"iscrowd": 1, "category_id": 2}], [], [{"bbox": [5, 5, 1, 1]}]])
        dataset = open_dataset(path)
        assert not without_outline(dataset.records)
        left_out = [is_degenerate(i, r.size, masks=True) for r in dataset.records for i in r.instances or ()]
        assert left_out == [False, True, True, False, False]
        config = make_config(dataset, batch=3, steps_per_epoch=1)
        (batch,) = make_instance_loader(InstanceSet(dataset, dataset.records, config, CONVENTIONS))
        assert isinstance(batch, InstanceBatch)
        rows = dict(zip(batch.names, batch.targets.valid.sum(1).tolist(), strict=True))
        assert rows == {"1": 2, "2": 0, "3": 1}
        assert batch.targets.crowd.sum() == 1

    def test_a_crowd_without_an_outline_is_its_box(self, tmp_path: Path) -> None:
        dataset = open_dataset(write_coco(tmp_path, [[{}, {"iscrowd": 1, "segmentation": [[20, 8, 30, 8, 30, 18, 20, 18]]}]]))
        (record,) = dataset.records
        assert record.instances is not None
        square, crowd = record.instances
        bare = replace(record, instances=(square, replace(crowd, segmentation=None, box=(20.0, 8.0, 30.0, 18.0))))
        assert not without_outline([bare])
        one, other = (resized(load_objects(dataset, r), Resize(40, 60), **STILL) for r in (record, bare))
        assert torch.equal(plain(one.masks), plain(other.masks))
        assert other.crowd is not None
        assert other.crowd.tolist() == [False, True]

    @pytest.mark.parametrize("group_aspect", [False, True])
    def test_pictures_of_rare_classes_are_drawn_more_often(self, tmp_path: Path, group_aspect: bool) -> None:
        """A class in one picture of eight, and a threshold of a half: sqrt(4) draws a round; a crowd of it draws none."""
        rare = {"category_id": 2}
        path = write_coco(tmp_path, [[{}], [{}, rare], [{}, rare | {"iscrowd": 1}], [], [{}], [{}], [{}], [{}]], (40, 40))
        dataset = open_dataset(path)
        data = {"path": str(path), "sampling": "repeat_factor", "repeat_threshold": 0.5, "group_aspect": group_aspect}
        config = make_config(dataset, data=data, batch=3, steps_per_epoch=3 * 4)  # rounds of nine draws
        loader = make_instance_loader(InstanceSet(dataset, dataset.records, config, CONVENTIONS, masks=False))
        drawn = Counter(name for batch in loader for name in batch.names)
        assert drawn == Counter({str(number): 8 if number == 2 else 4 for number in range(1, 9)})

    def test_is_the_same_for_any_number_of_workers_and_copy_paste_is_drawn(self, tmp_path: Path) -> None:
        dataset = open_dataset(make_blobs_dataset(tmp_path, 4, (40, 56), kind="instance", channels=3))
        augment = {"patch": [32, 32], "jitter": [0.5, 2.0], "copy_paste": 1.0, "brightness": 0.2}
        batches = []
        for workers in (0, 1):
            config = make_config(dataset, augment=augment, workers=workers, steps_per_epoch=2)
            loader = make_instance_loader(InstanceSet(dataset, dataset.records, config, CONVENTIONS))
            loader.sampler.set_epoch(1)  # pyright: ignore
            batches.append(list(loader))
        for one, other in zip(*batches, strict=True):
            assert one.names == other.names
            assert torch.equal(one.images, other.images)
            assert all(a is b or torch.equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))

    @pytest.mark.parametrize("color", ["gray", "rgb", "bgr"])
    def test_grey_and_coloured_pictures_are_pasted_into_each_other(self, tmp_path: Path, color: Any) -> None:
        path = write_coco(tmp_path, [[{}], [{}]])
        Image.fromarray(np.full((40, 60), 9, np.uint8)).save(tmp_path / "1.png")
        dataset = open_dataset(path)
        config = make_config(dataset, augment={"copy_paste": 1.0}, steps_per_epoch=4)
        conventions = replace(CONVENTIONS, color=color, mean=(0.0,), std=(1.0,))
        for batch in make_instance_loader(InstanceSet(dataset, dataset.records, config, conventions)):
            assert batch.images.shape[1] == conventions.channels

    def test_offset_of_keypoints_is_that_of_the_whole_picture(self, tmp_path: Path) -> None:
        points = {"keypoints": [6, 6, 2, 12, 8, 1], "num_keypoints": 2}
        path = write_coco(tmp_path, [[points]], (40, 40))
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 1, "name": "square", "keypoints": ["a", "b"], "skeleton": []}]
        path.write_text(json.dumps(content))
        dataset = open_dataset(path, "coco:keypoint")
        conventions = replace(CONVENTIONS, keypoints=dataset.keypoints, resize=Resize(80, 80))
        config = make_config(dataset, augment=STILL, batch=1)
        for offset in (0.0, 0.5):
            pictures = InstanceSet(dataset, dataset.records, config, conventions, keypoint_offset=offset)
            (batch,) = make_instance_loader(pictures)
            expected = [[12 + 2 * offset, 12 + 2 * offset, 2], [24 + 2 * offset, 16 + 2 * offset, 1]]
            assert batch.targets.keypoints[0, 0].tolist() == expected


class TestOrders:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.05, 1.0))
    def test_repeat_factors(self, seed: int, pictures: int, threshold: float) -> None:
        presence = np.random.default_rng(seed).random((pictures, 3)) < (0.1, 0.4, 0.9)
        share = presence.mean(0)
        factors = [max([1.0, *(max(1.0, (threshold / share[c]) ** 0.5) for c in range(3) if row[c])]) for row in presence]
        order = repeat_factor_order(presence, threshold, seed)
        rounds = 40
        length = int(rounds * sum(factors)) - pictures  # offsets shift the rounds by less than a picture each
        counts = np.bincount([order(place) for place in range(length)], minlength=pictures)
        assert np.abs(counts - length / sum(factors) * np.array(factors)).max() <= max(factors) + 2
        again = repeat_factor_order(presence, threshold, seed)
        assert [again(place) for place in (length, 3, 0, length // 2)] == [order(p) for p in (length, 3, 0, length // 2)]

    def test_aspect_groups_draw_the_same_pictures(self) -> None:
        shapes = np.random.default_rng(0).choice([0.5, 0.66, 1.5, 1.78], 50)
        order = even_order(50, 0)
        grouped = aspect_grouped_order(order, shapes, 4, 0)
        places = range(12 * 4 * 5)  # windows of 12 batches, which are less than a round of 50
        assert sorted(map(grouped, places)) == sorted(map(order, places))
        spread = [np.ptp([shapes[grouped(place)] for place in range(n, n + 4)]) for n in places[::4]]
        assert np.mean(np.array(spread) == 0) > 0.7
        assert [grouped(p) for p in places] != sorted([grouped(p) for p in places], key=lambda n: shapes[n])
