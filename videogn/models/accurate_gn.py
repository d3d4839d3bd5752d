"""Group norm of tensors with their channels last on a CPU, accurate at any mean.

torch's own sums x and x^2 there, one number after the other: at a standard deviation of 1.5 its
outputs are off by 6e-2 at a mean of 1e3 and by 360 at 1e4, and by 1e-4 at a mean of 0. Here
squares are of distances from a mean, sums are of few numbers at a time, and what is merged of
them is merged in float64. What comes behind the norm, a residual sum and ReLU, is done to each
block of values while it is in the cache.

Shapes: N clips or images, C channels in G groups, P positions of (T, H, W) or (H, W).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Rank -> the memory format of channels last."""
BLOCK_BYTES = 1 << 20
"""What a thread works on at once, which stays near it in the cache between the operations."""
FAR = 4.0
"""A mean of more standard deviations than this is subtracted before anything else is done."""
SAMPLE = 16
"""Positions whose mean is near a channel's mean."""


def wants_accuracy(x: Tensor) -> bool:
    """Whether a tensor is one that torch's group norm is inaccurate for.

    A tensor that may be read in either order has one position, or one channel, and goes to torch,
    as does one of float64, in which sums of squares lose little.
    """
    last = FORMATS.get(x.ndim)
    if last is None or x.device.type != "cpu" or x.is_contiguous() or x.dtype == torch.float64:
        return False
    return x.is_contiguous(memory_format=last)


def accurate_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> Tensor:
    """relu(GN(x) + residual), (N, C, *) -> (N, C, *), both with channels last and of x's type.

    Args:
        x: on a CPU, with its channels last; float32, bfloat16 or float16.
        weight, bias: (C,) of any floating type; 1 and 0 where None.
        residual: (N, C, *), of any type and order in memory.
        overwrite: whether the result may be written over x, where there is no gradient.
    """
    values = (x, weight, bias, residual)
    layer = _Layer(num_groups, weight, bias, eps)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values):
        return _behind(_differentiable(x, layer), residual, relu)
    if torch.compiler.is_compiling():
        return _behind(_like(_in_one(_rows(x), layer), x), residual, relu)
    rows = _rows(x)
    out = rows if overwrite else torch.empty_like(rows)
    for place, clip in enumerate(rows):
        after = _After(None if residual is None else _rows(residual[place : place + 1])[0], relu)
        _in_blocks(clip, layer, after, out[place])
    return _like(out, x)


