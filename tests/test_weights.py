"""Weight files: what is written comes back, and what cannot be read is explained in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import delineate
from delineate.errors import ConfigError, DataError, DelineateError
from delineate.models import create_model, fuse_for_inference
from delineate.skeleton import KeypointSchema
from delineate.weights import Conventions, load_model, read_info, save_model
from delineate.weights.conventions import Resize

CLASSES = ("background", "cell", "wall")
GRAY = Conventions(color="gray", normalization="image", outputs="border")


def small(**options: Any) -> Any:
    return create_model("unet", 4, **{"in_channels": 1, "width": 4, "depth": 3, **options}).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "best.safetensors"
    save_model(small(), path, classes=CLASSES, conventions=GRAY, extra={"epochs": 3}, licence="CC-BY-4.0")
    return path


def explain(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def rewrite(path: Path, metadata: dict[str, str] | None = None, tensors: dict[str, Any] | None = None) -> None:
    """Change entries of a weight file; a tensor or text of None is taken out."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **(metadata or {})}
    values = {**load_file(path), **(tensors or {})}
    save_file({k: v for k, v in values.items() if v is not None}, path, {k: v for k, v in texts.items() if v is not None})


def test_everything_comes_back(tmp_path: Path, device: torch.device) -> None:
    model = small(norm="instance", decoder_channels=(8, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_model(model, tmp_path / "a.safetensors", classes=CLASSES, conventions=GRAY, extra={"best": {"mean_iou": 0.5}})
    other: Any = load_model(tmp_path / "a.safetensors", device)
    assert (other.classes, other.conventions, other.extra) == (CLASSES, GRAY, {"best": {"mean_iou": 0.5}})
    assert other.architecture["options"]["norm"] == "instance"
    assert not other.training
    x = torch.randn(1, 1, 12, 9)
    with torch.no_grad():
        torch.testing.assert_close(other(x.to(device)).cpu(), model(x), rtol=1e-5, atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name].cpu(), tensor)


def test_a_loaded_model_can_be_saved_and_loaded_again(path: Path, tmp_path: Path) -> None:
    model: Any = load_model(path)
    save_model(model, tmp_path / "again.safetensors", classes=model.classes, conventions=model.conventions)
    again: Any = load_model(tmp_path / "again.safetensors")
    assert again.architecture == model.architecture
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_running_statistics_are_kept(tmp_path: Path) -> None:
    model = small().train()
    model(torch.randn(2, 1, 16, 16))
    save_model(model, tmp_path / "a.safetensors", classes=CLASSES, conventions=GRAY)
    state = load_model(tmp_path / "a.safetensors").state_dict()
    assert state["encoder.levels.0.0.norm.num_batches_tracked"] == 1
    assert state["encoder.levels.0.0.norm.running_mean"].abs().max() > 0


def test_a_compiled_model_is_saved_as_the_model_it_was(tmp_path: Path) -> None:
    model = small()
    save_model(torch.compile(model), tmp_path / "a.safetensors", classes=CLASSES, conventions=GRAY)  # type: ignore[arg-type]
    assert load_model(tmp_path / "a.safetensors").state_dict().keys() == model.state_dict().keys()


def test_info_without_building(path: Path) -> None:
    info = read_info(path)
    assert info.version == delineate.__version__
    assert info.licence == "CC-BY-4.0"
    assert info.classes == CLASSES
    assert info.architecture["name"] == "unet"


def test_the_file_is_plain_safetensors(path: Path) -> None:
    assert load_file(path).keys() == small().state_dict().keys()


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in explain(tmp_path / "none.safetensors")
    assert "is a folder" in explain(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 64])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "is damaged or not a safetensors file" in explain(path)


