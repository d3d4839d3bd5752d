"""The same networks with less traffic to memory, for testing on a CPU.

A CPU takes as long to write and read activations as to convolve. In the twins of residual blocks
and stems a norm, or what is left of one that was folded into its convolution, writes the residual
sum and ReLU over its input, which nothing else reads: each value goes through the cache once, and
no memory is asked for. Shapes: N clips, C channels, T frames, H x W positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogn.models.accurate_gn import accurate_group_norm, add_and_clamp, wants_accuracy
from videogn.models.folding import Folded
from videogn.models.fused import as_kind, exchange, twin_of_whole
from videogn.models.norm import GroupNorm


class InPlaceGroupNorm(GroupNorm):
    """GN with residual sum and ReLU. Its input is lost, but where a gradient is asked for."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Outputs relu(GN(x) + residual), (N, C, *), of inputs (N, C, *)."""
        affine = (self.num_groups, self.weight, self.bias, self.eps)
        if wants_accuracy(x):
            return accurate_group_norm(x, *affine, residual=residual, relu=relu, overwrite=True)
        return add_and_clamp(F.group_norm(x, *affine), residual, relu)


class InPlaceFolded(Folded):
    """What is behind a norm that was folded. Its input is lost."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Outputs relu(x + residual), (N, C, *), of inputs (N, C, *)."""
        return add_and_clamp(x, residual, relu)


class SameTypeMaxPool(nn.MaxPool3d):
    """Max pool in its input's type: exact in any, yet a CPU's autocast would go to float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, T', H', W') of inputs (N, C, T, H, W)."""
        with torch.autocast("cpu", enabled=False):
            pooled: Tensor = super().forward(x)
        return pooled


NORMS = (nn.GroupNorm, Folded)
"""What may be in the place of a norm."""


def work_in_place(network: nn.Module) -> int:
    """Exchange max pools, and the stem and residual blocks, for twins with the same parameters.

    Blocks and stems of another form (swish, squeeze-and-excitation, BN that is not folded) stay as
    they are.

    Args:
        network: for testing, on a CPU; its batch norms are folded already.

    Returns:
        How many residual blocks were exchanged.
    """
    exchange(network, _twin_of_pool)
    return exchange(network, _twin_of_whole)


def _twin_of_pool(module: nn.Module) -> nn.Module | None:
    return as_kind(SameTypeMaxPool, module) if type(module) is nn.MaxPool3d else None


def _twin_of_whole(module: nn.Module) -> nn.Module | None:
    twin = twin_of_whole(module, NORMS)
    if twin is not None:
        exchange(twin, _twin_of_norm)
    return twin


def _twin_of_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, Folded):
        return as_kind(InPlaceFolded, module)
    return as_kind(InPlaceGroupNorm, module) if isinstance(module, nn.GroupNorm) else None
