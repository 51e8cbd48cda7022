"""Pictures of any size through a network that gives each pixel a class: windows, objects, `Results`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from delineate.data.objects import BACKGROUND_NAMES
from delineate.data.windows import ImageReader, write_label_tiff
from delineate.devices import Precision
from delineate.errors import ConfigError, suggest
from delineate.files import atomic_path
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention, at_scales
from delineate.predict.labels import LabelRows, decode_scores, join_rows
from delineate.predict.network import ScoringNetwork
from delineate.predict.objects import METHODS, Method, extract_objects
from delineate.predict.pictures import Picture, picture_statistics, range_factor
from delineate.predict.results import Results
from delineate.predict.scales import predict_scales, predict_shares
from delineate.predict.tiling import Strip, predict_windows
from delineate.weights import Conventions

WHOLE = 1024 * 1024  # pixels of a picture that is predicted in one piece, unless `window` says otherwise
WINDOW = 512


class SemanticPredictor:
    """Predicts pictures one by one with a network whose output are classes of pixels; arguments as those of `Predictor`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        score_threshold: float,
        batch: int,
        compile: bool,
        window: int | tuple[int, int] | None,
        overlap: float,
        flips: bool,
        scales: Sequence[float] | None,
        objects: Method | Literal["auto", "none"],
        min_area: int,
    ) -> None:
        self.classes: tuple[str, ...] = tuple(cast("Any", model.classes))
        self.conventions = cast("Conventions", model.conventions)
        self.background = 0 if self.classes[0].lower() in BACKGROUND_NAMES else None
        self.objects = _choose_objects(objects, self.conventions, self.background)
        self.score_threshold, self.min_area = score_threshold, min_area
        self.window, self.overlap, self.flips = window, overlap, flips
        self.batch = batch
        if scales is not None:
            model = at_scales(getattr(model, "_orig_mod", model), scales)
        self.network = ScoringNetwork(
            model, self.conventions, len(self.classes), device=device, precision=precision, compile=compile
        )

    def predict_all(self, pictures: Iterable[Picture]) -> Iterator[Results]:
        """Yield the results of each picture, in order."""
        return map(self.predict, pictures)

    def predict(self, picture: Picture) -> Results:
        """Predict one picture."""
        start = time.perf_counter()
        with picture.opened() as reader:
            strips, note = self.strips(reader, objects=self.objects != "none")
            _, height, width = reader.shape
            rows = join_rows(strips, height)
        results = Results(
            size=(height, width),
            classes=self.classes,
            name=picture.title,
            path=picture.path,
            frame=picture.frame,
            background=self.background,
            semantic=_as_semantic(rows.semantic),
            multilabel=None if rows.multilabel is None else torch.from_numpy(rows.multilabel),
            notes=(note,) if note else (),
        )
        if self.objects != "none":
            results = self._with_objects(results, rows)
        if note:
            warnings.warn(f"{picture.path or results.name}: {note}", stacklevel=2)
        results.seconds = time.perf_counter() - start
        return results

    def predict_to_tiff(self, picture: Picture, out: str | Path) -> tuple[int, int]:
        """Predict a picture into a tiled TIFF of class ids, strip by strip; returns its height and width."""
        with picture.opened() as reader:
            strips, note = self.strips(reader, objects=False)
            _, height, width = reader.shape
            dtype = np.dtype(np.uint8 if len(self.classes) <= 256 else np.uint16)
            with atomic_path(out) as temporary:
                write_label_tiff(temporary, (strip.content.semantic for strip in strips), height, width, dtype)
        if note:
            warnings.warn(f"{picture.source}: {note}", stacklevel=2)
        return height, width

    def shares(self, picture: Picture) -> dict[float, Tensor]:
        """Return by scale its share (H, W) of the fused logits; empty where the network does not attend to scales."""
        network = getattr(self.network.model, "_orig_mod", self.network.model)
        if not isinstance(network, HierarchicalMultiScaleAttention) or network.fusion not in ("attention", "explicit"):
            return {}
        with picture.opened() as reader, torch.inference_mode():
            factor, _ = range_factor(reader, self.conventions)
            statistics = picture_statistics(reader, self.conventions) if self.conventions.normalization == "image" else None
            prepare = partial(self.network.prepare, statistics=statistics, factor=factor)
            window = self._window_for(reader.shape[1], reader.shape[2])
            return predict_shares(network, reader, prepare=prepare, window=window, overlap=self.overlap, batch=self.batch)

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
        window = self._window_for(reader.shape[1], reader.shape[2])
        predict = partial(predict_windows, self.network, decode=decode)
        several = self.network.several_scales
        if several is not None and (reader.shape[1] > window[0] or reader.shape[2] > window[1]):
            predict = partial(predict_scales, several, decode=lambda logits: decode(self.network.scores(logits[None])[0]))
        strips = predict(
            reader,
            prepare=partial(self.network.prepare, statistics=statistics, factor=factor),
            window=window,
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
            np.add(rows.semantic, shift, dtype=np.int32),
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
