"""SGD, its parameter groups and its learning rate as a function of the iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from videogn.config import TrainConfig
from videogn.models.norm import norm_parameters

WARMUP_START = 0.1
"""Share of the learning rate that warm-up starts from."""


def scale_learning_rate(base_lr: float, base_batch: int, global_batch: int) -> float:
    """Linear scaling: the learning rate in proportion to the batch (paper section 4.1)."""
    return base_lr * global_batch / base_batch


@dataclass(frozen=True)
class StepSchedule:
    """Step schedule with optional linear warm-up (non-local paper, section 4.1).

    Attributes:
        learning_rate: the rate between warm-up and the first milestone.
        milestones: iterations from which the rate is multiplied by ``gamma`` once more.
    """

    learning_rate: float
    milestones: tuple[int, ...]
    gamma: float
    warmup_iterations: int

    def at(self, iteration: int) -> float:
        """The learning rate of the step that follows ``iteration`` finished ones."""
        drops = sum(iteration >= milestone for milestone in self.milestones)
        rate = self.learning_rate * self.gamma**drops
        return rate * _warmup(iteration, self.warmup_iterations)


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine wave from the learning rate to 0, with optional linear warm-up.

    Attributes:
        learning_rate: where the wave starts.
        iterations: where it ends.
    """

    learning_rate: float
    iterations: int
    warmup_iterations: int

    def at(self, iteration: int) -> float:
        """The learning rate of the step that follows ``iteration`` finished ones."""
        rate = self.learning_rate * (1 + math.cos(math.pi * iteration / self.iterations)) / 2
        return rate * _warmup(iteration, self.warmup_iterations)


def _warmup(iteration: int, warmup_iterations: int) -> float:
    """The share of the learning rate that warm-up leaves."""
    if iteration >= warmup_iterations:
        return 1.0
    return WARMUP_START + (1 - WARMUP_START) * iteration / warmup_iterations


Schedule = StepSchedule | CosineSchedule


def make_schedule(train: TrainConfig, learning_rate: float, iterations: int) -> Schedule:
    """The schedule of a recipe whose learning rate has been scaled to ``learning_rate``."""
    if train.schedule == "cosine":
        return CosineSchedule(learning_rate, iterations, train.warmup_iterations)
    return StepSchedule(
        learning_rate=learning_rate,
        milestones=milestone_iterations(iterations, train.lr_milestones),
        gamma=train.lr_gamma,
        warmup_iterations=train.warmup_iterations,
    )


def milestone_iterations(iterations: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The iterations at which given shares of a schedule have passed."""
    return tuple(round(share * iterations) for share in shares)


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float,
) -> torch.optim.SGD:
    """SGD with Nesterov momentum; gamma and beta of norm layers have their own weight decay.

    The released non-local code decays convolutions, the classifier and its bias, and leaves the
    norm layers alone. Frozen parameters are left out. On a GPU one kernel updates many tensors.
    """
    norms = {id(parameter) for parameter in norm_parameters(model)}
    groups = [
        {
            "params": [
                p for p in model.parameters() if p.requires_grad and (id(p) in norms) == of_norm
            ],
            "weight_decay": decay,
        }
        for of_norm, decay in ((False, weight_decay), (True, norm_weight_decay))
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = bool(trained) and all(parameter.is_cuda for parameter in trained)
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        momentum=momentum,
        nesterov=momentum > 0,
        fused=fused or None,
    )
    if fused and momentum > 0:
        # From 0 it becomes the gradients in the first step, as it would have been made of them. The
        # fused step makes it of whatever is in memory where fp16's first gradients are infinite.
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
