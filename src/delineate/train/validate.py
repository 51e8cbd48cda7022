"""Validation: whole pictures through the streaming engine, counted and measured by their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from delineate.data.batch import Batch
from delineate.losses.build import Loss
from delineate.metrics import ConfusionMatrix, MultilabelConfusion
from delineate.predict.predictor import WHOLE, WINDOW
from delineate.predict.tiling import predict_windows
from delineate.train.processes import over_processes
from delineate.weights.conventions import Conventions


class Validation:
    """Measures a network on the pictures of a loader that yields them one at a time, whole.

    Pictures up to 1024 x 1024 pixels are predicted in one piece, larger ones in windows of 512, as `Predictor` does. The
    classes are those that the network learns: with outputs "border", the border is one of them.
    """

    def __init__(
        self, fabric: Fabric, loader: Iterable[Batch], loss: Loss, conventions: Conventions, classes: Sequence[str]
    ) -> None:
        self.fabric, self.loader, self.loss, self.conventions = fabric, loader, loss, conventions
        self.classes = (*classes, "border") if conventions.outputs == "border" else tuple(classes)

    def names(self) -> list[str]:
        """The names of the numbers that a validation gives."""
        return ["loss", *self._counts().summary(self.classes)]

    @torch.no_grad()
    def __call__(self, model: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return "loss", the mean over pictures, and the summary of `ConfusionMatrix` of all pictures of all processes.

        `check` is called before each picture and may raise. The network is left in evaluation mode.
        """
        model.eval()
        if self.fabric.world_size > 1:  # running statistics are each process's own; those of the first are saved
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        counts = self._counts()
        losses = torch.zeros(2, dtype=torch.float64)  # sum, pictures
        network = _Network(self.fabric, model)
        for batch in self.loader:
            check()
            losses += torch.tensor([self._picture(network, batch, counts), 1.0], dtype=torch.float64)
        losses = over_processes(self.fabric, losses, "sum")
        counts.state = over_processes(self.fabric, counts.state, "sum")
        return {"loss": float(losses[0] / losses[1])} | counts.summary(self.classes)

    def _counts(self) -> ConfusionMatrix | MultilabelConfusion:
        multilabel = self.conventions.outputs == "multilabel"
        return MultilabelConfusion(len(self.classes)) if multilabel else ConfusionMatrix(len(self.classes))

    def _picture(self, network: _Network, batch: Batch, counts: ConfusionMatrix | MultilabelConfusion) -> float:
        """Count one picture and return its loss: that of its strips, weighted by their rows."""
        height, width = batch.images.shape[-2:]
        loss = 0.0
        strips = predict_windows(
            network,
            batch.images[0],
            window=(height, width) if height * width <= WHOLE else WINDOW,
            overlap=0.0 if network.margin else 0.25,
            batch=1 if self.fabric.device.type == "cpu" else 8,
        )
        for top, logits in strips:  # (C, rows, W) float32
            part = _rows(batch, top, logits.shape[1], logits.device)
            loss += float(self.loss(logits[None], part)[0]) * logits.shape[1] / height  # synchronises
            counts.update(self._labels(logits), part.labels[0])
        return loss

    def _labels(self, logits: Tensor) -> Tensor:
        if self.conventions.outputs == "multilabel":
            return logits > 0  # probability above one half
        return logits[: len(self.classes)].argmax(0)  # without the distance, which comes last


class _Network:
    """A network as the streaming engine calls it: windows to the device and channels-last, in the precision of the run."""

    def __init__(self, fabric: Fabric, model: nn.Module) -> None:
        self.fabric, self.model = fabric, model
        self.margin: int = getattr(model, "margin", 0)
        self.stride: int = getattr(model, "stride", 1)
        self.smallest: int | None = getattr(model, "smallest", None)

    def __call__(self, windows: Tensor) -> Tensor:
        windows = windows.to(self.fabric.device).contiguous(memory_format=torch.channels_last)
        with self.fabric.autocast():
            return self.model(windows)


def _rows(batch: Batch, top: int, count: int, device: torch.device) -> Batch:
    """The targets of `count` rows of a picture; the picture itself is no longer needed."""

    def cut(target: Tensor) -> Tensor:
        return target[..., top : top + count, :].to(device)

    weight = None if batch.weight is None else cut(batch.weight)
    distance = None if batch.distance is None else cut(batch.distance)
    return Batch(batch.images[..., :0, :0], cut(batch.labels), weight, distance, batch.names)
