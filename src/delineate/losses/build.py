"""`build_loss`: from the terms of a config to the one function that the training loop calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delineate.config import LossTerm
from delineate.errors import ConfigError, DataError, suggest
from delineate.losses.cross_entropy import border_cross_entropy, cross_entropy
from delineate.losses.distance import distance_loss
from delineate.losses.focal import focal_loss
from delineate.losses.lovasz import lovasz_loss
from delineate.losses.ohem import ohem_cross_entropy
from delineate.losses.region import dice_loss, jaccard_loss, tversky_loss
from delineate.losses.relaxed import relaxed_cross_entropy
from delineate.losses.rmi import rmi_loss
from delineate.ops.outputs import WithAuxiliary

if TYPE_CHECKING:
    from delineate.data.batch import Batch
    from delineate.weights.conventions import Conventions

SemanticOutput = Tensor | tuple[Tensor, ...] | WithAuxiliary
Loss = Callable[[SemanticOutput, "Batch"], tuple[Tensor, dict[str, Tensor]]]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "border_cross_entropy": border_cross_entropy,
    "dice": dice_loss,
    "jaccard": jaccard_loss,
    "tversky": tversky_loss,
    "focal": focal_loss,
    "lovasz": lovasz_loss,
    "ohem_cross_entropy": ohem_cross_entropy,
    "relaxed_cross_entropy": relaxed_cross_entropy,
    "rmi": rmi_loss,
}
IN_BRANCHES: dict[str, dict[str, float]] = {"rmi": {"share": 1.0}}
"""Options of terms where the output is that of an auxiliary branch: the cross-entropy alone there, as in NVIDIA's code."""

DISTANCE_WEIGHT = 1.0
"""Weight of the distance map's regression beside the terms of the config (`outputs="distance"`)."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a batch says of the pixels that one of the network's outputs covers."""

    labels: Tensor  # (B, H, W) int64, or (B, K, H, W) float32
    weight: Tensor | None  # (B, H, W)
    distance: Tensor | None  # (B, H, W)

    def map(self, change: Callable[[Tensor], Tensor]) -> _Target:
        weight, distance = self.weight, self.distance
        return _Target(
            change(self.labels), None if weight is None else change(weight), None if distance is None else change(distance)
        )


