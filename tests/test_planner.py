"""Plans: each rule on statistics made for it, whole plans on small data sets, memory against what a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delineate.config import (
    DataConfig,
    LossTerm,
    ResizeConfig,
    TrainConfig,
    load_config,
)
from delineate.data import make_blobs_dataset, open_dataset, split_dataset
from delineate.data.stats import DatasetStatistics, ObjectStatistics, dataset_statistics
from delineate.errors import ConfigError, DataError
from delineate.losses import build_loss
from delineate.train import instance_rules, rules
from delineate.train.memory import StepMemory, cgroup_memory_left, saved_bytes
from delineate.train.plan import Plan, show
from delineate.train.planner import FEW_STEPS, Machine, Pace, plan, schedule
from delineate.train.probe import InstanceProbe, PatchTime, StepProbe
from delineate.weights import Conventions

STATISTICS = DatasetStatistics(
    kind="semantic",
    classes=("background", "cell"),
    pictures={"train": 24, "val": 6},
    sampled=30,
    size_min=(512, 512),
    size_median=(512, 512),
    size_max=(512, 512),
    channels={1: 30},
    colourless=1.0,
    dtypes={"uint8": 30},
    value_range=(0.0, 255.0),
    mean=(126.0,),
    std=(44.0,),
    brightness_spread=0.2,
    class_pixels=(0.8, 0.2),
    class_pictures=(30, 30),
    ignored=0.0,
    objects=None,
)
OBJECTS = ObjectStatistics(
    count=400,
    crowds=0,
    per_picture=(3, 12.0, 40),
    area=(50.0, 100.0, 200.0, 300.0, 500.0),
    diameter=(8.0, 11.0, 16.0, 20.0, 25.0),
    touching=0.3,
    gap=1.0,
)
CELLS = replace(STATISTICS, kind="instance", objects=OBJECTS)


def with_statistics(**changes: Any) -> DatasetStatistics:
    return replace(STATISTICS, **changes)


# --- rules --------------------------------------------------------------------------------------------------------------


def test_input_of_like_and_unlike_pictures() -> None:
    like, reasons = rules.choose_input(STATISTICS)
    assert (like.color, like.normalization) == ("gray", "fixed")
    assert like.mean == pytest.approx((126 / 255,), abs=1e-4)
    assert like.std == pytest.approx((44 / 255,), abs=1e-4)
    assert "0.20" in reasons["input.normalization"]
    unlike, reasons = rules.choose_input(
        with_statistics(brightness_spread=0.8, colourless=0.7, mean=(9.0,) * 3, std=(8.0,) * 3)
    )
    assert (unlike.color, unlike.normalization) == ("rgb", "image")
    assert "0.80" in reasons["input.normalization"]


@pytest.mark.parametrize(
    ("dtypes", "values", "white"),
    [
        ({"uint8": 30}, (3.0, 200.0), 255.0),
        ({"uint16": 30}, (90.0, 4000.0), 4095.0),  # a 12-bit camera
        ({"uint16": 30}, (0.0, 65535.0), 65535.0),
        ({"uint8": 3, "uint16": 3}, (0.0, 65535.0), 65535.0),
        ({"float32": 30}, (0.0, 1.0), 1.0),
        ({"float32": 30}, (-3.0, 900.0), 900.0),
    ],
)
def test_white_of_each_type(dtypes: dict[str, int], values: tuple[float, float], white: float) -> None:
    chosen, _ = rules.choose_input(with_statistics(dtypes=dtypes, value_range=values))
    assert chosen.value_range == white
    assert chosen.normalization == ("fixed" if set(dtypes) == {"uint8"} else "image")


def test_outputs_follow_touching_objects() -> None:
    assert rules.choose_outputs(STATISTICS, "unet")[0] == "classes"
    assert rules.choose_outputs(CELLS, "unet")[0] == "border"
    assert rules.choose_outputs(CELLS, "unet_original")[0] == "classes"
    apart = replace(CELLS, objects=replace(OBJECTS, touching=0.0))
    assert rules.choose_outputs(apart, "unet")[0] == "classes"


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    diameter=st.floats(0.5, 3000),
    fast=st.booleans(),
)
def test_patches_and_depths_always_fit(height: int, width: int, diameter: float, fast: bool) -> None:
    sizes = {"size_min": (1, 1), "size_median": (height, width), "size_max": (height, width)}
    objects = replace(OBJECTS, diameter=(diameter,) * 5)
    patch = rules.choose_patch(replace(CELLS, objects=objects, **sizes), fast=fast)
    depth, reason = rules.choose_depth(patch, fast=fast)
    stride = 2 ** (depth - 1)
    assert all(side % stride == 0 and 16 <= side <= (1024 if fast else 512) for side in patch)
    assert all(side < have + (32 if fast else 16) for side, have in zip(patch, (height, width), strict=True))
    assert min(patch) // stride >= 8
    assert f"{depth} maps" in reason


def test_large_objects_get_large_patches() -> None:
    small, large = (replace(CELLS, objects=replace(OBJECTS, diameter=(5.0, 8.0, 9.0, d, 200.0))) for d in (20.0, 100.0))
    assert rules.choose_patch(small, fast=False) == (256, 256)
    assert rules.choose_patch(large, fast=False) == (448, 448)


def test_class_weights_are_milder_than_frequency_and_bounded() -> None:
    weights = rules.class_weights([0.9, 0.0999, 0.0001, 0.0])
    assert weights[0] < weights[1] < weights[2] <= 8.0
    assert weights[3] == 1.0
    assert weights[2] / weights[0] < 0.9 / 0.0001


def test_loss_of_unequal_many_and_missing_classes() -> None:
    def names(statistics: DatasetStatistics, outputs: Any = "classes", model: str = "unet") -> list[str]:
        terms, reasons = rules.choose_loss(statistics, outputs, model)
        assert reasons["loss"]
        channels = len(statistics.classes) + (outputs == "border")
        build_loss(terms, Conventions(outputs=outputs), len(statistics.classes))  # the terms and their options exist
        for term in terms:
            assert len(term.options.get("class_weights", [0] * channels)) == channels
        return [term.name for term in terms]

    assert names(STATISTICS) == ["cross_entropy", "dice"]
    assert names(CELLS, "border") == ["cross_entropy", "dice"]
    assert names(CELLS, "classes", "unet_original") == ["border_cross_entropy", "dice"]
    rare = with_statistics(classes=("a", "b", "c"), class_pixels=(0.9, 0.099, 0.001), class_pictures=(30, 30, 3))
    assert names(rare) == ["cross_entropy", "dice"]
    assert "class_weights" in rules.choose_loss(rare, "classes", "unet")[0][0].options
    many = with_statistics(classes=tuple(f"c{i}" for i in range(150)), class_pixels=(1 / 150,) * 150, class_pictures=(3,) * 150)
    assert names(many) == ["cross_entropy"]
    assert names(with_statistics(class_pixels=(1.0, 0.0))) == ["cross_entropy"]


def test_orientation(tmp_path: Path) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path / "blobs", 2, 48))
    assert not rules.find_orientation(dataset, STATISTICS, dataset.records).upright
    named = with_statistics(classes=("background", "traffic_light"), colourless=0.0)
    assert rules.find_orientation(dataset, named, dataset.records).upright
    assert rules.find_orientation(replace(dataset, format="cityscapes"), STATISTICS, dataset.records).upright
    folder = tmp_path / "sky"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(16):
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[:10] = (10 * index % 90 + 60, 120, 200)
        Image.fromarray(picture).save(folder / "images" / f"{index}.png")
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(folder / "masks" / f"{index}.png")
    sky = open_dataset(folder)
    upright = rules.find_orientation(sky, with_statistics(colourless=0.0), sky.records)
    assert upright.upright
    assert "100%" in upright.reason
    few = rules.find_orientation(sky, with_statistics(colourless=0.0), sky.records[:5])
    assert not few.upright


def test_upright_pictures_keep_their_upper_side() -> None:
    upright, _ = rules.choose_augmentation(STATISTICS, (256, 256), rules.Orientation(True, ""))
    assert (upright.flip_horizontal, upright.flip_vertical, upright.rotate90, upright.elastic) == (0.5, 0.0, False, 0.0)
    free, _ = rules.choose_augmentation(STATISTICS, (256, 256), rules.Orientation(False, ""))
    assert free.flip_vertical > 0
    assert free.rotate90
    assert free.elastic == 10.0
    oblong, _ = rules.choose_augmentation(STATISTICS, (128, 256), rules.Orientation(False, ""))
    assert not oblong.rotate90  # a quarter turn would show other pixels than the picture has


@given(st.integers(1, 10**6))
def test_short_runs_have_short_averages_and_warmups(steps: int) -> None:
    assert 0 < rules.ema_decay(steps) <= 0.999
    assert rules.warmup(steps) <= steps / 20
    optimizer, reasons = rules.choose_optimizer("unet", 4, steps)
    assert set(reasons) <= {"optimizer." + key for key in type(optimizer).model_fields}


# --- memory -------------------------------------------------------------------------------------------------------------


def test_saved_bytes_are_exact() -> None:
    """x (for the weight's gradient) and the output of the sigmoid (for its own) are kept; weights are not counted."""
    layer = torch.nn.Linear(10, 20)
    x = torch.randn(8, 10)
    assert saved_bytes(lambda: layer(x).sigmoid().sum(), layer) == 4 * (8 * 10 + 8 * 20)


def test_step_memory_arithmetic() -> None:
    memory = StepMemory(fixed=1000, per_picture=300)
    assert memory.total(memory.largest_batch(2000)) <= 2000 < memory.total(memory.largest_batch(2000) + 1)
    assert memory.largest_batch(900) == 0


def test_control_group_limits(tmp_path: Path) -> None:
    assert cgroup_memory_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert cgroup_memory_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert cgroup_memory_left(tmp_path) == 995


_PEAK = """
import sys, torch
from delineate.config import *
from delineate.train.probe import InstanceProbe, PatchTime, StepProbe
torch.set_num_threads(1)
config = TrainConfig(
    data=DataConfig(path="x"), input=InputConfig(color="gray", mean=(0.5,), std=(0.2,)), optimizer=OptimizerConfig(ema=None),
    model=ModelConfig(options={"width": 8, "depth": 3}), augment=AugmentConfig(patch=(160, 160)),
)
probe = StepProbe(config, 2, torch.device("cpu"), "fp32")
estimate = probe.memory().total(BATCH)
def status(key): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
probe.seconds(1)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
probe.seconds(BATCH)
print(status("VmHWM") - before, estimate)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_estimated_memory_covers_the_real_peak() -> None:
    """A batch that is said to fit does: the peak of a process in training stays below the estimate, and is not far below it."""
    out = subprocess.run([sys.executable, "-c", _PEAK.replace("BATCH", "8")], capture_output=True, text=True, check=True).stdout
    peak, estimate = map(int, out.split())
    assert 0.2 * estimate < peak < estimate


# --- plans --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take a second, without doing them."""
    monkeypatch.setattr(StepProbe, "seconds", lambda self, count: 1.0)
    monkeypatch.setattr(InstanceProbe, "seconds", lambda self, count: 1.0)


def small_plan(path: Path, **options: Any) -> Plan:
    options = {"minutes": 0.5} | options
    return plan(open_dataset(path), device="cpu", **options)


def test_plan_of_touching_objects(tmp_path: Path) -> None:
    proposal = small_plan(make_blobs_dataset(tmp_path / "data", 6, 64, kind="instance"))
    config = proposal.config
    assert config.model.name == "unet"
    assert config.model.outputs == "border"
    assert config.augment.patch == (64, 64)
    assert config.data.format == "png:instance"
    assert config.steps_per_epoch is not None
    assert config.epochs * config.steps_per_epoch >= 1
    assert all("\n" not in reason and reason for reason in proposal.reasons.values())
    assert {"model.name", "augment.patch", "batch", "loss", "optimizer.name", "epochs", "input.color"} <= set(proposal.reasons)
    content = config.model_dump(mode="json")
    for key in proposal.reasons:  # every reason belongs to a setting that there is
        value = content
        for part in key.split("."):
            value = value[part]


def test_plan_is_written_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proposal = small_plan(make_blobs_dataset(tmp_path / "data", 4, 48))
    file = tmp_path / "elsewhere" / "plan.yaml"
    file.parent.mkdir()
    file.write_text(proposal.to_yaml())
    assert load_config(file) == proposal.config
    for reason in proposal.reasons.values():
        assert f"# {reason}\n" in file.read_text()
    assert Plan.from_json(json.loads(json.dumps(proposal.to_json()))) == proposal
    proposal.print()
    printed = capsys.readouterr().out
    assert "because" in printed
    assert "model.options.width" in printed


@pytest.mark.usefixtures("untimed")
def test_plan_names_the_file_that_was_opened(real_data: Path) -> None:
    """Two annotation files lie in one folder; the plan is for the one that was given."""
    file = real_data / "coco2017_mini" / "annotations" / "instances_val2017.json"
    config = plan(open_dataset(file), path=file, device="cpu", minutes=1).config
    assert config.data.path == file.resolve()
    assert open_dataset(config.data.path, config.data.format).classes == open_dataset(file).classes
    assert not config.augment.rotate90


def test_plans_train(tmp_path: Path) -> None:
    """One step of a planned training, with the planned network, loss and batches, lowers nothing but raises no error."""
    from delineate.data import make_loader
    from delineate.train.build import build_model, conventions_of

    for kind, options in (("instance", {}), ("semantic", {"classes": 3}), ("semantic", {"channels": 3})):
        data = make_blobs_dataset(tmp_path / f"{kind}{options}", 4, 48, kind=kind, **options)  # pyright: ignore
        config = small_plan(data).config.model_copy(update={"workers": 0})
        dataset = split_dataset(open_dataset(config.data.path, config.data.format))
        conventions = conventions_of(config)
        batch = next(iter(make_loader(dataset, dataset.splits["train"], config, conventions, train=True)))
        model, _ = build_model(config, len(dataset.semantic_classes), fresh=True)
        loss, _ = build_loss(config.loss, conventions, len(dataset.semantic_classes))(model(batch.images), batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert len(batch) == config.batch


@pytest.mark.usefixtures("untimed")
def test_less_memory_means_smaller_batches_then_smaller_patches_then_an_error(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 6, 256)
    plenty = small_plan(data, memory=64 << 30).config
    tight = small_plan(data, memory=600 << 20).config
    assert plenty.augment.patch == (256, 256)
    assert tight.batch * tight.augment.patch[0] < plenty.batch * plenty.augment.patch[0]
    with pytest.raises(ConfigError, match="not even one patch"):
        small_plan(data, memory=16 << 20)


def test_more_minutes_more_steps(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 4, 32)
    short, long = (small_plan(data, minutes=minutes).config for minutes in (0.05, 5))
    assert short.epochs * (short.steps_per_epoch or 0) < long.epochs * (long.steps_per_epoch or 0)


@pytest.mark.parametrize(("seconds", "told"), [(1.0, False), (20.0, True)])
def test_too_few_steps_are_said(seconds: float, told: bool) -> None:
    machine = Machine(torch.device("cpu"), "fp32", 1 << 30, 2)
    pace = Pace(seconds, PatchTime(0.01, 0.01, cached=True), 1.0, cores=2, shared=True)
    config, _, notes = schedule(TrainConfig(data=DataConfig(path=Path("data"))), STATISTICS, pace, machine, 15.0)
    assert (config.epochs * (config.steps_per_epoch or 0) < FEW_STEPS) == told
    assert any("steps will not teach much; give more time (--minutes)" in note for note in notes) == told


@pytest.mark.usefixtures("untimed")
def test_paper_network(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 2, 64, kind="instance")
    dataset = open_dataset(data)
    config = plan(dataset, device="cpu", minutes=0.1, model="unet_original").config
    assert config.augment.patch == (380, 380)
    assert config.batch == 1
    assert config.optimizer.name == "sgd"
    assert config.loss[0].name == "border_cross_entropy"


def write_dataset(folder: Path, pictures: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> Path:
    for kind, content in (("images", pictures), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for name, pixels in content.items():
            tifffile.imwrite(folder / kind / f"{name}.tif", pixels)
    return folder


def test_tiny_mixed_and_deep_pictures(tmp_path: Path) -> None:
    """1 x 1 beside 300 x 40 pixels, 16 bits, no foreground in most."""
    rng = np.random.default_rng(0)
    shapes = {"a": (1, 1), "b": (300, 40), "c": (20, 20), "d": (33, 17)}
    pictures = {name: rng.integers(0, 4000, shape).astype(np.uint16) for name, shape in shapes.items()}
    masks = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
    masks["b"][:30] = 1
    proposal = small_plan(write_dataset(tmp_path / "data", pictures, masks))
    assert proposal.config.input.value_range == 4095.0
    assert proposal.config.input.normalization == "image"
    assert proposal.config.augment.patch == (48, 32)  # the training pictures have a median of 33 x 17


def test_no_foreground_is_said(tmp_path: Path) -> None:
    pictures = {name: np.full((24, 24), 7, np.uint8) for name in "abc"}
    masks = {name: np.zeros((24, 24), np.uint8) for name in "abc"}
    folder = write_dataset(tmp_path / "data", pictures, masks)
    (folder / "classes.txt").write_text("background\ncell\n")
    proposal = small_plan(folder)
    assert any("only one class" in note for note in proposal.notes)
    assert [term.name for term in proposal.config.loss] == ["cross_entropy"]
    assert all(value > 0 for value in proposal.config.input.std)


def test_errors(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", {"a": np.zeros((8, 8), np.uint8)}, {"a": np.eye(8, dtype=np.uint8)})
    with pytest.raises(DataError, match="one"):
        small_plan(one)
    data = make_blobs_dataset(tmp_path / "data", 3, 32)
    with pytest.raises(ConfigError, match="unet"):
        small_plan(data, model="unett")
    with pytest.raises(ConfigError, match="minutes is 0"):
        small_plan(data, minutes=0)
    with pytest.raises(ConfigError, match="cuda:99"):
        plan(open_dataset(data), device="cuda:99", minutes=1)


# --- detectors ----------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), diameter=st.floats(0.5, 3000), fast=st.booleans())
def test_sizes_of_detectors_show_small_objects(height: int, width: int, diameter: float, fast: bool) -> None:
    objects = replace(OBJECTS, diameter=(diameter,) * 5)
    resize, reasons = instance_rules.choose_resize(replace(CELLS, size_median=(height, width), objects=objects), fast=fast)
    usual, shorter = 800 if fast else 320, min(height, width)
    assert 1 <= resize.shortest <= min(2 * usual, 2 * shorter)
    assert resize.longest >= resize.shortest
    seen = diameter * resize.shortest / shorter
    assert seen >= 15 or resize.shortest >= min(2 * usual, 2 * shorter) - 1
    assert "diameter" in reasons["input.resize"]


@given(diameter=st.floats(0.5, 3000), side=st.integers(32, 1200))
def test_anchors_of_detectors_reach_small_objects(diameter: float, side: int) -> None:
    statistics = replace(CELLS, size_median=(side, 2 * side), objects=replace(OBJECTS, diameter=(diameter,) * 5))
    usual = [32, 64, 128, 256, 512]
    anchors, reasons = instance_rules.choose_anchors(statistics, ResizeConfig(shortest=2 * side, longest=4 * side), usual)
    assert [size // anchors[0] for size in anchors] == [1, 2, 4, 8, 16]
    assert anchors[0] in (8, 16, 32)
    assert anchors[0] <= 2 * diameter or anchors[0] == 8
    assert anchors[0] == 32 or anchors[0] > diameter  # no smaller than needed
    assert bool(reasons) == (anchors != usual)


def test_long_runs_of_detectors_follow_what_is_published() -> None:
    long, _ = instance_rules.choose_optimizer(16, 90_000)
    assert (long.name, long.lr, long.schedule, long.warmup_steps) == ("sgd", 0.02, "multi_step", 1000)
    short, reasons = instance_rules.choose_optimizer(4, 600)
    assert (short.name, short.schedule) == ("adamw", "cosine")
    assert "600 steps" in reasons["optimizer.name"]


def test_rare_classes_are_drawn_more_often() -> None:
    from delineate.data.dataset import Instance, Record

    def records(rare: int) -> list[Record]:
        both = (Instance(0), Instance(1), Instance(2))
        return [Record(str(n), Path("x"), instances=both if n < rare else both[:2]) for n in range(100)]

    assert instance_rules.choose_sampling(records(40), "abc")[0] == "even"
    sampling, threshold, reasons = instance_rules.choose_sampling(records(2), "abc")
    assert (sampling, threshold) == ("repeat_factor", 0.1)
    assert "'c' is in 2.00% of the pictures" in reasons["data.sampling"]
    sampling, _, reasons = instance_rules.choose_sampling([Record("painted", Path("x"))], "abc")
    assert (sampling, "not counted" in reasons["data.sampling"]) == ("even", True)


@pytest.mark.usefixtures("untimed")
def test_plans_of_detectors(tmp_path: Path) -> None:
    """Every choice has a reason and the plan reads back; with more time the published way, with less memory fewer pictures."""
    data = make_blobs_dataset(tmp_path / "data", 5, (64, 80), kind="instance", channels=3)
    proposal = small_plan(data, model="mask_rcnn_resnet50_fpn", memory=64 << 30)
    config = proposal.config
    assert config.model.options == {"norm": "group", "anchors": [16, 32, 64, 128, 256]}  # blobs are small
    assert config.input.resize is not None
    assert config.input.resize.shortest == 128  # twice the picture
    assert config.augment.shortest
    assert config.batch == 4
    (tmp_path / "plan.yaml").write_text(proposal.to_yaml())
    assert load_config(tmp_path / "plan.yaml") == config
    keys = {"input.resize", "model.options.norm", "augment.shortest", "data.sampling", "batch", "optimizer.schedule", "epochs"}
    assert keys <= set(proposal.reasons)
    assert all("\n" not in reason for reason in proposal.reasons.values())
    with pytest.raises(ConfigError, match="not even one picture of 128 x 160"):
        small_plan(data, model="mask_rcnn_resnet50_fpn", memory=1 << 30)
    with pytest.raises(DataError, match="shows no objects"):
        small_plan(make_blobs_dataset(tmp_path / "classes", 3, 32), model="mask_rcnn_resnet50_fpn")


@pytest.mark.usefixtures("untimed")
def test_keypoints_are_planned_without_asking(real_data: Path) -> None:
    file = real_data / "coco2017_mini" / "annotations" / "person_keypoints_val2017.json"
    config = plan(open_dataset(file), path=file, device="cpu", minutes=1, memory=64 << 30).config
    assert config.model.name == "keypoint_rcnn_resnet50_fpn"
    assert config.model.options["num_keypoints"] == 17
    assert not config.augment.rotate90


def test_statistics_of_a_plan_are_those_of_its_training_pictures(tmp_path: Path) -> None:
    """A validation picture that is different in everything changes no number."""
    data = make_blobs_dataset(tmp_path / "data", 3, 48, val=2)
    before = dataset_statistics(open_dataset(data), split="train")
    for path in (data / "val").rglob("*.png"):
        Image.fromarray(np.full((99, 70), int("masks" in str(path)), np.uint8)).save(path)
    assert dataset_statistics(open_dataset(data), split="train") == before
    assert dataset_statistics(open_dataset(data)) != before
    assert before.pictures == {"train": 3, "val": 2}


def test_values_are_shown_readably() -> None:
    terms = [LossTerm(name="cross_entropy"), LossTerm(name="dice", weight=0.5, options={"power": 2})]
    assert show([term.model_dump() for term in terms]) == "cross_entropy + 0.5 * dice (power 2)"
    assert (show(True), show(1e-3), show([256, 128])) == ("yes", "0.001", "256 x 128")


@pytest.mark.parametrize(("name", "outputs"), [("isbi2012_em/train", "classes"), ("dsb2018_nuclei", "border")])
def test_statistics_of_real_data_give_the_known_choices(real_data: Path, name: str, outputs: str) -> None:
    dataset = split_dataset(open_dataset(real_data / name))
    statistics = dataset_statistics(dataset, sample=20)
    assert rules.choose_outputs(statistics, "unet")[0] == outputs
    assert rules.choose_patch(statistics, fast=False) == (256, 256)
    inputs, _ = rules.choose_input(statistics)
    assert inputs.normalization == ("fixed" if name.startswith("isbi") else "image")
    assert not rules.find_orientation(dataset, statistics, dataset.splits["train"]).upright


def test_options_that_are_asked_for_are_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_blobs_dataset(tmp_path / "data", 4, 48)
    timed = []
    monkeypatch.setattr(StepProbe, "seconds", lambda probe, batch: timed.append(probe.config.model.options) or 0.1)
    inside: dict[str, Any] = {"model": "unet", "options": {"width": 4, "depth": 3}, "channels": 8}
    for model, options in (("hmsa", inside), ("unet", {"width": 5, "norm": "batch"}), ("unet", {"encoder": "resnet18"})):
        proposal = small_plan(data, model=model, options=options)
        chosen = proposal.config.model.options
        assert chosen | options == chosen
        assert timed == [chosen]
        assert all(proposal.reasons[f"model.options.{option}"] == "as asked" for option in options)
        assert ("depth" in chosen) == ("width" in options)
        timed.clear()
