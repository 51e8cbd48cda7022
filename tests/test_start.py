"""Starting from given weights: which network and input a run takes from them, and which of its layers are new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from _configs import QUICK
from delineate.config import TrainConfig, build_config
from delineate.data import open_dataset
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import ConfigError
from delineate.models import create_model
from delineate.skeleton import COCO_PERSON
from delineate.train.build import build_model, prepare_dataset
from delineate.train.optim import build_optimizer
from delineate.train.planner import plan
from delineate.train.start import adopt, is_weights
from delineate.train.step import training_step
from delineate.train.task import make_task
from delineate.weights import Conventions, load_model, save_model
from delineate.weights.conventions import Resize

TINY: dict[str, Any] = {"encoder": "resnet18", "width": 8, "box_width": 8}
MASKS = TINY | {"mask_convs": 1, "norm": "frozen", "norm_eps": 0.0}
POINTS = TINY | {"mask_convs": 1, "keypoint_convs": 1, "keypoint_width": 8}
SEEN = Conventions(color="bgr", value_range=1.0, mean=(103.0, 116.0, 123.0), std=(1.0, 1.0, 1.0), outputs="instances")
INPUT = {"color": "bgr", "value_range": 1.0, "mean": list(SEEN.mean), "std": list(SEEN.std)}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mask_rcnn_resnet50_fpn": (MASKS, {}),
    "mask_keypoint_rcnn_resnet50_fpn": (POINTS, {"keypoints": COCO_PERSON}),
    "panoptic_fpn_resnet50": (TINY | {"mask_convs": 1, "stuff_width": 32, "num_stuff": 7}, {"stuff": tuple("abcdefg")}),
}
POINTS_LAST = ["mask_head.layers.logits", "keypoint_head.heatmaps"]
PANOPTIC_LAST = ["mask_head.layers.logits", "semantic_head.classifier"]


def write_weights(folder: Path, name: str) -> Path:
    """A detector of four classes with random weights, used to Detectron2's input and larger pictures."""
    options, more = NETWORKS[name]
    model = create_model(name, 4, **options)
    path = folder / f"{name}.safetensors"
    conventions = replace(SEEN, resize=Resize(640, 900, "pillow"), **more)
    save_model(model, path, classes=("cat", "cow", "dog", "yak"), conventions=conventions)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), "mask_rcnn_resnet50_fpn")


