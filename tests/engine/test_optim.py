import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from videogn.config import TrainConfig
from videogn.engine.optim import (
    CosineSchedule,
    StepSchedule,
    build_optimizer,
    make_schedule,
    milestone_iterations,
    scale_learning_rate,
)
from videogn.models.norm import make_norm


def test_linear_scaling_follows_the_paper() -> None:
    # Section 4.1: 0.1 N / 32 for N images on each of 8 GPUs.
    for images in (32, 16, 8, 4, 2):
        assert math.isclose(scale_learning_rate(0.1, 256, 8 * images), 0.1 * images / 32)


def test_kinetics_schedule() -> None:
    milestones = milestone_iterations(400_000, (0.375, 0.75))
    assert milestones == (150_000, 300_000)
    schedule = StepSchedule(0.01, milestones, 0.1, 0)
    rates = [schedule.at(i) for i in (0, 149_999, 150_000, 299_999, 300_000, 399_999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


@given(
    iterations=st.integers(2, 200),
    shares=st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(sorted),
    warmup=st.integers(0, 50),
)
def test_schedule_equals_torch(iterations: int, shares: list[float], warmup: int) -> None:
    milestones = milestone_iterations(iterations, shares)
    schedule = StepSchedule(0.3, milestones, 0.1, warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.1)
    for iteration in range(iterations):
        # Warm-up from a tenth, in a straight line.
        factor = min(1.0, 0.1 + 0.9 * iteration / warmup) if warmup else 1.0
        assert schedule.at(iteration) == pytest.approx(steps.get_last_lr()[0] * factor)
        optimizer.step()
        steps.step()


@pytest.mark.parametrize("norm", [nn.BatchNorm3d(4), nn.GroupNorm(2, 4)])
def test_decay_spares_norm_layers_only(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 1, bias=False), norm, nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(
        model, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0
    )
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.startswith("1.") else 1e-4)
    assert all(group["nesterov"] for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out():
    network = nn.Sequential(nn.Conv3d(3, 8, 1, bias=False), make_norm("frozen_bn")(8))
    optimizer = build_optimizer(
        network, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, norm_weight_decay=1e-4
    )
    [group] = optimizer.param_groups
    assert [p.shape for p in group["params"]] == [network[0].weight.shape]
    before = network[1].weight.clone()
    network(torch.randn(2, 3, 1, 2, 2)).square().sum().backward()
    optimizer.step()
    assert torch.equal(network[1].weight, before)


def test_cosine_goes_from_the_rate_to_zero_after_its_warm_up() -> None:
    schedule = CosineSchedule(0.4, 100, 10)
    assert schedule.at(0) == pytest.approx(0.04)
    assert schedule.at(5) == pytest.approx(0.4 * 0.55 * (1 + math.cos(0.05 * math.pi)) / 2)
    assert schedule.at(50) == pytest.approx(0.2)
    assert schedule.at(100) == pytest.approx(0)
    rates = [schedule.at(iteration) for iteration in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_a_recipe_names_its_schedule() -> None:
    assert isinstance(make_schedule(TrainConfig(schedule="cosine"), 0.1, 10), CosineSchedule)
    assert make_schedule(TrainConfig(), 0.1, 400_000).at(400_000) == pytest.approx(0.001)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_updates_are_those_of_the_formula(device, momentum, layout):
    """v = m v + g + d w; w = w - lr (g + d w + m v), in float64 by hand, over three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(4, 8, (1, 3, 3)), nn.BatchNorm3d(8), nn.Conv3d(8, 4, 1))
    model.to(device, memory_format=layout)
    optimizer = build_optimizer(
        model, learning_rate=0.1, momentum=momentum, weight_decay=0.01, norm_weight_decay=0.0
    )
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    weights = [p.detach().double().cpu() for p in model.parameters()]
    speeds = [torch.zeros_like(w) for w in weights]
    for step in range(3):
        x = torch.randn(2, 4, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        model(x.to(device, memory_format=layout)).square().sum().backward()
        grads = [p.grad.double().cpu() for p in model.parameters()]
        optimizer.step()
        for place, (p, w) in enumerate(zip(model.parameters(), weights, strict=True)):
            pull = grads[place] + decays[id(p)] * w
            speeds[place] = momentum * speeds[place] + pull
            weights[place] = w - 0.1 * (pull + momentum * speeds[place])
            scale = weights[place].abs().max()
            error = (p.detach().double().cpu() - weights[place]).abs().max() / scale
            assert error < 1e-6 * 10**step


@pytest.mark.parametrize("device", DEVICES)
def test_infinite_first_gradients_leave_no_trace(device):
    """fp16's loss scale passes over them, and the first sound step is as if they had not been."""
    models, ends = [nn.Linear(4, 4) for _ in range(2)], []
    models[1].load_state_dict(models[0].state_dict())
    for model, broken in zip(models, (False, True), strict=True):
        model.to(device)
        optimizer = build_optimizer(
            model, learning_rate=0.1, momentum=0.9, weight_decay=0.0, norm_weight_decay=0.0
        )
        scaler = torch.amp.GradScaler(device, init_scale=2.0, growth_interval=100)
        for step in range(3):
            if step == 0 and not broken:
                continue
            optimizer.zero_grad()
            x = torch.full((2, 4), torch.inf if step == 0 else 1.0, device=device)
            scaler.scale(model(x).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)
    assert ends[0].isfinite().all()