def add_and_clamp(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """relu(x + residual), written over x (N, C, *) block by block.

    Args:
        residual: (N, C, *), of any type and order in memory.
    """
    if not wants_accuracy(x):
        return _behind(x, residual, relu)
    rows = _rows(x).flatten(0, 1)
    after = _After(None if residual is None else _rows(residual).flatten(0, 1), relu)
    for first, block in _blocks(rows):
        after.apply(block, first, block)
    return x


def _behind(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """relu(y + residual) of a tensor that nothing else needs."""
    y = y if residual is None else y.add_(residual)
    return y.relu_() if relu else y


def _rows(x: Tensor) -> Tensor:
    """(N, C, *) -> (N, P, C), without a copy where channels are last."""
    return x.movedim(1, -1).flatten(1, -2)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """(N, P, C) -> (N, C, *), of x's shape."""
    return rows.view(len(x), *x.shape[2:], -1).movedim(-1, 1)


class _Layer(NamedTuple):
    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class _After(NamedTuple):
    """What is done to a norm's outputs.

    Attributes:
        residual: (P, C), is added.
    """

    residual: Tensor | None
    relu: bool

    def apply(self, block: Tensor, first: int, into: Tensor) -> None:
        """Write a block of outputs (B, C), which may be changed, to where they belong.

        Args:
            first: row of the block.
            into: (B, C), the block itself or of another type.
        """
        if self.residual is not None:
            block.add_(self.residual[first : first + len(block)])
        if self.relu:
            torch.clamp_min(block, 0, out=into if into.dtype == block.dtype else block)
        if into.dtype != block.dtype or not (self.relu or into is block):
            into.copy_(block)


def _differentiable(x: Tensor, layer: _Layer) -> Tensor:
    """By torch's code for contiguous tensors, which is accurate near a mean of 0.

    A group's outputs do not depend on what is subtracted from all of it, nor do gradients.
    """
    groups, weight, bias = layer.num_groups, _float(layer.weight), _float(layer.bias)
    near = _near_means(_rows(x.detach())).view(len(x), groups, -1).mean(2, keepdim=True)
    near = near.expand(-1, -1, x.shape[1] // groups).flatten(1)
    shifted = x.float() - near.view(*near.shape, *[1] * (x.ndim - 2))
    out = F.group_norm(shifted.contiguous(), groups, weight, bias, layer.eps)
    return out.to(x.dtype).contiguous(memory_format=FORMATS[x.ndim])


def _in_one(rows: Tensor, layer: _Layer) -> Tensor:
    """Of whole tensors (N, P, C), for a compiler to fuse."""
    near = _near_means(rows)
    apart = rows.float() - near[:, None]
    mean, squares = apart.mean(1).double(), apart.square().mean(1).double()
    affine = _affine(near + mean, squares - mean.square(), near, layer)
    return (apart * affine.scale[:, None] + affine.shift[:, None]).to(rows.dtype)


def _near_means(rows: Tensor) -> Tensor:
    """Values near the means of the channels of (N, P, C): (N, C) float32."""
    step = max(1, rows.shape[1] // SAMPLE)
    return rows[:, step // 2 :: step].float().mean(1)


def _in_blocks(rows: Tensor, layer: _Layer, after: _After, out: Tensor) -> None:
    """Of one clip (P, C), block by block.

    Args:
        out: (P, C), for the outputs; may be ``rows``.
    """
    mean, variance = _moments(rows)
    affine = _affine(mean, variance, None, layer)
    near = None
    if not float(affine.distance.abs().max()) <= FAR:
        near = mean.float()
        affine = _affine(*_moments(rows, near), near, layer)
    for (first, block), (_, into) in zip(_blocks(rows), _blocks(out), strict=True):
        after.apply(_scaled(block, affine, near, into), first, into)


def _scaled(block: Tensor, affine: "_Affine", near: Tensor | None, into: Tensor) -> Tensor:
    """(x - near) scale + shift of a block (B, C): written to ``into`` where that is float32."""
    if near is not None:
        apart = block.float() - near
        return torch.addcmul(affine.shift, apart, affine.scale, out=apart)
    if block.dtype == torch.float32:
        return torch.addcmul(affine.shift, block, affine.scale, out=into)
    # A batch norm of mean 0 and variance 1 is torch's one such operation on halves.
    zeros, ones = torch.zeros_like(affine.scale), torch.ones_like(affine.scale)
    image = F.batch_norm(_image(block), zeros, ones, affine.scale, affine.shift, False, 0.0, 0.0)
    return image[0, :, :, 0].t()


def _moments(rows: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of one clip (P, C): (C,) float64 each.

    Args:
        near: (C,) float32, is subtracted from the rows first: their means are then exact.
    """
    # Of halves, torch gives float32 statistics where those that it would update are float32.
    zeros = rows.new_zeros(rows.shape[1], dtype=torch.float32)
    parts, sizes = [], []
    for _, block in _blocks(rows):
        values = block if near is None else block.float() - near
        # Means, then the squares of distances from them: twice over what lies in the cache.
        parts.append(torch.batch_norm_update_stats(_image(values), zeros, zeros, 0.0))
        sizes.append(len(block))
    means = torch.stack([part[0] for part in parts]).double()
    variances = torch.stack([part[1] for part in parts]).double()
    if len(parts) == 1:
        mean, variance = means[0], variances[0]
    else:
        share = torch.tensor(sizes, dtype=torch.double)[:, None] / len(rows)
        mean = (means * share).sum(0)
        variance = ((variances + (means - mean).square()) * share).sum(0)
    return mean if near is None else mean + near, variance


def _image(block: Tensor) -> Tensor:
    """(B, C) -> (1, C, B, 1) with its channels last."""
    return block[None, :, None].permute(0, 3, 1, 2)


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and rows (B, C) of each block of (P, C)."""
    size = _block_rows(rows)
    return zip(range(0, len(rows), size), torch.split(rows, size), strict=True)


def _block_rows(rows: Tensor) -> int:
    row_bytes = rows.shape[-1] * rows.element_size()
    return max(1, BLOCK_BYTES * torch.get_num_threads() // row_bytes)


class _Affine(NamedTuple):
    """What inputs less ``near`` are multiplied by and what is added, (..., C) float32.

    Attributes:
        distance: of ``near``, or of 0, from the channel's mean in standard deviations of the group.
    """

    scale: Tensor
    shift: Tensor
    distance: Tensor


def _affine(mean: Tensor, variance: Tensor, near: Tensor | None, layer: _Layer) -> _Affine:
    """What a layer does to its inputs less ``near``.

    Args:
        mean, variance: of the channels, (..., C) float64.
        near: (..., C) float32; 0 where None.
    """
    means = mean.view(*mean.shape[:-1], layer.num_groups, -1)
    group_mean = means.mean(-1, keepdim=True)
    apart = means - group_mean
    # Of a group: that within its channels and that between their means.
    spread = (variance.view_as(means) + apart.square()).mean(-1, keepdim=True)
    rstd = torch.rsqrt(spread + layer.eps)
    scale = rstd.expand_as(means).flatten(-2)
    distance = (mean if near is None else mean - near) * scale
    # near - group mean = (mean - group mean) - (mean - near)
    shift = (apart * rstd).flatten(-2) - distance
    if layer.weight is not None:
        scale, shift = scale * layer.weight, shift * layer.weight
    if layer.bias is not None:
        shift = shift + layer.bias
    return _Affine(scale.float(), shift.float(), distance)


def _float(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float()
