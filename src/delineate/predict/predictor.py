"""`Predictor`: weights and pictures in, `Results` out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from delineate.devices import pick_device, pick_precision
from delineate.errors import ConfigError
from delineate.models.instance import InstanceModel
from delineate.predict.instances import InstancePredictor
from delineate.predict.objects import Method
from delineate.predict.pictures import Picture, Source
from delineate.predict.results import Results
from delineate.predict.semantic import WHOLE, WINDOW, SemanticPredictor
from delineate.weights import load_model

__all__ = ["WHOLE", "WINDOW", "Predictor", "Source"]


class Predictor:
    """Predicts pictures of any size with one network: one that gives each pixel a class, or one that finds objects.

    Detectors see the whole picture, resized as `Conventions.resize` says; the arguments from `window` on are not for them.

    Args:
        weights: a .safetensors file, or a module with `classes` and `conventions` (as `load_model` returns); the predictor
            works on a copy, so the module may go on being trained.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16, fp16, or auto: bf16 where the device computes it fast.
        score_threshold: objects with a lower score are left out: the mean foreground probability, or a detector's score; for
            multilabel networks, the probability from which a pixel belongs to a class.
        batch: windows at once, or for detectors pictures, which share a batch where they are padded to the same size; None: 1
            on a CPU, 8 elsewhere.
        compile: compile the network with torch.compile; worthwhile for many pictures of one size, or large ones.
        window: largest side that is predicted in one piece, or (height, width); None: pictures of up to 1024 x 1024 pixels
            whole, larger ones in windows of 512.
        overlap: share of a window that its neighbour predicts too; none for networks with valid convolutions, whose windows
            are exact.
        flips: average over four mirrored views.
        scales: predict the picture at these scales, 1 among them: other ones for a network that attends to scales, and for any
            other the average of its logits.
        objects: how objects are told apart: components, watershed, border, distance, none, or auto: as the network was
            trained, and components where it only knows classes, the first of which is the background.
        min_area: pixels of the smallest object that is kept.
    """

    def __init__(
        self,
        weights: str | Path | nn.Module,
        device: str | torch.device = "auto",
        precision: str = "auto",
        score_threshold: float = 0.5,
        *,
        window: int | tuple[int, int] | None = None,
        overlap: float = 0.25,
        flips: bool = False,
        scales: Sequence[float] | None = None,
        batch: int | None = None,
        objects: Method | Literal["auto", "none"] = "auto",
        min_area: int = 10,
        compile: bool = False,
    ) -> None:
        model: Any = weights if isinstance(weights, nn.Module) else load_model(weights)
        for name in ("classes", "conventions"):
            if not hasattr(model, name):
                raise ConfigError(f"the network has no '{name}'; set it, or save it with save_model and give that file")
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        common: dict[str, Any] = {
            "device": self.device,
            "precision": self.precision,
            "score_threshold": score_threshold,
            "batch": batch or (1 if self.device.type == "cpu" else 8),
            "compile": compile,
        }
        of_pixels: dict[str, Any] = {
            "window": window,
            "overlap": overlap,
            "flips": flips,
            "scales": scales,
            "objects": objects,
            "min_area": min_area,
        }
        if model.conventions.outputs == "instances":
            _refuse_options(of_pixels)
            self._engine = InstancePredictor(cast("InstanceModel", getattr(model, "_orig_mod", model)), **common)
        else:
            self._engine = SemanticPredictor(model, **common, **of_pixels)
        self.classes, self.conventions = self._engine.classes, self._engine.conventions

    @property
    def semantic(self) -> SemanticPredictor:
        """What predicts the classes of pixels; raises `ConfigError` where the network finds objects."""
        if isinstance(self._engine, InstancePredictor):
            raise ConfigError("the network finds objects; this is for networks that give each pixel a class")
        return self._engine

    @property
    def instances(self) -> InstancePredictor:
        """What finds objects; raises `ConfigError` where the network gives each pixel a class."""
        if isinstance(self._engine, SemanticPredictor):
            raise ConfigError("the network gives each pixel a class; this is for networks that find objects")
        return self._engine

    @overload
    def __call__(self, source: Source) -> Results: ...
    @overload
    def __call__(self, source: Sequence[Source]) -> list[Results]: ...
    def __call__(self, source: Source | Sequence[Source]) -> Results | list[Results]:
        """Predict a picture, or each of a list.

        A picture is a path, a PIL image, an array (H, W) grey or (H, W, 3) RGB, or a tensor (C, H, W); uint8, uint16 or float.
        Raises `DataError` for a picture that cannot be read.
        """
        if isinstance(source, (list, tuple)):
            names = [None if isinstance(one, str | Path) else f"image{index}" for index, one in enumerate(source)]
            return list(self.predict_all(Picture(one, name=name) for one, name in zip(source, names, strict=True)))
        return self.predict(cast("Source", source))

    def predict(self, source: Source, *, frame: int = 0, name: str | None = None) -> Results:
        """Predict one picture, or one page of a TIFF; `name` is that of the results: by default the file's, or "image"."""
        return self._engine.predict(Picture(source, frame, name))

    def predict_all(self, pictures: Iterable[Picture]) -> Iterator[Results]:
        """Yield the results of pictures, in their order, as soon as there are some."""
        return self._engine.predict_all(pictures)

    def predict_to_tiff(self, source: Source, out: str | Path, *, frame: int = 0) -> tuple[int, int]:
        """Predict a picture of any size into a tiled TIFF of class ids, strip by strip; returns its height and width.

        Neither the picture (if it is a TIFF of strips or tiles) nor its labels are ever in memory as a whole. Raises
        `ConfigError` where the network finds objects, which do not come in strips.
        """
        return self.semantic.predict_to_tiff(Picture(source, frame), out)

    def draw_scales(self, source: Source, *, frame: int = 0) -> Tensor:
        """Draw a picture and, beside it, how far each scale is trusted; returns (3, H, W) uint8.

        The shares of the scales add up to one at each pixel; dark blue is 0, yellow 1. Raises `ConfigError` where the network
        does not attend to several scales.
        """
        from delineate.predict.previews import scales_preview  # matplotlib, only for drawings

        shares = self.semantic.shares(Picture(source, frame))
        if not shares:
            raise ConfigError("the network does not attend to scales; wrap it (model 'hmsa' with fusion attention or explicit)")
        with Picture(source, frame).opened() as reader:
            return scales_preview(torch.from_numpy(reader.read(0, 0, *reader.shape[1:])), shares)


_OF_PIXELS = {"window": None, "overlap": 0.25, "flips": False, "scales": None, "objects": "auto", "min_area": 10}


def _refuse_options(options: dict[str, Any]) -> None:
    """Raise `ConfigError` for an option that means nothing to a detector."""
    for name, value in options.items():
        if value != _OF_PIXELS[name]:
            raise ConfigError(
                f"{name} {value!r}: is for networks that give each pixel a class, and this one finds objects; leave it away"
            )
