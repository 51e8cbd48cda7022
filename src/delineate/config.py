"""The configuration of a training run, typed once: YAML, flags over it, defaults under; unknown keys fail with a suggestion."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from delineate.errors import ConfigError, suggest


class Strict(BaseModel):
    """A group of settings without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Strict):
    """Where the pictures are and how they are read."""

    path: Path
    format: str | None = Field(default=None, description="png, coco, yolo, voc, cityscapes or labelme; None: recognised")
    train_split: str = "train"
    val_split: str = "val"
    val_fraction: float = Field(default=0.2, gt=0, lt=1, description="share held back when the data has no validation split")
    cache: bool = Field(default=True, description="keep decoded pictures in memory, as far as a quarter of what is free goes")
    sampling: Literal["even", "class_uniform", "repeat_factor"] = Field(
        default="even",
        description="each picture as often; or each class as often, patches around where it is; or pictures of rare classes "
        "again and again",
    )
    repeat_threshold: float = Field(
        default=1e-3, gt=0, le=1, description="repeat_factor: classes in a smaller share of the pictures count as rare"
    )
    group_aspect: bool = Field(default=True, description="detectors: batches of pictures of like shape, which pad less")


class ResizeConfig(Strict):
    """Mirrors `delineate.weights.Resize`: how a detector's pictures are resized, in prediction as in training."""

    shortest: int = Field(default=800, ge=1, description="pixels of the shorter side")
    longest: int = Field(default=1333, ge=1, description="most pixels of the longer side")
    filter: Literal["bilinear", "pillow"] = Field(
        default="bilinear", description="without antialiasing; or Pillow's, with it, of 8-bit pictures"
    )


class InputConfig(Strict):
    """Mirrors `delineate.weights.Conventions`, with which it is stored beside the weights."""

    color: Literal["gray", "rgb", "bgr"] = "rgb"
    value_range: float = Field(default=255.0, gt=0)
    normalization: Literal["fixed", "image"] = "fixed"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: ResizeConfig | None = Field(default=None, description="detectors only; None: 800, at most 1333")


class ModelConfig(Strict):
    """A name of the zoo and the keyword arguments of its builder."""

    name: str = "unet"
    options: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = Field(default=None, description="start from these weights instead of random ones")
    outputs: Literal["classes", "multilabel", "border", "distance", "instances"] = Field(
        default="classes", description="of a semantic network; detectors always give instances"
    )


class AugmentConfig(Strict):
    """Random changes of each training picture; 0 turns one off."""

    patch: tuple[int, int] = Field(default=(256, 256), description="height and width of what the network sees in training")
    flip_horizontal: float = Field(default=0.5, ge=0, le=1, description="probability")
    flip_vertical: float = Field(default=0.0, ge=0, le=1, description="probability")
    rotate90: bool = Field(default=False, description="random multiples of 90 degrees")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest angle in degrees")
    scale: tuple[float, float] = Field(default=(1.0, 1.0), description="range of the random zoom")
    elastic: float = Field(
        default=0.0, ge=0, description="standard deviation, in pixels, of the 3x3 grid's displacements (U-Net: 10)"
    )
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0)
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = Field(default=0.0, ge=0, description="largest standard deviation of added noise, picture scaled to 0..1")
    blur: float = Field(default=0.0, ge=0, description="largest sigma of a Gaussian blur in pixels")
    foreground: float = Field(
        default=0.33, ge=0, le=1, description="share of patches centred on a pixel of a randomly drawn class"
    )
    shortest: tuple[int, ...] = Field(
        default=(), description="detectors: lengths of the shorter side to choose from; none: that of input.resize"
    )
    jitter: tuple[float, float] | None = Field(
        default=None,
        description="detectors: large-scale jitter, the range of the picture's size over `patch`; (0.1, 2) is usual",
    )
    copy_paste: float = Field(default=0.0, ge=0, le=1, description="detectors: probability of objects of another picture")


class TargetConfig(Strict):
    """What the network learns beside class ids."""

    object_class: int | None = Field(
        default=None, ge=0, description="class whose pieces are objects, without instance maps; None: all but 0"
    )
    border_width: int = Field(
        default=2, ge=1, description="pixels of the band inside each object's border, for outputs 'border'"
    )
    w0: float = Field(default=10.0, ge=0, description="weight between touching objects, for the loss 'border_cross_entropy'")
    sigma: float = Field(default=5.0, gt=0, description="its reach in pixels")
    balance: bool = Field(default=False, description="classes of a picture weigh the same in that loss")


