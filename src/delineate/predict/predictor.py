"""`Predictor`: weights and pictures in, `Results` out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from delineate.data.objects import BACKGROUND_NAMES
from delineate.data.windows import ImageReader, write_label_tiff
from delineate.devices import pick_device, pick_precision
from delineate.errors import ConfigError, DataError, suggest
from delineate.files import atomic_path
from delineate.predict.labels import LabelRows, decode_scores, join_rows
from delineate.predict.network import ScoringNetwork
from delineate.predict.objects import METHODS, Method, extract_objects
from delineate.predict.pictures import open_picture, picture_statistics, range_factor
from delineate.predict.results import Results
from delineate.predict.tiling import Strip, predict_windows
from delineate.weights import Conventions, load_model

Source = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor

WHOLE = 1024 * 1024  # pixels of a picture that is predicted in one piece, unless `window` says otherwise
WINDOW = 512


class Predictor:
    """Predicts pictures of any size with one network.

    Args:
        weights: a .safetensors file, or a module with `classes` and `conventions` (as `load_model` returns); the predictor
            works on a copy, so the module may go on being trained.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16, fp16, or auto: bf16 where the device computes it fast.
        score_threshold: objects with a lower score (mean foreground probability) are left out; for multilabel networks, the
            probability from which a pixel belongs to a class.
        window: largest side that is predicted in one piece, or (height, width); None: pictures of up to 1024 x 1024 pixels
            whole, larger ones in windows of 512.
        overlap: share of a window that its neighbour predicts too; none for networks with valid convolutions, whose windows
            are exact.
        flips: average over four mirrored views.
        batch: windows at once; None: 1 on a CPU, 8 elsewhere.
        objects: how objects are told apart: components, watershed, border, distance, none, or auto: as the network was
            trained, and components where it only knows classes, the first of which is the background.
        min_area: pixels of the smallest object that is kept.
        compile: compile the network with torch.compile; worthwhile for many pictures of one size, or large ones.
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
        batch: int | None = None,
        objects: Method | Literal["auto", "none"] = "auto",
        min_area: int = 10,
        compile: bool = False,
    ) -> None:
        model = weights if isinstance(weights, nn.Module) else load_model(weights)
        for name in ("classes", "conventions"):
            if not hasattr(model, name):
                raise ConfigError(f"the network has no '{name}'; set it, or save it with save_model and give that file")
        self.classes: tuple[str, ...] = tuple(cast("Any", model.classes))
        self.conventions = cast("Conventions", model.conventions)
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.background = 0 if self.classes[0].lower() in BACKGROUND_NAMES else None
        self.objects = _choose_objects(objects, self.conventions, self.background)
        self.score_threshold, self.min_area = score_threshold, min_area
        self.window, self.overlap, self.flips = window, overlap, flips
        self.batch = batch or (1 if self.device.type == "cpu" else 8)
        self.network = ScoringNetwork(
            model, self.conventions, len(self.classes), device=self.device, precision=self.precision, compile=compile
        )

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
            return [
                self.predict(one, name=None if isinstance(one, str | Path) else f"image{index}")
                for index, one in enumerate(source)
            ]
        return self.predict(cast("Source", source))

    def predict(self, source: Source, *, frame: int = 0, name: str | None = None) -> Results:
        """Predict one picture, or one page of a TIFF; `name` is that of the results: by default the file's, or "image"."""
        start = time.perf_counter()
        path = Path(source) if isinstance(source, str | Path) else None
        with _opened(source, frame) as reader:
            strips, note = self.strips(reader, objects=self.objects != "none")
            _, height, width = reader.shape
            rows = join_rows(strips, height)
        results = Results(
            size=(height, width),
            classes=self.classes,
            name=name or (path.stem if path else "image"),
            path=path,
            frame=frame,
            background=self.background,
            semantic=_as_semantic(rows.semantic),
            multilabel=None if rows.multilabel is None else torch.from_numpy(rows.multilabel),
            notes=(note,) if note else (),
        )
        if self.objects != "none":
            results = self._with_objects(results, rows)
        if note:
            warnings.warn(f"{path or results.name}: {note}", stacklevel=2)
        results.seconds = time.perf_counter() - start
        return results

    def predict_to_tiff(self, source: Source, out: str | Path, *, frame: int = 0) -> tuple[int, int]:
        """Predict a picture of any size into a tiled TIFF of class ids, strip by strip; returns its height and width.

        Neither the picture (if it is a TIFF of strips or tiles) nor its labels are ever in memory as a whole.
        """
        with _opened(source, frame) as reader:
            strips, note = self.strips(reader, objects=False)
            _, height, width = reader.shape
            dtype = np.dtype(np.uint8 if len(self.classes) <= 256 else np.uint16)
            with atomic_path(out) as temporary:
                write_label_tiff(temporary, (strip.content.semantic for strip in strips), height, width, dtype)
        if note:
            warnings.warn(f"{source}: {note}", stacklevel=2)
        return height, width

    def strips(self, reader: ImageReader, *, objects: bool) -> tuple[Iterator[Strip], str | None]:
        """Return the strips of a picture, to be computed one by one, with `LabelRows` in them, and a note on its range.

        `objects`: the rows hold what `extract_objects` needs too.
        """
        factor, note = range_factor(reader, self.conventions)
        statistics = picture_statistics(reader, self.conventions) if self.conventions.normalization == "image" else None
        decode = partial(
            decode_scores,
            outputs=self.conventions.outputs,
            num_classes=len(self.classes),
            objects=objects,
            threshold=self.score_threshold,
        )
        strips = predict_windows(
            self.network,
            reader,
            prepare=partial(self.network.prepare, statistics=statistics, factor=factor),
            decode=decode,
            window=self._window_for(reader.shape[1], reader.shape[2]),
            overlap=0.0 if self.network.margin else self.overlap,
            blend="constant" if self.network.margin else "gaussian",
            flips=self.flips,
            batch=self.batch,
        )
        return _without_gradients(strips), note

    def _window_for(self, height: int, width: int) -> tuple[int, int]:
        if self.window is not None:
            return (self.window, self.window) if isinstance(self.window, int) else self.window
        return (height, width) if height * width <= WHOLE else (WINDOW, WINDOW)

    def _with_objects(self, results: Results, rows: LabelRows) -> Results:
        shift = int(self.background is None)  # `extract_objects` takes class 0 for the background
        objects = extract_objects(
            rows.semantic.astype(np.int32) + shift,
            method=cast("Method", self.objects),
            foreground=None if shift else rows.foreground,
            border=rows.border,
            distance=rows.distance,
            min_area=self.min_area,
            min_score=self.score_threshold,
        )
        results = results.with_objects(objects)
        results.labels -= shift
        return results