def build_loss(terms: Sequence[LossTerm], conventions: Conventions, num_classes: int) -> Loss:
    """Return `loss(output, batch) -> (total, {term: value})`, the weighted sum of `terms` for a network of these conventions.

    `output` are logits (B, C, H, W), C = `conventions.output_channels(num_classes)`, or a tuple of them with deep supervision:
    the full size first, then half, a quarter ...; their losses are weighted 1, 1/2, 1/4 ... with sum 1, against labels sampled
    to the nearest pixel. Or they are `WithAuxiliary`: its branches' losses are added by their weights, and reported as
    "auxiliary". Where the first output is smaller than the labels (valid convolutions), the labels' centre is taken.
    `outputs="distance"` adds `DISTANCE_WEIGHT * distance_loss` of the last channel under the name "distance". The values are
    detached and, except "auxiliary", not yet multiplied by their weights. Raises ConfigError for an option that a term does not
    have or cannot take, a term listed twice or none at all; DataError when a batch lacks what a term needs, or holds a class
    that does not exist.
    """
    if not terms:
        raise ConfigError("the loss has no terms; add one, for example 'loss: [{name: cross_entropy}, {name: dice}]'")
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"loss term '{name}' is listed {names.count(name)} times; keep one and set its weight")
    channels = conventions.output_channels(num_classes)
    score_channels = channels - (conventions.outputs == "distance")
    for term in terms:
        _check_options(term, score_channels, multilabel=conventions.outputs == "multilabel")
    branch_terms = [t.model_copy(update={"options": t.options | IN_BRANCHES.get(t.name, {})}) for t in terms]

    def loss(output: SemanticOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        main, auxiliary = _weighted_outputs(output)
        for logits, _ in (*main, *auxiliary):
            if logits.shape[1] != channels:
                raise ValueError(f"the network has {logits.shape[1]} output channels, its conventions ask for {channels}")
        full = _centre(_Target(batch.labels, batch.weight, batch.distance), main[0][0].shape[-2:])
        _check_labels(full.labels, score_channels, batch.names)
        total, values = _sum_terms(terms, conventions, main, full)
        if auxiliary:
            extra, _ = _sum_terms(branch_terms, conventions, auxiliary, full)
            total, values["auxiliary"] = total + extra, extra.detach()
        return total, values

    return loss


Weighted = list[tuple[Tensor, float]]  # logits and the weight of their loss


def _weighted_outputs(output: SemanticOutput) -> tuple[Weighted, Weighted]:
    """The outputs that predict, the full size first, with weights of sum 1; and those of auxiliary branches."""
    if isinstance(output, Tensor):
        return [(output, 1.0)], []
    if isinstance(output, WithAuxiliary):
        return [(output.logits, 1.0)], list(zip(output.auxiliary, output.weights, strict=True))
    shares = [0.5**level for level in range(len(output))]
    return [(logits, share / sum(shares)) for logits, share in zip(output, shares, strict=True)], []


def _sum_terms(
    terms: Sequence[LossTerm], conventions: Conventions, outputs: Weighted, full: _Target
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over `outputs` and `terms`, and of each term the detached sum over `outputs`."""
    total = torch.zeros((), device=full.labels.device)
    values: dict[str, Tensor] = {}
    for logits, share in outputs:
        for name, weight, value in _term_values(terms, conventions, logits, _resample(full, logits.shape[-2:])):
            total = total + share * weight * value
            values[name] = values.get(name, 0.0) + share * value.detach()
    return total, values


def _term_values(
    terms: Sequence[LossTerm], conventions: Conventions, logits: Tensor, target: _Target
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and value of each term for one output."""
    values = []
    if conventions.outputs == "distance":
        if target.distance is None:
            raise DataError("the batch has no distance map, which outputs 'distance' learns from; use data with objects")
        prediction, logits = logits[:, -1], logits[:, :-1]
        valid = target.labels != 255
        values.append(("distance", DISTANCE_WEIGHT, distance_loss(prediction, target.distance, valid)))
    for term in terms:
        extra = ()
        if term.name == "border_cross_entropy":
            if target.weight is None:
                raise DataError(
                    "the batch has no weight map, which loss term 'border_cross_entropy' needs; use data with objects"
                )
            extra = (target.weight,)
        values.append((term.name, term.weight, LOSSES[term.name](logits, target.labels, *extra, **term.options)))
    return values


def _check_options(term: LossTerm, channels: int, *, multilabel: bool) -> None:
    """Refuse unknown options by name, and wrong values by trying the term once on a small example."""
    parameters = inspect.signature(LOSSES[term.name]).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "ignore_index"]
    for option in term.options:
        if option not in known:
            hint = suggest(option, known) or f"; it has {', '.join(known)}"
            raise ConfigError(f"loss term '{term.name}' has no option '{option}'{hint}")
    size = (64, 64)  # regions of `rmi` need some room
    labels = torch.zeros(1, channels, *size) if multilabel else torch.zeros(1, *size, dtype=torch.int64)
    extra = (torch.ones(1, *size),) if term.name == "border_cross_entropy" else ()
    try:
        LOSSES[term.name](torch.zeros(1, channels, *size), labels, *extra, **term.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"loss term '{term.name}' with options {term.options}: {str(error).splitlines()[0]}") from error


def _check_labels(labels: Tensor, classes: int, names: tuple[str, ...]) -> None:
    """Name the picture with a class that does not exist; on the CPU only, because elsewhere looking would synchronise."""
    if labels.device.type != "cpu" or labels.ndim == 4 or torch.compiler.is_compiling():
        return
    wrong = (labels != 255) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        image = int(wrong.flatten(1).any(dim=1).nonzero()[0])
        value = int(labels[wrong][0])
        name = names[image] if names else f"picture {image} of the batch"
        raise DataError(f"{name}: label {value} is not one of the {classes} classes 0..{classes - 1}, nor 255 (ignored)")


def _centre(target: _Target, size: Sequence[int]) -> _Target:
    """Cut the middle `size` (h, w) out of each map: what valid convolutions leave."""
    height, width = target.labels.shape[-2:]
    top, left = height - size[0], width - size[1]
    if top < 0 or left < 0 or top % 2 or left % 2:
        raise ValueError(f"logits of {size[0]} x {size[1]} pixels are not the centre of labels of {height} x {width}")
    if top == left == 0:
        return target
    top, left = top // 2, left // 2
    return target.map(lambda x: x[..., top : top + size[0], left : left + size[1]])


def _resample(target: _Target, size: Sequence[int]) -> _Target:
    """Sample each map at the pixel nearest to the centre of each of h x w cells; int64 labels stay exact."""
    height, width = target.labels.shape[-2:]
    if (height, width) == tuple(size):
        return target
    device = target.labels.device
    rows = ((torch.arange(size[0], device=device) + 0.5) * (height / size[0])).long()
    columns = ((torch.arange(size[1], device=device) + 0.5) * (width / size[1])).long()
    return target.map(lambda x: x[..., rows, :][..., columns])