def make_config(weights: Path, model: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    return build_config({"data": {"path": "x"}, "model": {"weights": str(weights)} | (model or {})} | changes)


def build(config: TrainConfig, classes: int) -> tuple[Any, list[str]]:
    conventions = Conventions(**adopt(config).input.model_dump(exclude={"resize"}), outputs="instances")
    return build_model(adopt(config), classes, fresh=True, conventions=conventions)


class TestAdopt:
    def test_network_and_input_are_those_of_the_file(self, weights: Path) -> None:
        config = adopt(make_config(weights, {"options": {"samples": 64}}, input={"resize": {"shortest": 96, "longest": 96}}))
        assert (config.model.name, config.model.outputs) == ("mask_rcnn_resnet50_fpn", "instances")
        assert {key: config.model.options[key] for key in MASKS} == MASKS
        assert config.model.options["samples"] == 64
        assert "in_channels" not in config.model.options
        assert config.input.model_dump(include=set(INPUT), mode="json") == INPUT
        assert config.input.resize is not None
        assert config.input.resize.shortest == 96
        assert adopt(config) == config

    def test_a_config_that_says_all_does_not_need_the_file(self, weights: Path, tmp_path: Path) -> None:
        config = adopt(make_config(weights))
        gone = config.model.model_copy(update={"weights": tmp_path / "gone.safetensors"})
        whole = build_config(config.model_copy(update={"model": gone}).model_dump(mode="json"))
        assert adopt(whole) == whole

    def test_files_and_names_are_told_apart(self) -> None:
        with pytest.raises(ConfigError, match=r"'x\.pth': is a file of another library; .* delineate weights import x\.pth"):
            is_weights("x.pth")


class TestStart:
    @pytest.mark.parametrize(
        ("name", "options", "last", "counts"),
        [
            ("mask_keypoint_rcnn_resnet50_fpn", {"num_keypoints": 14}, POINTS_LAST, ", 17 keypoints and not 14"),
            ("panoptic_fpn_resnet50", {"num_stuff": 2}, PANOPTIC_LAST, ", 7 kinds of stuff and not 2"),
        ],
    )
    def test_only_last_layers_are_new_and_named(
        self, name: str, options: dict[str, Any], last: list[str], counts: str, tmp_path: Path
    ) -> None:
        path, layers = write_weights(tmp_path, name), ["box_head.classifier", "box_head.deltas", *last]
        assert not adopt(make_config(path)).model.options.keys() & options.keys()  # the data decide
        model, notes = build(make_config(path, {"options": options}), 2)
        what = f"it tells 4 classes and not 2{counts} apart"
        assert notes == [f"started from {path}, but {', '.join(layers)} from random weights: {what}"]
        given = load_model(path).state_dict()
        new = {key.rpartition(".")[0] for key, tensor in model.state_dict().items() if not torch.equal(tensor, given[key])}
        assert new == set(layers)

    def test_another_input_is_said(self, weights: Path) -> None:
        _, (_, note) = build(make_config(weights, input={"mean": [0.5, 0.5, 0.5]}), 4)
        assert note.startswith("its weights are used to input of mean (103.0, 116.0, 123.0) and not (0.5, 0.5, 0.5)")

    def test_frozen_norms_may_learn_and_stages_be_frozen(self, weights: Path) -> None:
        model, (note,) = build(make_config(weights, {"options": {"norm": "batch", "norm_eps": 1e-5, "frozen_stages": 2}}), 4)
        assert note == f"started from {weights}"
        given = load_model(weights).state_dict()
        own = model.state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in given.items())
        assert all(key.endswith("num_batches_tracked") for key in own.keys() - given.keys())
        assert not model.encoder.conv1.weight.requires_grad

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"options": {"width": 16}}, r"of another shape: neck.*\[8, 64, 1, 1\] instead of \[16, 64, 1, 1\], .* width 8"),
            ({"options": {"norm": "batch"}}, r"norm_eps is 0\.0, with which norm 'batch' cannot learn"),
            ({"options": {"norm": "group", "norm_eps": 1e-5}}, r"not of this network: encoder\.bn1\.running_mean"),
            ({"name": "keypoint_rcnn_resnet50_fpn"}, "holds the network 'mask_rcnn_resnet50_fpn', the config asks for"),
        ],
    )
    def test_what_does_not_fit_is_listed(self, weights: Path, model: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            build(make_config(weights, model), 2)
        assert "\n" not in str(caught.value)


def test_frozen_stages_stay_as_they_were_given(tmp_path: Path) -> None:
    """In steps from given weights, with statistics of normalisation that learn elsewhere."""
    data = make_blobs_dataset(tmp_path / "data", 2, (48, 64), val=1, kind="instance", channels=3)
    path = write_weights(tmp_path, "mask_rcnn_resnet50_fpn")
    options = {"norm": "batch", "norm_eps": 1e-5, "frozen_stages": 2, "samples": 16}
    resize = {"resize": {"shortest": 64, "longest": 64}}
    config = make_config(path, {"options": options}, **QUICK, data={"path": str(data)}, input=resize, steps_per_epoch=1)
    task = make_task(adopt(config), prepare_dataset(config.data), fresh=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, build_optimizer(task.model, config.optimizer))
    model.train()
    for batch in task.loader(rank=0, world=1):
        assert training_step(fabric, model, optimizer, task.loss, [batch]).finite
    before, after = load_model(path).state_dict(), task.model.state_dict()
    still = {name for name, tensor in before.items() if name.startswith("encoder.") and torch.equal(tensor, after[name])}
    assert still == {name for name in before if name.startswith(("encoder.conv1", "encoder.bn1", "encoder.layer1"))}


def test_a_plan_keeps_the_network_of_the_weights(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 3, 32)
    model = create_model("unet", 2, in_channels=1, width=4, depth=2)
    seen = Conventions(color="gray", mean=(0.4,), std=(0.3,))
    save_model(model, tmp_path / "unet.safetensors", classes=("ground", "blob"), conventions=seen)
    dataset = open_dataset(data)
    plans = [plan(dataset, device="cpu", minutes=0.1, model=name) for name in ("unet", str(tmp_path / "unet.safetensors"))]
    config = plans[1].config
    assert (config.model.name, config.model.options["width"], config.input.mean) == ("unet", 4, (0.4,))
    assert config.optimizer.lr == pytest.approx(plans[0].config.optimizer.lr / 10)
    assert plans[1].reasons["model.name"] == "that of the weights"
