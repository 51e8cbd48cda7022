"""Samplers and loaders: the same batches for a seed, whatever the number of workers and processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delineate.config import TrainConfig, build_config
from delineate.data import loader as loader_module
from delineate.data.batch import Batch
from delineate.data.dataset import Dataset
from delineate.data.intensity import image_statistics
from delineate.data.load import load_sample
from delineate.data.loader import PatchLoader, TrainingSet, make_loader
from delineate.data.open import open_dataset
from delineate.data.samplers import Draw, EpochSampler, class_centroids, class_uniform_order, even_order
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import DataError
from delineate.weights.conventions import Conventions

AUGMENT = {"patch": [48, 40], "elastic": 5, "rotate": 20, "scale": [0.8, 1.2], "noise": 0.1, "blur": 1.0, "contrast": 0.2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(make_blobs_dataset(tmp_path_factory.mktemp("blobs"), 5, (64, 72), kind="instance", channels=3))


def _config(dataset: Dataset, **settings: Any) -> TrainConfig:
    content = {"data": {"path": str(dataset.root)}, "augment": AUGMENT, "batch": 2, "workers": 0, "device": "cpu", **settings}
    return build_config(content)


def _loader(dataset: Dataset, *, train: bool = True, rank: int = 0, world: int = 1, **settings: Any) -> PatchLoader:
    conventions = settings.pop("conventions", Conventions())
    config = _config(dataset, **settings)
    return make_loader(dataset, dataset.records, config, conventions, train=train, rank=rank, world=world)


def _epoch(loader: PatchLoader, epoch: int) -> list[Batch]:
    sampler: Any = loader.sampler
    sampler.set_epoch(epoch)
    return list(loader)


def _same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("images", "labels", "weight", "distance")]
    return a.names == b.names and all(x is y is None or torch.equal(x, y) for x, y in pairs)


# ---------------------------------------------------------------- orders


@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 40))
def test_even_order_is_even(pictures: int, seed: int, draws: int) -> None:
    order = even_order(pictures, seed)
    counts = np.bincount([order(place) for place in range(draws)], minlength=pictures)
    assert counts.max() - counts.min() <= 1


def test_rounds_differ() -> None:
    order = even_order(20, 0)
    rounds = [tuple(order(place) for place in range(20 * n, 20 * n + 20)) for n in range(3)]
    assert len(set(rounds)) == 3
    assert rounds[0] != tuple(even_order(20, 1)(place) for place in range(20))


def test_class_uniform_order_shows_rare_classes() -> None:
    classes = np.array([0] * 10 + [1] + [3] * 4)  # nothing shows class 2
    order = class_uniform_order(classes, 0)
    draws = np.array([order(place) for place in range(120)])
    assert np.bincount(classes[draws]).tolist() == [40, 40, 0, 40]
    assert np.bincount(draws).tolist() == [4] * 10 + [40] + [10] * 4


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_class_centroids_of_parts(height: int, width: int, part_height: int, part_width: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
    expected = [
        (c, *(np.argwhere(part == c).mean(0) + np.array((y, x))))
        for y in range(0, height, part_height)
        for x in range(0, width, part_width)
        for part in [labels[y : y + part_height, x : x + part_width]]
        for c in range(3)
        if (part == c).any()
    ]
    classes, points = class_centroids(labels, (part_height, part_width), 3)
    np.testing.assert_allclose(np.column_stack([classes, points]), np.array(expected).reshape(-1, 3))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_processes_share_an_epoch(pictures: int, steps: int, batch: int, world: int, epoch: int) -> None:
    order = even_order(pictures, 0)
    samplers = [EpochSampler(order, steps=steps, batch=batch, rank=rank, world=world) for rank in range(world)]
    single = EpochSampler(order, steps=steps, batch=batch * world)
    for sampler in (*samplers, single):
        sampler.set_epoch(epoch)
    parts, whole = [list(s) for s in samplers], list(single)
    assert all(len(part) == len(s) for part, s in zip(parts, samplers, strict=True))
    for step in range(steps):
        together = [draw for part in parts for draw in part[step * batch : (step + 1) * batch]]
        assert sorted(together) == sorted(whole[step * batch * world : (step + 1) * batch * world])


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("outputs", ["classes", "multilabel", "border", "distance"])
def test_batches_have_the_stated_shapes(dataset: Dataset, outputs: Any) -> None:
    conventions = Conventions(outputs=outputs, normalization="image", color="gray")
    batches = _epoch(_loader(dataset, conventions=conventions), 0)
    assert len(batches) == 3
    assert {name for b in batches for name in b.names} == {r.name for r in dataset.records}
    for batch in batches:
        assert batch.images.shape == (2, 1, 48, 40)
        assert batch.images.dtype == torch.float32
        assert batch.labels.shape == ((2, 2, 48, 40) if outputs == "multilabel" else (2, 48, 40))
        assert batch.labels.dtype == (torch.float32 if outputs == "multilabel" else torch.int64)
        assert batch.labels.max() == (2 if outputs == "border" else 1)
        assert batch.weight is None
        assert (batch.distance is not None) == (outputs == "distance")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_number_of_workers_changes_nothing(dataset: Dataset, workers: int) -> None:
    settings: dict[str, Any] = {"conventions": Conventions(outputs="distance", normalization="image"), "steps_per_epoch": 4}
    settings["loss"] = [{"name": "border_cross_entropy"}]
    alone, helped = _loader(dataset, **settings), _loader(dataset, workers=workers, **settings)
    for epoch in (0, 1):
        first, second = _epoch(alone, epoch), _epoch(helped, epoch)
        assert len(first) == len(second) == 4
        assert all(_same(a, b) for a, b in zip(first, second, strict=True))


def test_epochs_differ_and_can_be_repeated(dataset: Dataset) -> None:
    loader = _loader(dataset)
    zero, one = _epoch(loader, 0), _epoch(loader, 1)
    assert not torch.equal(zero[0].images, one[0].images)
    resumed = _epoch(_loader(dataset), 1)
    assert all(_same(a, b) for a, b in zip(one, resumed, strict=True))
    other = _epoch(_loader(dataset, seed=1), 0)
    assert not torch.equal(zero[0].images, other[0].images)


def test_the_rest_of_an_epoch_is_the_same(dataset: Dataset) -> None:
    loader = _loader(dataset, steps_per_epoch=4)
    whole = _epoch(loader, 2)
    sampler: Any = loader.sampler
    sampler.set_epoch(2, skip=3)
    rest = list(loader)
    assert len(rest) == 1
    assert _same(rest[0], whole[3])


def test_two_processes_see_what_one_sees(dataset: Dataset) -> None:
    single = _epoch(_loader(dataset, batch=4), 1)
    parts = [_epoch(_loader(dataset, batch=2, rank=rank, world=2), 1) for rank in range(2)]
    assert len(single) == len(parts[0]) == len(parts[1])
    for whole, left, right in zip(single, *parts, strict=True):
        assert torch.equal(whole.images[0::2], left.images)
        assert torch.equal(whole.images[1::2], right.images)
        assert whole.names[0::2] == left.names


def test_validation_shows_each_picture_whole_and_once(dataset: Dataset) -> None:
    batches = list(_loader(dataset, train=False, workers=1))
    assert [b.names[0] for b in batches] == [r.name for r in dataset.records]
    sample = load_sample(dataset, dataset.records[2], ("semantic",))
    assert sample.semantic is not None
    assert torch.equal(batches[2].labels[0], sample.semantic.long())
    assert batches[2].images.shape == (1, 3, 64, 72)
    parts = [[b.names[0] for b in _loader(dataset, train=False, rank=rank, world=2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(r.name for r in dataset.records)


def test_statistics_are_those_of_the_whole_picture(dataset: Dataset) -> None:
    conventions = Conventions(normalization="image")
    still = {"patch": [16, 16], "flip_horizontal": 0, "foreground": 0}
    config = _config(dataset, augment=still)
    pictures = TrainingSet(dataset, dataset.records, config, conventions, train=True)
    patch = pictures[Draw(1, 5)].images[0]
    image = load_sample(dataset, dataset.records[1], ()).image.as_subclass(torch.Tensor)
    mean, std = image_statistics(image)
    whole = (image.float() - mean[:, None, None]) / std[:, None, None]
    windows = whole.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 49, 57, 16, 16)
    differences = (windows - patch[:, None, None]).abs().amax((0, 3, 4))
    assert differences.min() < 1e-5


def test_weights_are_made_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(dataset: Any, record: Any, want: Any) -> Any:
        calls.append(record.name)
        return load_sample(dataset, record, want)

    monkeypatch.setattr(loader_module, "load_sample", counted)
    border = {"loss": [{"name": "border_cross_entropy"}], "targets": {"w0": 7.0, "sigma": 3.0}}
    loader = _loader(dataset, conventions=Conventions(outputs="border"), **border)
    batches = _epoch(loader, 0) + _epoch(loader, 1)
    assert sorted(calls) == sorted(r.name for r in dataset.records)
    weights = torch.cat([b.weight for b in batches if b.weight is not None])
    assert weights.shape == (12, 48, 40)
    assert weights.min() > 0.9999
    assert 3.0 < weights.max() <= 8.0  # between touching objects, in the band
    calls.clear()
    _epoch(_loader(dataset, data={"path": str(dataset.root), "cache": False}), 0)
    assert len(calls) == 6


def test_class_uniform_sampling_cuts_where_the_class_is(tmp_path: Path) -> None:
    """One of twenty pictures has one small object: every second patch shows it, in all its random sizes and turns."""
    root = make_blobs_dataset(tmp_path, 20, 96)
    dataset = open_dataset(root)
    for number, record in enumerate(dataset.records):
        labels = np.zeros((96, 96), np.uint8)
        if not number:
            labels[70:74, 9:13] = 1
        assert record.label_map is not None
        record.label_map.path.write_bytes(_png(labels))
    augment = {"patch": [24, 24], "scale": [0.8, 1.25], "rotate": 20.0, "rotate90": True, "foreground": 0.0}
    for sampling, fewest, most in (("class_uniform", 30, 40), ("even", 0, 5)):
        loader = _loader(dataset, data={"path": str(root), "sampling": sampling}, augment=augment, steps_per_epoch=30)
        shown = [bool((labels == 1).any()) for batch in _epoch(loader, 0) for labels in batch.labels]
        assert len(shown) == 60
        assert fewest <= sum(shown) <= most


def _png(pixels: np.ndarray) -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path, 4, 48))
    broken = dataset.records[2].image
    broken.write_bytes(broken.read_bytes()[:300])
    loader = _loader(dataset, workers=workers)
    with pytest.raises(DataError) as caught:
        _epoch(loader, 0)
    message = str(caught.value)
    assert str(broken) in message
    assert "\n" not in message
    assert "decode" in str(caught.value.__cause__)  # the traceback of where it happened


SCRIPT = """
import sys, time
from delineate.config import build_config
from delineate.data import make_loader, open_dataset
from delineate.weights.conventions import Conventions