class LossTerm(Strict):
    """One summand of the loss."""

    name: Literal[
        "cross_entropy",
        "border_cross_entropy",
        "ohem_cross_entropy",
        "relaxed_cross_entropy",
        "dice",
        "jaccard",
        "tversky",
        "focal",
        "lovasz",
        "rmi",
    ]
    weight: float = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


DetectorLoss = Literal["rpn_objectness", "rpn_box", "classifier", "box", "mask", "keypoint", "semantic"]


class OptimizerConfig(Strict):
    """How weights follow gradients."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1, description="SGD only")
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["constant", "poly", "cosine", "multi_step"] = "poly"
    power: float = Field(default=0.9, gt=0, description="exponent of the poly schedule")
    milestones: tuple[float, ...] = Field(
        default=(2 / 3, 8 / 9), description="multi_step: shares of the run after which the rate is multiplied by gamma"
    )
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_factor: float = Field(default=0.0, ge=0, le=1, description="share of the rate that the warm-up starts from")
    accumulate: int = Field(default=1, ge=1, description="batches summed before a step")
    clip_norm: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the averaged weights that are validated and kept")


class TrainConfig(Strict):
    """Everything that determines a run."""

    data: DataConfig
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    targets: TargetConfig = TargetConfig()
    loss: tuple[LossTerm, ...] = (LossTerm(name="cross_entropy"), LossTerm(name="dice"))
    loss_weights: dict[DetectorLoss, float] = Field(
        default_factory=dict, description="detectors: factors of their losses, such as mask: 2; 1 where none is given"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: int = Field(default=50, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1, description="batches in an epoch; None: each picture once")
    batch: int = Field(default=4, ge=1, description="pictures in a batch, of each process")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    device: str = "auto"
    devices: int = Field(default=1, ge=1, description="processes on this machine (DDP)")
    nodes: int = Field(default=1, ge=1)
    workers: int = Field(default=2, ge=0, description="loader processes")
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    monitor: str | None = Field(
        default=None,
        description="validation number that picks the best checkpoint, larger is better; None: mean_iou, or of detectors "
        "pq, keypoint_AP, mask_AP or box_AP, the first that they have",
    )
    patience: int | None = Field(default=None, ge=1, description="epochs without improvement before the run ends early")
    validate_every: int = Field(default=1, ge=1, description="epochs")
    tensorboard: bool = True


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a YAML file into a `TrainConfig`; `overrides` maps dotted keys ("optimizer.lr") to values that win over the file.

    A relative `data.path` is taken from the folder of the YAML file. Raises `ConfigError` that names the file and the key.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a YAML file, or --data DIR without one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, expected keys and values such as 'data: ...'")
    if isinstance(content.get("data"), str):
        content["data"] = {"path": content["data"]}
    if isinstance(content.get("data"), dict) and "path" in content["data"]:
        content["data"]["path"] = path.parent / content["data"]["path"]
    return build_config(content, overrides, source=str(path))


def build_config(content: dict[str, Any], overrides: dict[str, Any] | None = None, *, source: str = "config") -> TrainConfig:
    """Validate `content` with `overrides` laid over it; a `ConfigError` names `source`, the key, the value and the fix."""
    for key, value in (overrides or {}).items():
        group = content
        *parents, last = key.split(".")
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{source}: '{key}' cannot be set, because '{parent}' is the value {group!r}")
        group[last] = value
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` of `--set`; the value is read as YAML.

    >>> parse_override("augment.patch=[128, 128]")
    ('augment.patch', [128, 128])
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: expected key=value, for example --set optimizer.lr=0.01")
    return key.strip(), yaml.safe_load(value)


def dump_config(config: TrainConfig) -> str:
    """Return the YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("tuple_type", "list_type"):
        example = f", such as [{error['input']}, {error['input']}]" if isinstance(error["input"], (int, float)) else ""
        return f"'{key}' is {error['input']!r}: expected a list{example}"
    if error["type"] != "extra_forbidden":
        return f"'{key}' is {error['input']!r}: {error['msg']}"
    return f"unknown key '{key}'{suggest(str(error['loc'][-1]), _keys_of(error['loc'][:-1]))}"


def _keys_of(location: tuple[Any, ...]) -> list[str]:
    """Keys of the group of settings that `location` leads to."""
    model: type[BaseModel] = TrainConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
