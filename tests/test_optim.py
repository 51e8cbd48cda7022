"""Optimisers, learning rates, averaged weights and the training step, against torch's own and plain definitions."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from delineate.config import LossTerm, OptimizerConfig
from delineate.data.batch import Batch, collate
from delineate.losses import build_loss
from delineate.models import create_model
from delineate.train.ema import AverageModel
from delineate.train.optim import build_optimizer, learning_rate, set_learning_rate
from delineate.train.step import StepResult, training_step
from delineate.weights import Conventions

PIXEL_LOSS = build_loss([LossTerm(name="cross_entropy")], Conventions(color="gray"), 2)


def LOSS(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: N802
    return PIXEL_LOSS(model(batch.images), batch)


def network(norm: str = "instance", **options: object) -> nn.Module:
    torch.manual_seed(1)
    return create_model("unet", 2, in_channels=1, width=4, depth=2, norm=norm, **options)


def batches(count: int, seed: int = 0, size: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, 1, 16, 16, generator=generator),
            torch.randint(0, 2, (size, 16, 16), generator=generator),
            names=tuple(f"picture{n}_{i}" for i in range(size)),
        )
        for n in range(count)
    ]


def step(
    model: nn.Module, config: OptimizerConfig, group: list[Batch], *, steps: int = 1, precision: str = "32-true"
) -> tuple[list[StepResult], nn.Module]:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
    optimizer = build_optimizer(model, config)
    module, optimizer = fabric.setup(model, optimizer)
    set_learning_rate(optimizer, config.lr)
    return [training_step(fabric, module, optimizer, LOSS, group, clip_norm=config.clip_norm) for _ in range(steps)], module


class TestSchedule:
    def test_multi_step_with_warm_up_is_torchs(self) -> None:
        """A warm-up from a hundredth of the rate, then steps at two thirds and eight ninths, as detectors are trained."""
        config = OptimizerConfig(lr=0.2, schedule="multi_step", warmup_steps=10, warmup_factor=0.01)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80], gamma=0.1)
        for number in range(90):
            if number >= 10:
                assert learning_rate(config, number, 90) == pytest.approx(steps.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            steps.step()
        rising = [learning_rate(config, number, 90) for number in range(10)]
        assert rising == pytest.approx([0.2 * (0.01 + 0.99 * (n + 1) / 10) for n in range(10)])

    def test_poly_is_torchs_polynomial(self) -> None:
        config = OptimizerConfig(lr=0.3, schedule="poly", power=0.9)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
        for number in range(50):
            assert learning_rate(config, number, 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            scheduler.step()

    def test_cosine_is_torchs_cosine(self) -> None:
        config = OptimizerConfig(lr=0.3, schedule="cosine")
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        for number in range(50):
            assert learning_rate(config, number, 50) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            scheduler.step()

    @pytest.mark.parametrize("schedule", ["constant", "poly", "cosine"])
    def test_warm_up_rises_in_a_line_and_the_schedule_follows_it(self, schedule: str) -> None:
        config = OptimizerConfig.model_validate({"lr": 1.0, "schedule": schedule, "warmup_steps": 4})
        rates = [learning_rate(config, number, 20) for number in range(20)]
        assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
        assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
        assert all(rate > 0 for rate in rates)  # the last step too does something

    def test_warm_up_longer_than_the_run_and_steps_beyond_it(self) -> None:
        config = OptimizerConfig(lr=1.0, warmup_steps=100)
        assert learning_rate(config, 4, 5) == 1.0
        assert learning_rate(config, 9, 5) == 0.0


class TestOptimizer:
    def test_only_weights_decay(self) -> None:
        model = network("batch")
        optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
        decayed, other = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        assert decayed == {id(p) for p in model.parameters() if p.ndim == 4}
        assert other == {id(p) for p in model.parameters() if p.ndim == 1}

    def test_names_and_numbers_reach_torch(self) -> None:
        sgd = build_optimizer(network(), OptimizerConfig(name="sgd", momentum=0.99, lr=0.2))
        assert isinstance(sgd, torch.optim.SGD)
        assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["lr"]) == (0.99, True, 0.2)
        adamw = build_optimizer(network(), OptimizerConfig(betas=(0.8, 0.9)))
        assert isinstance(adamw, torch.optim.AdamW)
        assert adamw.defaults["betas"] == (0.8, 0.9)

    def test_sgd_without_momentum_is_possible(self) -> None:
        assert build_optimizer(network(), OptimizerConfig(name="sgd", momentum=0.0)).defaults["nesterov"] is False

    def test_frozen_parameters_are_left_out(self) -> None:
        model = network()
        frozen = next(iter(model.parameters())).requires_grad_(False)
        optimizer = build_optimizer(model, OptimizerConfig())
        assert all(p is not frozen for group in optimizer.param_groups for p in group["params"])


class TestAverage:
    def test_follows_like_torchs_ema_with_a_quicker_start(self) -> None:
        model, generator = network("batch"), torch.Generator().manual_seed(0)
        average = AverageModel(model, 0.9)
        expected = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
        for number in range(30):
            with torch.no_grad():
                for parameter in [*model.parameters(), *model.buffers()]:
                    if parameter.is_floating_point():
                        parameter.add_(torch.randn(parameter.shape, generator=generator))
                    else:
                        parameter.add_(1)
            average.update(model)
            decay = min(0.9, (1 + number) / (10 + number))
            for name, tensor in model.state_dict().items():
                mixed = decay * expected[name] + (1 - decay) * tensor.double()
                expected[name] = mixed if tensor.is_floating_point() else tensor.double()
        for name, tensor in average.model.state_dict().items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-5)

    def test_is_torchs_averaged_model_once_the_start_is_over(self) -> None:
        model, generator = network(), torch.Generator().manual_seed(0)
        ours = AverageModel(model, 0.5)
        ours.steps = 1000  # (1 + n) / (10 + n) > 0.5
        theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        theirs.update_parameters(model)  # its first update copies
        for _ in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
            ours.update(model)
            theirs.update_parameters(model)
        for mine, other in zip(ours.model.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(mine, other)

    def test_does_not_share_memory_and_needs_no_gradient(self) -> None:
        model = network()
        average = AverageModel(model, 0.9)
        assert not average.model.training
        assert not any(p.requires_grad for p in average.model.parameters())
        ours, theirs = ({p.data_ptr() for p in m.parameters()} for m in (average.model, model))
        assert not ours & theirs

    def test_state_goes_round(self) -> None:
        average = AverageModel(network("batch"), 0.9)
        with torch.no_grad():
            other = network("batch")
            for parameter in other.parameters():
                parameter.add_(1)
        average.update(other)
        again = AverageModel(network("batch"), 0.9)
        again.load_state_dict(copy.deepcopy(average.state_dict()))
        assert again.steps == 1
        for a, b in zip(again.model.state_dict().values(), average.model.state_dict().values(), strict=True):
            assert torch.equal(a, b)


class TestStep:
    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_accumulated_batches_are_the_large_batch(self, name: str) -> None:
        config = OptimizerConfig.model_validate({"name": name, "lr": 0.1, "momentum": 0.9})
        small, large = network(), network()
        group = batches(4)
        few, _ = step(small, config, group, steps=3, precision="64-true")  # float64, because AdamW enlarges rounding errors
        one, _ = step(large, config, [collate(group)], steps=3, precision="64-true")
        for a, b in zip(few, one, strict=True):
            assert a.values["loss"] == pytest.approx(b.values["loss"], rel=1e-6)
            assert a.norm == pytest.approx(b.norm, rel=1e-9)
        for a, b in zip(small.parameters(), large.parameters(), strict=True):
            assert a.dtype == torch.float64
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_is_a_plain_torch_step(self) -> None:
        config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0)
        ours, plain = network("batch"), network("batch")
        (group,) = batches(1, size=2)
        step(ours, config, [group], steps=3)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        for _ in range(3):
            optimizer.zero_grad()
            logits = plain(group.images.to(memory_format=torch.channels_last))
            nn.functional.cross_entropy(logits, group.labels).backward()
            optimizer.step()
        for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_clipping_limits_the_step_and_returns_the_norm_before_it(self) -> None:
        (group,) = batches(1)
        model = network()
        before = [p.detach().clone() for p in model.parameters()]
        config = OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.01)
        (result,), _ = step(model, config, [group])
        change = math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(model.parameters(), before, strict=True)))
        reference = network()
        nn.functional.cross_entropy(reference(group.images), group.labels).backward()
        norm = nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None])
        assert result.norm == pytest.approx(float(norm), rel=1e-4)
        assert result.norm > 0.01
        assert change == pytest.approx(0.01, rel=1e-3)

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    @pytest.mark.parametrize("poison", [math.nan, math.inf])
    def test_a_step_that_is_not_finite_changes_nothing(self, precision: str, poison: float) -> None:
        (group,) = batches(1)
        group.images[0, 0, 3, 3] = poison
        model = network("batch")
        before = copy.deepcopy(model.state_dict())
        (result,), _ = step(model, OptimizerConfig(), [group], precision=precision)
        assert not result.finite
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_one_bad_batch_of_several_skips_the_step(self) -> None:
        group = batches(3)
        group[1].images[:] = math.nan
        model = network("batch")
        before = copy.deepcopy(model.state_dict())
        (result,), _ = step(model, OptimizerConfig(), group)
        assert not result.finite
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_good_step_after_a_bad_one_is_as_if_there_had_been_none(self) -> None:
        good, bad = batches(2)
        bad.images[:] = math.nan
        config = OptimizerConfig(lr=0.01)
        fabric = Fabric(accelerator="cpu", devices=1)
        states = []
        for groups in ([good, good], [good, bad, good]):
            model = network("batch")
            module, optimizer = fabric.setup(model, build_optimizer(model, config))
            results = [training_step(fabric, module, optimizer, LOSS, [group]) for group in groups]
            assert [r.finite for r in results] == [group is good for group in groups]
            states.append(model.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_the_fp16_scaler_lowers_its_scale_and_the_step_counts_as_good(self) -> None:
        """torch's own scaler on the CPU stands in for CUDA's: a gradient that overflows is no bad step, a bad loss is one."""
        from lightning_fabric.plugins import MixedPrecision

        good, bad = batches(2)
        bad.images[:] = math.nan
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        model = network()
        before = copy.deepcopy(model.state_dict())
        module, optimizer = fabric.setup(model, build_optimizer(model, OptimizerConfig(lr=0.01)))
        overflow = training_step(fabric, module, optimizer, LOSS, [good])
        assert not math.isfinite(overflow.norm)
        assert overflow.finite
        assert scaler.get_scale() == 2.0**125
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not training_step(fabric, module, optimizer, LOSS, [bad]).finite
        scaler.update(2.0**10)
        fine = training_step(fabric, module, optimizer, LOSS, [good])
        assert fine.finite
        assert math.isfinite(fine.norm)
        assert not all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_deep_supervision_and_loss_terms_come_through(self) -> None:
        model = network(deep_supervision=True)
        fabric = Fabric(accelerator="cpu", devices=1)
        module, optimizer = fabric.setup(model, build_optimizer(model, OptimizerConfig()))
        terms = [LossTerm(name="cross_entropy"), LossTerm(name="dice", weight=0.5)]
        loss = build_loss(terms, Conventions(color="gray"), 2)
        result = training_step(fabric, module, optimizer, lambda model, batch: loss(model(batch.images), batch), batches(1))
        assert set(result.values) == {"loss", "cross_entropy", "dice"}
        assert result.values["loss"] == pytest.approx(result.values["cross_entropy"] + 0.5 * result.values["dice"], rel=1e-5)

    def test_a_stop_is_passed_on(self) -> None:
        fabric = Fabric(accelerator="cpu", devices=1)
        model = network()
        module, optimizer = fabric.setup(model, build_optimizer(model, OptimizerConfig()))
        assert not training_step(fabric, module, optimizer, LOSS, batches(1)).stop
        assert training_step(fabric, module, optimizer, LOSS, batches(1), stop=True).stop


def test_loss_falls_with_both_optimizers() -> None:
    labels: Tensor = (torch.arange(16)[:, None] > torch.arange(16)[None]).long()[None]
    group = Batch(labels[:, None].float() + 0.1 * torch.randn(1, 1, 16, 16), labels)
    for settings in ({"name": "sgd", "lr": 0.05, "momentum": 0.9}, {"name": "adamw", "lr": 0.01}):
        results, _ = step(network(), OptimizerConfig.model_validate(settings), [group], steps=30)
        assert results[-1].values["loss"] < 0.3 * results[0].values["loss"]
