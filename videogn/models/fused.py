"""The same networks with norm, residual sum and ReLU as one kernel, and pools of one-byte codes.

The modules of a built network are exchanged for twins that hold the very same parameters and
buffers under the same names: checkpoints do not know. Shapes: N clips, C channels, T frames,
H x W positions.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from videogn.models.kernels import norm as norm_kernels
from videogn.models.kernels import pool as pool_kernels
from videogn.models.norm import GroupNorm
from videogn.models.recompute import Recipe, dropping, recomputed_block

RECOMPUTE = ("none", "act", "act+conv_c", "block")
"""What of a residual block the backward pass computes again: nothing; the two activations between
its convolutions; those and the outputs of the last convolution and the shortcut's; everything."""

Module = TypeVar("Module", bound=nn.Module)


class FusedGroupNorm(nn.GroupNorm):
    """GN whose ReLU and residual sum are part of its kernel (paper, section 3.1)."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Outputs relu(GN(x) + residual), (N, C, *), of inputs (N, C, *)."""
        return self.act(x, self.statistics(x), residual, relu)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation of each group, (N, G) float32 both."""
        return norm_kernels.group_norm_statistics(x, self.num_groups, self.eps)

    def act(
        self,
        x: Tensor,
        statistics: tuple[Tensor, Tensor],
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """The output, by statistics that are there already."""
        return norm_kernels.activate(x, *statistics, self.weight, self.bias, residual, relu=relu)


class FusedBatchNorm(nn.BatchNorm3d):
    """BN with the same kernels, for a fair comparison and for training as fast as GN's."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Outputs relu(BN(x) + residual), (N, C, *), of inputs (N, C, *)."""
        return self.act(x, self.statistics(x), residual, relu)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation of each channel, (1, C) float32 both.

        In training of these clips, which enter the running averages; else the stored ones.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return norm_kernels.stored_statistics(self.running_mean, self.running_var, self.eps)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        assert self.momentum is not None
        return norm_kernels.batch_norm_statistics(
            x, self.running_mean, self.running_var, self.momentum, self.eps
        )

    def act(
        self,
        x: Tensor,
        statistics: tuple[Tensor, Tensor],
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """The output, by statistics that are there already."""
        return norm_kernels.activate(
            x, *statistics, self.weight, self.bias, residual, relu=relu, fixed=not self.training
        )


FUSED_NORMS = (FusedGroupNorm, FusedBatchNorm)
PLAIN_GROUP_NORMS = (nn.GroupNorm, GroupNorm)


class FusedMaxPool(nn.MaxPool3d):
    """Max pool that keeps a byte for each output instead of the input and 64-bit places."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, T', H', W') of inputs (N, C, T, H, W)."""
        return pool_kernels.max_pool3d(
            x, triple(self.kernel_size), triple(self.stride), triple(self.padding)
        )


class FusedStem(nn.Module):
    """Convolution, norm with ReLU, and pool of pytorchvideo's ``ResNetBasicStem``."""

    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.conv = stem.conv
        self.norm = stem.norm
        self.pool = stem.pool

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, T', H', W') of clips (N, 3, T, H, W)."""
        y: Tensor = self.norm(self.conv(x), relu=True)
        return y if self.pool is None else self.pool(y)


class FusedBlock(nn.Module):
    """pytorchvideo's ``ResBlock`` around a bottleneck of three convolutions.

    Args:
        block: the block, its norms fused already.
        recompute: one of :data:`RECOMPUTE`.
    """

    def __init__(self, block: Any, recompute: str) -> None:
        super().__init__()
        self.branch1_conv = block.branch1_conv
        self.branch1_norm = block.branch1_norm
        self.branch2 = block.branch2
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C', T, H', W') of inputs (N, C, T, H, W)."""
        if not torch.is_grad_enabled() or self.recompute == "none":
            return self._plain(x)
        if self.recompute == "block":
            return recomputed_block(self._plain, self, x)
        return self._sparing(x)

    def _plain(self, x: Tensor) -> Tensor:
        parts: Any = self.branch2
        a = parts.norm_a(parts.conv_a(x), relu=True)
        b = parts.norm_b(parts.conv_b(a), relu=True)
        shortcut = x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        out: Tensor = parts.norm_c(parts.conv_c(b), shortcut, relu=True)
        return out

    def _sparing(self, x: Tensor) -> Tensor:
        """The same; the convolutions' inputs, and perhaps outputs behind them, are not kept."""
        parts: Any = self.branch2
        outputs_too = self.recompute == "act+conv_c"
        a, recipe = _activated(parts.norm_a, parts.conv_a(x))
        with dropping(a, recipe):
            z = parts.conv_b(a)
        del a
        b, recipe = _activated(parts.norm_b, z)
        with dropping(b, recipe):
            c = parts.conv_c(b)
        del b
        shortcut = x
        if self.branch1_conv is not None:
            shortcut, kept = self.branch1_conv(x), x.detach()
            again = _convolved(self.branch1_conv, lambda: kept, shortcut.dtype)
            with dropping(shortcut, again) if outputs_too else nullcontext():
                shortcut = self.branch1_norm(shortcut)
        # Its own backward pass needs the input of conv_c too: it is made once for both.
        again = _convolved(parts.conv_c, lambda: recipe(keep=True), c.dtype)
        with dropping(c, again) if outputs_too else nullcontext():
            out: Tensor = parts.norm_c(c, shortcut, relu=True)
        return out


def _activated(norm: Any, z: Tensor) -> tuple[Tensor, Recipe]:
    """relu(norm(z)), and how to have it again of what is kept of it in any case."""
    statistics = norm.statistics(z)
    kept = z.detach()
    recipe = Recipe(lambda: norm.act(kept, statistics, relu=True))
    return norm.act(z, statistics, relu=True), recipe


def _convolved(convolution: nn.Module, source: Callable[[], Tensor], dtype: torch.dtype) -> Recipe:
    """A convolution's output.

    Args:
        source: gives its input.
        dtype: of the output. The backward pass runs outside of autocast.
    """

    def compute() -> Tensor:
        weights = {name: p.to(dtype) for name, p in convolution.named_parameters()}
        out: Tensor = functional_call(convolution, weights, (source().to(dtype),))
        return out

    return Recipe(compute)


def fuse(network: nn.Module, recompute: str = "none") -> int:
    """Exchange the norms, pools, stem and residual blocks of a network for fused ones, in place.

    What is of another form (swish, squeeze-and-excitation, branches that are added up before the
    norm) keeps its form, with fused norms in it.

    Args:
        recompute: one of :data:`RECOMPUTE`, for the residual blocks.

    Returns:
        How many residual blocks were exchanged.
    """
    exchange(network, _fused_layer)
    return exchange(network, lambda module: twin_of_whole(module, FUSED_NORMS, recompute))


def exchange(parent: nn.Module, twin_of: Callable[[nn.Module], nn.Module | None]) -> int:
    """Exchange the modules below ``parent`` that have a twin; those inside of one stay.

    Returns:
        How many residual blocks were exchanged.
    """
    count = 0
    for name, child in list(parent.named_children()):
        twin = twin_of(child)
        if twin is None:
            count += exchange(child, twin_of)
            continue
        twin.train(child.training)
        setattr(parent, name, twin)
        count += isinstance(twin, FusedBlock)
    return count


def _fused_layer(module: nn.Module) -> nn.Module | None:
    if type(module) in PLAIN_GROUP_NORMS and module.affine:
        return as_kind(FusedGroupNorm, module)
    if type(module) is nn.BatchNorm3d and _is_usual(module):
        return as_kind(FusedBatchNorm, module)
    if type(module) is nn.MaxPool3d and is_plain_pool(module):
        return as_kind(FusedMaxPool, module)
    return None


def twin_of_whole(
    module: nn.Module, norms: tuple[type[nn.Module], ...], recompute: str = "none"
) -> nn.Module | None:
    """The twin of a stem or residual block; None of anything else.

    Args:
        norms: the types whose layers take a residual and ReLU.
        recompute: one of :data:`RECOMPUTE`.
    """
    if _is_plain_stem(module, norms):
        return FusedStem(module)
    if _is_plain_block(module, norms):
        return FusedBlock(module, recompute)
    return None


def as_kind(kind: type[Module], module: nn.Module) -> Module:
    """A module as another class of the same parameters, buffers and settings."""
    twin = kind.__new__(kind)
    twin.__dict__.update(module.__dict__)
    return twin


def _is_usual(norm: nn.BatchNorm3d) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def is_plain_pool(pool: nn.MaxPool3d) -> bool:
    """Whether a pool gives nothing but maxima, of windows without holes."""
    undilated = triple(pool.dilation) == (1, 1, 1)
    return undilated and not pool.ceil_mode and not pool.return_indices


def triple(value: Any) -> tuple[int, int, int]:
    """A size of torch's pools, a number or three, as three."""
    if isinstance(value, int):
        return (value, value, value)
    first, second, third = value
    return (int(first), int(second), int(third))


def _is_plain_stem(module: Any, norms: tuple[type[nn.Module], ...]) -> bool:
    return (
        type(module).__name__ == "ResNetBasicStem"
        and isinstance(module.norm, norms)
        and isinstance(module.activation, nn.ReLU)
    )


def _is_plain_block(module: Any, norms: tuple[type[nn.Module], ...]) -> bool:
    """Whether a block is conv, norm, ReLU twice, conv and norm, a sum and a ReLU."""
    if type(module).__name__ != "ResBlock" or type(module.branch2).__name__ != "BottleneckBlock":
        return False
    parts = module.branch2
    layers = [parts.norm_a, parts.norm_b, parts.norm_c]
    if module.branch1_conv is not None:
        layers.append(module.branch1_norm)
    acts = [parts.act_a, parts.act_b, module.activation]
    return (
        all(isinstance(layer, norms) for layer in layers)
        and all(isinstance(act, nn.ReLU) for act in acts)
        and _adds(module.branch_fusion)
    )


def _adds(fusion: Callable[[Tensor, Tensor], Tensor]) -> bool:
    return float(fusion(torch.tensor(2.0, device="cpu"), torch.tensor(5.0, device="cpu"))) == 7.0
