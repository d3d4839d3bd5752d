"""Group norm of tensors with their channels last on a CPU, accurate at any mean.

torch's own sums x and x^2 there, one number after the other: at a standard deviation of 1.5 its
outputs are off by 6e-2 at a mean of 1e3 and by 360 at 1e4, and by 1e-4 at a mean of 0. Here
squares are of distances from a mean, sums are of few numbers at a time, and what is merged of
them is merged in float64.

Shapes: N clips or images, C channels in G groups, P positions of (T, H, W) or (H, W).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Rank -> the memory format of channels last."""
BLOCK = 1 << 17
"""Values worked on at once: half a megabyte, which stays in the cache between the operations."""
FAR = 4.0
"""A mean of more standard deviations than this is subtracted before anything else is done."""
SAMPLE = 16
"""Positions whose mean is near a channel's mean."""


def wants_accuracy(x: Tensor) -> bool:
    """Whether a tensor is one that torch's group norm is inaccurate for.

    A tensor that may be read in either order has one position, or one channel, and goes to torch.
    """
    last = FORMATS.get(x.ndim)
    if last is None or x.device.type != "cpu" or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=last)


def accurate_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Group norm (N, C, *) -> (N, C, *), both with their channels last and of x's type.

    Args:
        x: on a CPU, with its channels last; float64 is computed in float32.
        weight, bias: (C,) of any floating type; 1 and 0 where None.
    """
    values = (x, weight, bias)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values):
        return _differentiable(x, num_groups, weight, bias, eps)
    rows = x.movedim(1, -1).flatten(1, -2)
    layer = _Layer(num_groups, weight, bias, eps)
    if torch.compiler.is_compiling():
        out = _in_one(rows, layer)
    else:
        out = torch.empty_like(rows)
        room = torch.empty(min(_block_rows(rows), rows.shape[1]), rows.shape[2])
        for clip, into in zip(rows, out, strict=True):
            _in_blocks(clip, layer, room, into)
    return out.view(len(x), *x.shape[2:], -1).movedim(-1, 1)


class _Layer(NamedTuple):
    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def _differentiable(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """By torch's code for contiguous tensors, which is accurate near a mean of 0.

    A group's outputs do not depend on what is subtracted from all of it, nor do gradients.
    """
    rows = x.detach().movedim(1, -1).flatten(1, -2)
    near = _near_means(rows).view(len(x), num_groups, -1).mean(2, keepdim=True)
    near = near.expand(-1, -1, x.shape[1] // num_groups).flatten(1)
    shifted = x.float() - near.view(*near.shape, *[1] * (x.ndim - 2))
    out = F.group_norm(shifted.contiguous(), num_groups, _float(weight), _float(bias), eps)
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


def _in_blocks(rows: Tensor, layer: _Layer, room: Tensor, out: Tensor) -> None:
    """Of one clip (P, C), block by block.

    Args:
        room: float32, for a block of rows.
        out: (P, C), for the outputs.
    """
    mean, variance = _moments(rows, None, room)
    near, affine = None, _affine(mean, variance, None, layer)
    if not float(affine.distance.abs().max()) <= FAR:
        near = mean.float()
        affine = _affine(*_moments(rows, near, room), near, layer)
    size = _block_rows(rows)
    for block, into in zip(torch.split(rows, size), torch.split(out, size), strict=True):
        # float32 needs no room.
        done = into if out.dtype == torch.float32 else room[: len(block)]
        torch.addcmul(affine.shift, _apart(block, near, done), affine.scale, out=done)
        if done is not into:
            into.copy_(done)


def _moments(rows: Tensor, near: Tensor | None, room: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of one clip (P, C): (C,) float64 each.

    Args:
        near: (C,) float32, is subtracted from the rows first: their means are then exact.
        room: float32, for a block of rows.
    """
    size = _block_rows(rows)
    parts = []
    for block in torch.split(rows, size):
        image = _apart(block, near, room[: len(block)]).t()[None, :, :, None]
        # Means, then the squares of distances from them: twice over what lies in the cache.
        parts.append(torch.batch_norm_update_stats(image, None, None, 0.0))
    means = torch.stack([part[0] for part in parts]).double()
    variances = torch.stack([part[1] for part in parts]).double()
    if len(parts) == 1:
        mean, variance = means[0], variances[0]
    else:
        share = torch.full((len(parts), 1), size / len(rows), dtype=torch.double)
        share[-1] = 1 - (len(parts) - 1) * size / len(rows)
        mean = (means * share).sum(0)
        variance = ((variances + (means - mean).square()) * share).sum(0)
    return mean if near is None else mean + near, variance


def _apart(block: Tensor, near: Tensor | None, room: Tensor) -> Tensor:
    """A block (P, C) less ``near``, in float32: itself where there is nothing to do."""
    if near is not None:
        return torch.sub(block, near, out=room)
    return block if block.dtype == torch.float32 else room.copy_(block)


def _block_rows(rows: Tensor) -> int:
    return max(1, BLOCK // rows.shape[-1])


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