def _choose_objects(objects: str, conventions: Conventions, background: int | None) -> str:
    if objects not in (*METHODS, "auto", "none"):
        known = (*METHODS, "auto", "none")
        raise ConfigError(f"objects '{objects}' is unknown; expected {', '.join(known)}{suggest(objects, known)}")
    if objects in ("border", "distance") and conventions.outputs != objects:
        raise ConfigError(
            f"objects '{objects}' needs a network trained with outputs '{objects}', this one has '{conventions.outputs}'; "
            "take auto, components or watershed"
        )
    if objects != "auto":
        return objects
    if conventions.outputs in ("border", "distance"):
        return conventions.outputs
    return "components" if conventions.outputs == "classes" and background is not None else "none"


@contextmanager
def _opened(source: Source, frame: int) -> Iterator[ImageReader]:
    """Open a picture, and put the file's name in front of a `DataError` that lacks it."""
    try:
        reader = open_picture(source, frame)
        try:
            yield reader
        finally:
            reader.close()
    except DataError as error:
        if not isinstance(source, str | Path) or str(error).startswith(str(source)):
            raise
        raise DataError(f"{source}: {error}") from error


def _without_gradients(strips: Iterator[Strip]) -> Iterator[Strip]:
    """Compute each strip in inference mode, which must not stay on while the caller has the strip."""
    while True:
        with torch.inference_mode():
            strip = next(strips, None)
        if strip is None:
            return
        yield strip


def _as_semantic(labels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(labels if labels.dtype == np.uint8 else labels.astype(np.int32))
