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
from videogn.models.fused import as_kind, exchange, is_plain_pool, triple, twin_of_whole
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


class SlicedMaxPool(nn.MaxPool3d):
    """Max pool as maxima of slices, axis by axis.

    torch's writes 64-bit places of maxima too, four times the bytes of halves, and a CPU's autocast
    takes it to float32 first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C, T', H', W') of inputs (N, C, T, H, W)."""
        if x.requires_grad or not is_sliceable(self, x):
            pooled: Tensor = super().forward(x)
            return pooled
        sizes = map(triple, (self.kernel_size, self.stride, self.padding))
        windows = zip(*sizes, strict=True)
        # W first: what the other axes read is smaller then, and still in long runs.
        for axis, window in reversed(list(enumerate(windows, start=2))):
            x = x if window == (1, 1, 0) else _maxima(x, axis, *window)
        return x


def is_sliceable(pool: nn.MaxPool3d, x: Tensor) -> bool:
    """Whether there is an output, and every window's first unpadded value is one of the input's.

    It may not be where a window is padded by half.
    """
    windows = zip(triple(pool.kernel_size), triple(pool.padding), x.shape[2:], strict=True)
    return all(2 * pad < kernel <= size + 2 * pad for kernel, pad, size in windows)


def _maxima(x: Tensor, axis: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Maxima over windows along one axis, whose padding counts as -inf."""
    length = x.shape[axis]
    count = (length + 2 * padding - kernel) // stride + 1
    out = _every(x, axis, 0, stride, count).clone(memory_format=torch.preserve_format)
    for place in range(kernel):
        # Input of output j: j stride + start.
        start = place - padding
        first = max(0, -(start // stride))
        last = min(count - 1, (length - 1 - start) // stride)
        if start == 0 or last < first:
            continue
        part = out.narrow(axis, first, last - first + 1)
        values = _every(x, axis, first * stride + start, stride, last - first + 1)
        torch.maximum(part, values, out=part)
    return out


def _every(x: Tensor, axis: int, start: int, stride: int, count: int) -> Tensor:
    """``count`` slices of an axis from ``start`` on, ``stride`` apart."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + (count - 1) * stride + 1, stride)
    return x[tuple(index)]


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
    plain = type(module) is nn.MaxPool3d and is_plain_pool(module)
    return as_kind(SlicedMaxPool, module) if plain else None


def _twin_of_whole(module: nn.Module) -> nn.Module | None:
    twin = twin_of_whole(module, NORMS)
    if twin is not None:
        exchange(twin, _twin_of_norm)
    return twin


def _twin_of_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, Folded):
        return as_kind(InPlaceFolded, module)
    return as_kind(InPlaceGroupNorm, module) if isinstance(module, nn.GroupNorm) else None
