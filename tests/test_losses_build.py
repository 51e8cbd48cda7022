"""The loss of a config: terms, the four kinds of outputs, deep supervision, valid convolutions, and its error messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from delineate.config import LossTerm
from delineate.data.batch import Batch
from delineate.errors import ConfigError, DataError
from delineate.losses import (
    border_cross_entropy,
    build_loss,
    cross_entropy,
    dice_loss,
    distance_loss,
    focal_loss,
    jaccard_loss,
    lovasz_loss,
    ohem_cross_entropy,
    relaxed_cross_entropy,
    rmi_loss,
    tversky_loss,
)
from delineate.ops.outputs import WithAuxiliary
from delineate.weights.conventions import Conventions, Outputs

K = 3


def make_batch(size: int = 16, *, multilabel: bool = False, classes: int = K) -> Batch:
    labels = torch.randint(0, classes, (2, size, size))
    labels[:, 3:5] = 255
    if multilabel:
        labels = torch.randint(-1, 2, (2, K, size, size)).float()
    weight, distance = 1 + 10 * torch.rand(2, size, size), torch.rand(2, size, size)
    return Batch(torch.zeros(2, 3, size, size), labels, weight, distance, ("first", "second"))


def term(name: Any, weight: float = 1.0, **options: Any) -> LossTerm:
    return LossTerm(name=name, weight=weight, options=options)


def test_terms_are_weighted_and_reported() -> None:
    batch, logits = make_batch(), torch.randn(2, K, 16, 16)
    terms = [
        term("cross_entropy", 2.0, label_smoothing=0.1, class_weights=[1, 2, 3]),
        term("border_cross_entropy"),
        term("dice", 0.5, background=False),
        term("jaccard"),
        term("tversky", 3.0, alpha=0.4, gamma=1.5),
        term("focal", 1.0, gamma=3),
        term("lovasz", 0.25, per_image=True),
    ]
    total, values = build_loss(terms, Conventions(), K)(logits, batch)
    expected = {
        "cross_entropy": cross_entropy(logits, batch.labels, label_smoothing=0.1, class_weights=[1, 2, 3]),
        "border_cross_entropy": border_cross_entropy(logits, batch.labels, batch.weight),  # type: ignore[arg-type]
        "dice": dice_loss(logits, batch.labels, background=False),
        "jaccard": jaccard_loss(logits, batch.labels),
        "tversky": tversky_loss(logits, batch.labels, alpha=0.4, gamma=1.5),
        "focal": focal_loss(logits, batch.labels, gamma=3),
        "lovasz": lovasz_loss(logits, batch.labels, per_image=True),
    }
    assert list(values) == list(expected)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(total, sum(t.weight * expected[t.name] for t in terms))


def test_auxiliary_branches_are_added_by_their_weights() -> None:
    batch, logits = make_batch(), torch.randn(4, 2, K, 16, 16, requires_grad=True)
    main, first, second, small = logits[0], logits[1], logits[2], logits[3, ..., ::2, ::2]
    loss = build_loss([term("cross_entropy", 2.0), term("dice")], Conventions(), K)
    total, values = loss(WithAuxiliary(main, (first, second, small), (0.4, 0.05, 0.5)), batch)
    main_total, main_values = loss(main, batch)
    halves = Batch(batch.images, batch.labels[:, 1::2, 1::2], names=batch.names)  # the pixels nearest to the centre of a cell
    extra = 0.4 * loss(first, batch)[0] + 0.05 * loss(second, batch)[0] + 0.5 * loss(small, halves)[0]
    torch.testing.assert_close(total, main_total + extra)
    torch.testing.assert_close(values, {**main_values, "auxiliary": extra.detach()})
    assert not values["auxiliary"].requires_grad
    total.backward()
    assert logits.grad is not None
    assert (logits.grad.flatten(1).abs().sum(dim=1) > 0).all()
    with pytest.raises(ValueError, match="output channels"):
        loss(WithAuxiliary(main, (first[:, :2],), (0.4,)), batch)


def test_hard_relaxed_and_regional_terms() -> None:
    batch, logits = make_batch(), torch.randn(2, 2, K, 16, 16)
    terms = [term("ohem_cross_entropy", min_kept=50), term("relaxed_cross_entropy", 0.5, reach=2), term("rmi", 2.0)]
    loss = build_loss(terms, Conventions(), K)
    labels = batch.labels
    expected = {
        "ohem_cross_entropy": ohem_cross_entropy(logits[0], labels, min_kept=50),
        "relaxed_cross_entropy": relaxed_cross_entropy(logits[0], labels, reach=2),
        "rmi": rmi_loss(logits[0], labels),
    }
    total, values = loss(logits[0], batch)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(total, sum(t.weight * expected[t.name] for t in terms))
    # An auxiliary branch has the binary cross-entropy alone, as in NVIDIA's code.
    _, values = build_loss(terms[2:], Conventions(), K)(WithAuxiliary(logits[0], (logits[1],), (0.4,)), batch)
    torch.testing.assert_close(values["auxiliary"], 0.4 * 2.0 * rmi_loss(logits[1], labels, share=1.0))


def test_values_are_detached_and_the_total_is_not() -> None:
    logits = torch.randn(2, K, 16, 16, requires_grad=True)
    total, values = build_loss([term("cross_entropy"), term("dice")], Conventions(), K)(logits, make_batch())
    assert total.requires_grad
    assert not any(value.requires_grad for value in values.values())


@pytest.mark.parametrize("outputs", ["classes", "multilabel", "border", "distance"])
def test_the_four_kinds_of_outputs(outputs: Outputs) -> None:
    conventions = Conventions(outputs=outputs)
    channels = conventions.output_channels(K)
    batch = make_batch(multilabel=outputs == "multilabel", classes=K + (outputs == "border"))
    logits = torch.randn(2, channels, 16, 16)
    total, values = build_loss([term("cross_entropy"), term("dice")], conventions, K)(logits, batch)
    scores = logits[:, :K] if outputs == "distance" else logits
    torch.testing.assert_close(values["cross_entropy"], cross_entropy(scores, batch.labels))
    torch.testing.assert_close(values["dice"], dice_loss(scores, batch.labels))
    assert ("distance" in values) == (outputs == "distance")
    if outputs == "distance":
        assert batch.distance is not None
        expected = distance_loss(logits[:, -1], batch.distance, batch.labels != 255)
        torch.testing.assert_close(values["distance"], expected)
    torch.testing.assert_close(total, sum(values.values()))


def test_deep_supervision_halves_weights_and_samples_labels() -> None:
    batch = make_batch(16)
    outputs = tuple(torch.randn(2, K, size, size) for size in (16, 8, 4))
    total, values = build_loss([term("cross_entropy", 2.0)], Conventions(), K)(outputs, batch)
    # The centre of a cell of 2 (or 4) pixels lies between two; the nearest is taken to be the one after it.
    labels = [batch.labels, batch.labels[:, 1::2, 1::2], batch.labels[:, 2::4, 2::4]]
    each = [cross_entropy(logits, truth) for logits, truth in zip(outputs, labels, strict=True)]
    expected = (4 * each[0] + 2 * each[1] + each[2]) / 7
    torch.testing.assert_close(values["cross_entropy"], expected)
    torch.testing.assert_close(total, 2 * expected)


def test_deep_supervision_of_every_map_and_odd_sizes() -> None:
    batch = make_batch(15, classes=K)
    outputs = tuple(torch.randn(2, K + 1, size, size, requires_grad=True) for size in (15, 8, 4))
    total, _ = build_loss([term("border_cross_entropy")], Conventions(outputs="distance"), K)(outputs, batch)
    total.backward()
    assert total.isfinite()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in outputs)


def test_valid_convolutions_see_the_centre() -> None:
    batch, logits = make_batch(20), torch.randn(2, K + 1, 12, 12)
    _, values = build_loss([term("border_cross_entropy")], Conventions(outputs="distance"), K)(logits, batch)
    middle = (slice(None), slice(4, 16), slice(4, 16))
    assert batch.weight is not None
    assert batch.distance is not None
    labels = batch.labels[middle]
    torch.testing.assert_close(
        values["border_cross_entropy"], border_cross_entropy(logits[:, :-1], labels, batch.weight[middle])
    )
    torch.testing.assert_close(values["distance"], distance_loss(logits[:, -1], batch.distance[middle], labels != 255))
    for size in (21, 13):
        with pytest.raises(ValueError, match="not the centre"):
            build_loss([term("dice")], Conventions(), K)(torch.zeros(2, K, size, size), batch)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([term("dice", smoth=1.0)], "loss term 'dice' has no option 'smoth'; did you mean 'smooth'?"),
        ([term("lovasz", gamma=1.0)], "loss term 'lovasz' has no option 'gamma'; it has per_image"),
        ([term("dice", ignore_index=3)], "loss term 'dice' has no option 'ignore_index'"),
        ([term("border_cross_entropy", weight_map=1)], "has no option 'weight_map'"),
        ([term("dice", smooth="much")], "loss term 'dice' with options {'smooth': 'much'}"),
        ([term("tversky", beta=-1)], "beta -1"),
        ([term("cross_entropy", class_weights=[1.0, 2.0])], "class_weights holds 2 numbers, but there are 3 classes"),
        ([term("focal", class_weights=[1.0, 2.0, -1.0])], "class_weights holds -1.0, expected numbers >= 0"),
        ([term("focal", class_weights="heavy")], "loss term 'focal' with options {'class_weights': 'heavy'}"),
        ([term("focal", alpha=0.5)], "use class_weights for class ids"),
        ([term("ohem_cross_entropy", threshold=0)], "threshold is 0, min_kept 100000"),
        ([term("rmi", radius=0)], "radius 0"),
        ([term("dice"), term("dice")], "loss term 'dice' is listed 2 times"),
        ([], "the loss has no terms"),
    ],
)
def test_a_wrong_config_is_refused_before_training(terms: list[LossTerm], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_loss(terms, Conventions(), K)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_weights_of_border_outputs_count_the_border() -> None:
    build_loss([term("cross_entropy", class_weights=[1, 2, 3, 4])], Conventions(outputs="border"), K)
    build_loss([term("focal", alpha=0.25)], Conventions(outputs="multilabel"), K)
    with pytest.raises(ConfigError, match="there are 4 classes"):
        build_loss([term("cross_entropy", class_weights=[1, 2, 3])], Conventions(outputs="border"), K)


def test_a_batch_that_lacks_something_is_named() -> None:
    batch, logits = make_batch(), torch.zeros(2, K, 16, 16)
    batch.labels[1, 2, 2] = 7
    with pytest.raises(DataError, match=r"second: label 7 is not one of the 3 classes 0\.\.2, nor 255"):
        build_loss([term("dice")], Conventions(), K)(logits, batch)
    bare = Batch(batch.images, torch.zeros(2, 16, 16, dtype=torch.int64))
    with pytest.raises(DataError, match="no weight map"):
        build_loss([term("border_cross_entropy")], Conventions(), K)(logits, bare)
    with pytest.raises(DataError, match="no distance map"):
        build_loss([term("dice")], Conventions(outputs="distance"), K)(torch.zeros(2, K + 1, 16, 16), bare)
    with pytest.raises(ValueError, match="3 output channels, its conventions ask for 4"):
        build_loss([term("dice")], Conventions(outputs="border"), K)(logits, bare)


def test_the_whole_loss_compiles() -> None:
    loss = build_loss([term("cross_entropy"), term("dice"), term("lovasz")], Conventions(outputs="distance"), K)
    batch, outputs = make_batch(), (torch.randn(2, K + 1, 16, 16), torch.randn(2, K + 1, 8, 8))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs, batch), loss(outputs, batch))
    torch._dynamo.reset()