if __name__ == "__main__":
    dataset = open_dataset(sys.argv[1])
    config = build_config({"data": {"path": sys.argv[1]}, "augment": {"patch": [32, 32]}, "steps_per_epoch": 10**6})
    for _ in make_loader(dataset, dataset.records, config, Conventions(), train=True):
        print("running", flush=True)
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    root = make_blobs_dataset(tmp_path / "data", 4, 48)
    script = tmp_path / "read.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        forked = [worker.pid for worker in workers if any("forkserver" in word for word in worker.cmdline())]
        assert len(forked) >= 2
        assert os.getpgid(process.pid) not in map(os.getpgid, forked)  # a signal to our group, as torchrun's, spares them
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_missing_file_is_named(tmp_path: Path) -> None:
    dataset = open_dataset(make_blobs_dataset(tmp_path, 3, 48))
    dataset.records[1].image.unlink()
    with pytest.raises(DataError, match=str(dataset.records[1].image)):
        _epoch(_loader(dataset), 0)


def test_a_fault_of_ours_keeps_its_traceback_and_names_the_file(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(loader_module, "load_sample", fault)
    with pytest.raises(ZeroDivisionError) as caught:
        _epoch(_loader(dataset), 0)
    assert any(str(dataset.root) in note for note in caught.value.__notes__)


def test_no_pictures_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no pictures for validation"):
        make_loader(dataset, (), _config(dataset), Conventions(), train=False)


def test_workers_start_without_the_cache(dataset: Dataset) -> None:
    pictures = TrainingSet(dataset, dataset.records, _config(dataset), Conventions(), train=True)
    before = len(pickle.dumps(pictures))
    _ = [pictures[Draw(n, n)] for n in range(5)]
    assert len(pickle.dumps(pictures)) == before


def test_threads_are_given_back(dataset: Dataset) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _epoch(_loader(dataset), 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- real data


@pytest.mark.parametrize("name", ["isbi2012_em", "dsb2018_nuclei", "chase_db1"])
def test_real_data(real_data: Path, name: str) -> None:
    dataset = open_dataset(real_data / name)
    settings = {"steps_per_epoch": 2, "augment": {**AUGMENT, "patch": [128, 160]}}
    conventions = Conventions(outputs="border" if dataset.kind == "instance" else "classes")
    config = _config(dataset, **settings)
    records = dataset.records[:3]
    for batch in _epoch(make_loader(dataset, records, config, conventions, train=True), 0):
        assert batch.images.shape == (2, 3, 128, 160)
        assert torch.isfinite(batch.images).all()
        counted = batch.labels[batch.labels != 255]
        assert counted.max() < conventions.output_channels(len(dataset.semantic_classes))
