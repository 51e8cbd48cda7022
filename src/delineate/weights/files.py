"""Weight files: safetensors whose metadata says which network they belong to, what goes in and what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import delineate
from delineate.errors import ConfigError, DataError
from delineate.files import write_bytes
from delineate.models.instance import InstanceModel
from delineate.models.semantic import SemanticModel
from delineate.models.zoo import create_model
from delineate.weights.conventions import Conventions

FORMAT = "delineate-1"  # changes when files can no longer be read by the version before


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """What a weight file says about itself."""

    architecture: dict[str, Any]  # "name", "num_classes" (output channels), "options", as `create_model` takes them
    classes: tuple[str, ...]
    conventions: Conventions
    version: str  # of delineate, which wrote it
    licence: str | None
    extra: dict[str, Any]  # what the writer added: a summary of the training


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str],
    conventions: Conventions,
    extra: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> None:
    """Write the weights of a network of the zoo to `path` (.safetensors), whole or not at all.

    `classes` name the output channels, `extra` is anything that JSON holds, `licence` is an SPDX name. A model compiled by
    torch.compile is written as the model it was. Raises `ConfigError` where the network does not have the channels that
    `classes` and `conventions` ask for, and `DelineateError` where the file cannot be written.
    """
    model = getattr(model, "_orig_mod", model)
    architecture: Any = getattr(model, "architecture", None)
    if architecture is None:
        raise ConfigError(f"{type(model).__name__} is not a network of the zoo; build it with delineate.create_model")
    if architecture.get("fused"):
        raise ConfigError("the network was fused for inference; save the one it was made from")
    _check_channels(architecture, len(classes), conventions)
    metadata = {
        "format": FORMAT,
        "delineate": delineate.__version__,
        "architecture": json.dumps(architecture),
        "classes": json.dumps(list(classes)),
        "conventions": conventions.to_json(),
        "licence": json.dumps(licence),
        "extra": json.dumps(dict(extra or {})),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # In memory first: safetensors' own writer renames a file that only its owner may read, and hides the reason of a failure.
    write_bytes(path, save(tensors, metadata))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> SemanticModel | InstanceModel:
    """Rebuild the network that `save_model` wrote, in evaluation mode, with `.classes`, `.conventions` and `.extra`.

    Raises `DataError` for a file that is missing, damaged, not ours, or whose tensors do not fit the architecture it names.
    """
    info = read_info(path)
    try:
        model = create_model(info.architecture["name"], info.architecture["num_classes"], **info.architecture["options"])
    except ConfigError as error:
        raise DataError(
            f"{path}: was written by delineate {info.version}, and this is {delineate.__version__}: {error}"
        ) from error
    tensors = _read_tensors(Path(path))
    check_tensors(path, model.state_dict(), tensors, "the architecture it names", "; save the model again")
    model.load_state_dict(tensors)
    model.classes, model.conventions, model.extra = info.classes, info.conventions, info.extra
    return model.eval().to(device)


def read_info(path: str | Path) -> WeightsInfo:
    """Read what a weight file says about itself, without its tensors; raises `DataError` as `load_model` does."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {metadata.get('format')!r} in its metadata, expected {FORMAT!r}; "
            "give a .safetensors file that delineate wrote"
        )
    try:
        return WeightsInfo(
            architecture=_read_architecture(metadata["architecture"]),
            classes=tuple(json.loads(metadata["classes"])),
            conventions=Conventions.from_json(metadata["conventions"]),
            version=metadata["delineate"],
            licence=json.loads(metadata["licence"]),
            extra=json.loads(metadata["extra"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its metadata are damaged or of another version ({error!r}); save the model again") from error


def is_own(path: Path) -> bool:
    """Whether a file is safetensors that `save_model` wrote, of any version."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format", "").startswith("delineate-")
    except (OSError, SafetensorError):
        return False


def _read_architecture(text: str) -> dict[str, Any]:
    match json.loads(text):
        case {"name": str(name), "num_classes": int(num_classes), "options": dict(options)}:
            return {"name": name, "num_classes": num_classes, "options": options}
        case other:
            raise ValueError(f"architecture {other!r}")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if not path.exists():
        return DataError(f"{path}: no such file; give the path of a .safetensors file, such as RUN/weights/best.safetensors")
    if path.is_dir():
        return DataError(f"{path}: is a folder; give a .safetensors file, such as {path}/weights/best.safetensors")
    reason = " ".join(str(error).split())
    return DataError(f"{path}: is damaged or not a safetensors file ({reason}); copy it again or save the model again")


def _check_channels(architecture: dict[str, Any], num_classes: int, conventions: Conventions) -> None:
    outputs, inputs = architecture["num_classes"], architecture["options"].get("in_channels", 3)
    if outputs != conventions.output_channels(num_classes):
        raise ConfigError(
            f"{num_classes} classes with outputs '{conventions.outputs}' need a network with "
            f"{conventions.output_channels(num_classes)} output channels, this one has {outputs}"
        )
    if inputs != conventions.channels:
        raise ConfigError(f"color '{conventions.color}' has {conventions.channels} channels, the network takes {inputs}")


def check_tensors(
    path: str | Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], network: str, fix: str = ""
) -> None:
    """Raise a `DataError` that lists the tensors which are missing, left over or of another shape than `network` has."""
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "not of this network": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise DataError(f"{path}: tensors do not fit {network} ({listed}){fix}")


def _shorten(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
