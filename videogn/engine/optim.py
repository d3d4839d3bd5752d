"""SGD, its parameter groups and its learning rate as a function of the iteration."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

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
        if iteration >= self.warmup_iterations:
            return rate
        progress = iteration / self.warmup_iterations
        return rate * (WARMUP_START + (1 - WARMUP_START) * progress)


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
    norm layers alone. Frozen parameters are left out.
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
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        momentum=momentum,
        nesterov=momentum > 0,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