def test_files_cut_short_anywhere(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    draw = random.Random(0)
    for length in [0, 7, 8, 9, len(content) - 1, *(draw.randrange(len(content)) for _ in range(20))]:
        cut.write_bytes(content[:length])
        assert "is damaged or not a safetensors file" in explain(cut)


def test_flipped_bytes_in_the_header_never_escape(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[draw.randrange(8 + header)] ^= 1 << draw.randrange(8)
        other = tmp_path / "flipped.safetensors"
        other.write_bytes(bytes(damaged))
        try:
            load_model(other)  # a changed character in a class name is still a file
        except DelineateError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most flips raise, some do not


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "format None in its metadata, expected 'delineate-1'" in explain(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("architecture", "{", "its metadata are damaged"),
        ("architecture", json.dumps({"name": "unet"}), "its metadata are damaged"),
        ("architecture", "[]", "its metadata are damaged"),
        ("conventions", json.dumps({"colour": "gray"}), "its metadata are damaged"),
        ("classes", None, "its metadata are damaged"),
        ("architecture", json.dumps({"name": "unet9", "num_classes": 4, "options": {}}), "was written by delineate"),
        ("architecture", json.dumps({"name": "unet", "num_classes": 4, "options": {"future": 1}}), "no option 'future'"),
        ("architecture", json.dumps({"name": ["unet"], "num_classes": 4, "options": []}), "its metadata are damaged"),
    ],
)
def test_metadata_that_cannot_be(path: Path, key: str, text: str | None, message: str) -> None:
    rewrite(path, metadata={key: text})  # type: ignore[dict-item]
    assert message in explain(path)


def test_tensors_that_do_not_fit_are_named(path: Path) -> None:
    rewrite(path, tensors={"head.weight": None, "extra.bias": torch.zeros(2), "head.bias": torch.zeros(9)})
    message = explain(path)
    assert "missing: head.weight" in message
    assert "not of this network: extra.bias" in message
    assert "of another shape: head.bias [9] instead of [4]" in message


def test_many_tensors_are_shortened(path: Path) -> None:
    rewrite(
        path,
        metadata={"architecture": json.dumps({"name": "unet", "num_classes": 4, "options": {"width": 8, "in_channels": 1}})},
    )
    message = explain(path)
    assert len(message) < 1500
    assert "more" in message


@pytest.mark.parametrize(
    ("classes", "conventions", "message"),
    [
        (
            CLASSES,
            Conventions(color="gray"),
            "3 classes with outputs 'classes' need a network with 3 output channels, this one has 4",
        ),
        (CLASSES[:2], GRAY, "2 classes with outputs 'border' need a network with 3 output channels, this one has 4"),
        (CLASSES, Conventions(outputs="distance"), "color 'rgb' has 3 channels, the network takes 1"),
    ],
)
def test_channels_must_agree(tmp_path: Path, classes: tuple[str, ...], conventions: Conventions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        save_model(small(), tmp_path / "a.safetensors", classes=classes, conventions=conventions)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_the_file_before_it_kept(path: Path) -> None:
    """A process that may write no file of more than 9 kB fails as on a full disk, half-way through the file."""
    before = path.read_bytes()
    assert len(before) > 9000
    script = f"""
import resource, signal
from delineate.errors import DelineateError
from delineate.weights import load_model, save_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
model = load_model({str(path)!r})
try:
    save_model(model, {str(path)!r}, classes=model.classes, conventions=model.conventions)
except DelineateError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == f"{path}: cannot be written (File too large); choose a folder that is writable and has room\n"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_weight_file_has_the_permissions_of_any_file(path: Path) -> None:
    other = path.with_suffix(".txt")
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode


def test_a_fused_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was fused for inference; save the one it was made from"):
        save_model(fuse_for_inference(small()), tmp_path / "a.safetensors", classes=CLASSES, conventions=GRAY)


def test_what_is_no_model_of_the_zoo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Conv2d is not a network of the zoo"):
        save_model(torch.nn.Conv2d(1, 4, 3), tmp_path / "a.safetensors", classes=CLASSES, conventions=GRAY)


def test_conventions_of_detectors_come_back_from_json():
    skeleton = KeypointSchema(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),), (0.026, 0.025, 0.025))
    conventions = Conventions(color="bgr", outputs="instances", resize=Resize(640, 1024, "pillow"), keypoints=skeleton)
    assert Conventions.from_json(conventions.to_json()) == conventions
