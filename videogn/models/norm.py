"""The normalisation layers: a table from a name to what builds one layer.

All but ``none`` have gamma and beta per channel (paper section 3.1), so a network has the same
parameters under the same names whichever is chosen. Shapes: N clips or images, C channels,
``*`` for (T, H, W) or (H, W).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from videogn.errors import UserError
from videogn.models.accurate_gn import accurate_group_norm, wants_accuracy

EPS = 1e-5
BN_MOMENTUM = 0.1
"""Share of the newest batch in BN's running statistics."""

NormFactory = Callable[[int], nn.Module]
"""From a number of channels to a norm layer."""


def make_norm(
    name: str, num_groups: int = 32, channels_per_group: int | None = None, *, dims: int = 3
) -> NormFactory:
    """What builds the norm layers of a network.

    Args:
        name: a key of :data:`NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        dims: 2 for inputs (B, C, H, W), 3 for inputs (B, C, T, H, W).

    Raises:
        UserError: there is no such norm; the factory raises it for channels that the groups do
            not divide.
    """
    if name not in NORMS:
        raise UserError(f"model.norm={name!r}: no such norm; choose from {', '.join(NORMS)}")
    build = NORMS[name]

    def build_layer(num_channels: int) -> nn.Module:
        groups = _Groups(num_channels, num_groups, channels_per_group)
        return build(num_channels, dims, groups)

    return build_layer


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer of any kind."""
    return isinstance(module, NORM_TYPES)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Gamma and beta of every norm layer: the parameters that may have their own weight decay."""
    for module in model.modules():
        if is_norm(module):
            yield from module.parameters(recurse=False)


@dataclass(frozen=True)
class _Groups:
    """How the channels of one layer are to be grouped, worked out only where a norm asks."""

    num_channels: int
    num_groups: int
    channels_per_group: int | None

    def count(self) -> int:
        """Number of groups of contiguous channels.

        Raises:
            UserError: the channels cannot be shared out evenly.
        """
        channels, size = self.num_channels, self.channels_per_group
        divisor = self.num_groups if size is None else size
        if channels % divisor:
            # Layers are multiples of the stem, which is built first: what fits it fits them all.
            fitting = math.gcd(channels, divisor)
            wish = f"{divisor} groups" if size is None else f"groups of {size} channels"
            remedy = f"model.channels_per_group={fitting if size else math.gcd(channels, 4)}"
            other = f" or model.num_groups={fitting}" if size is None else ""
            raise UserError(
                f"GN cannot share {channels} channels out to {wish}; set {remedy}{other}"
            )
        return self.num_groups if size is None else channels // size


class FrozenBatchNorm(nn.Module):
    """BN*: y = gamma (x - mu) / sqrt(var + eps) + beta with the stored mu and var, in training too.

    Nothing of it is trained (paper section 4.2). Gamma and beta are parameters without gradient,
    so that they count and are named as those of every other norm.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_channels), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_load_state_dict_pre_hook(_forget_counter)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, *) of inputs (N, C, *)."""
        # batch_norm subtracts the mean before it scales, which holds at large means.
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def extra_repr(self) -> str:
        """What printing the layer shows."""
        return f"{self.num_channels}, eps={self.eps}"


def _forget_counter(_layer: Any, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """BN's count of batches, in the weights that BN* is frozen from, has no use here."""
    state.pop(f"{prefix}num_batches_tracked", None)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BN over the samples of all processes, on any device.

    torch's own layer refuses tensors of the CPU, and its data-parallel wrapper refuses that layer
    there. On GPUs :func:`use_native_sync` exchanges this one for torch's.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"inputs must be (N, C, *), got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, *) of this process's inputs (N, C, *)."""
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        # Of a meta tensor only the shape is asked for, which no other process has to know.
        if not (self.training and several) or x.device.type == "meta":
            return super().forward(x)
        return self._forward_together(x)

    def _forward_together(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = _total(x.new_tensor([x.numel() / x.shape[1]]))
        mean = _total(x.sum(axes)) / count
        # Centred before it is squared: E[x^2] - E[x]^2 loses everything at large means.
        centred = x - mean.view(shape)
        var = _total(centred.square().sum(axes)) / count
        self._update(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        scale = self.weight * torch.rsqrt(var + self.eps)
        return centred * scale.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, BN_MOMENTUM)
        self.running_var.lerp_(unbiased_var, BN_MOMENTUM)


def use_native_sync(network: nn.Module) -> nn.Module:
    """The network with torch's own, faster layers in place of :class:`SyncBatchNorm`: on GPUs."""
    if not any(isinstance(module, SyncBatchNorm) for module in network.modules()):
        return network
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def _total(values: Tensor) -> Tensor:
    """Sum over all processes, through which gradients flow back."""
    summed: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return summed


class GroupNorm(nn.GroupNorm):
    """torch's layer; our own code where that is inaccurate (:mod:`videogn.models.accurate_gn`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, *) of inputs (N, C, *)."""
        if wants_accuracy(x):
            return accurate_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)


def _batch_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    layer = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return layer(num_channels, eps=EPS, momentum=BN_MOMENTUM)


def _frozen_batch_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    return FrozenBatchNorm(num_channels)


def _sync_batch_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    return SyncBatchNorm(num_channels, eps=EPS, momentum=BN_MOMENTUM)


def _group_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    # torch's GroupNorm takes its statistics over all axes behind the channels, so over (T, H, W)
    # for video (paper section 4.3).
    return GroupNorm(groups.count(), num_channels, eps=EPS)


def _layer_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    # The paper's LN is over (C, T, H, W) with gamma and beta per channel, not torch's LayerNorm.
    return GroupNorm(1, num_channels, eps=EPS)


def _instance_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    # One channel a group; torch's InstanceNorm refuses maps of a single place.
    return GroupNorm(num_channels, num_channels, eps=EPS)


def _no_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[int, int, _Groups], nn.Module]] = {
    "bn": _batch_norm,
    "frozen_bn": _frozen_batch_norm,
    "sync_bn": _sync_batch_norm,
    "gn": _group_norm,
    "ln": _layer_norm,
    "in": _instance_norm,
    "none": _no_norm,
}
"""Name -> builder of one layer from its channels, its spatial dimensions and its groups."""

GROUP_NORMS = ("gn", "ln", "in")
"""Norms that torch's GroupNorm computes."""

BATCH_NORMS = ("bn", "sync_bn", "frozen_bn")
"""Norms with stored statistics, whose weights may take each other's place."""

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of any dimension
    FrozenBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
