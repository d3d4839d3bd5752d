"""Group and batch normalisation with residual sum and ReLU as operators of torch.

Shapes: x is (N, C, *) in float32, float16 or bfloat16, contiguous or with channels last (anything
else is copied into one of the two); statistics and their sums are float32; results have x's dtype
and memory format. Two operators make one layer, so that selective checkpointing can keep the
statistics and compute the activation again:

* ``videogn::norm_stats``: mean and rstd = 1 / sqrt(var + eps), (N, G), or (1, C) over the batch;
* ``videogn::norm_act``: y = relu((x - mean) * rstd * weight + bias + residual).

``norm_act``'s gradient with respect to x includes the way through mean and rstd, which count as
functions of x, not as inputs; with ``fixed`` they are constants.

Kept for the backward pass are x, mean and rstd, and y where ReLU follows a residual sum. Without
a residual, where ReLU let through is computed again from x.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videogn.models.kernels.launch import is_available, kernels_for, on_device

__all__ = ["batch_norm", "group_norm", "is_available"]

_LIBRARY = torch.library.Library("videogn", "FRAGMENT")  # type: ignore[no-untyped-call]
_SCHEMAS = (
    "norm_stats(Tensor x, int num_groups, bool over_batch, float eps) -> (Tensor, Tensor)",
    "norm_act(Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, Tensor? residual,"
    " bool relu, bool fixed) -> Tensor",
    "norm_act_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight,"
    " Tensor bias, Tensor? y, bool relu, bool fixed, bool residual_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_WARPS = 4
_TILE_BYTES = 4096
"""Of one tensor: 32 bytes a thread, two of the widest loads."""
_STATS_TILE_BYTES = 2048
"""Statistics are the quicker for more programs of fewer registers."""
_STATS_PROGRAMS = 1024
_SUMS_PROGRAMS = 640
_MAP_PROGRAMS = 8192
"""About as many programs: for those that reduce, as many as run at once and few to be merged."""
_STATS_TILES, _SUMS_TILES = 4, 2
"""Tiles that a program loads before it uses the first."""
_MERGE_BLOCK = 1024
_MERGE_SPLITS = 128
_MERGE_CHANNELS = 8
"""Channels of a program that sums over splits: one sector of 32 bytes."""


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(GN(x) + residual): (N, C, *) of x (N, C, *), weight and bias (C,), residual as x.

    Differentiable once in x, weight, bias and residual.

    Raises:
        ValueError: shapes do not fit, or groups do not divide the channels.
        TypeError: a dtype that the kernels do not know.
    """
    _check(x, weight, bias, residual)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"{x.shape[1]} channels cannot be shared out to {num_groups} groups")
    mean, rstd = _norm_stats(x.detach(), num_groups, False, eps)
    return _norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, False)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(BN(x) + residual), with the batch's statistics in training, else the running ones.

    In training the running statistics move by ``momentum`` towards the batch's mean and unbiased
    variance, as torch's do.

    Raises:
        ValueError: shapes do not fit, training has one value per channel, or running statistics
            are missing outside of training.
        TypeError: a dtype that the kernels do not know.
    """
    _check(x, weight, bias, residual)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var are needed outside of training")
        mean = running_mean.float()[None]
        rstd = torch.rsqrt(running_var.float() + eps)[None]
        return _norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, True)
    count = _values_per_channel(x)
    mean, rstd = _norm_stats(x.detach(), x.shape[1], True, eps)
    if running_mean is not None and running_var is not None:
        _update(running_mean, running_var, mean[0], rstd[0], momentum, eps, count)
    return _norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, False)


def group_norm_statistics(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(var + eps) of every group of every sample, (N, G); without gradient."""
    return _norm_stats(x.detach(), num_groups, False, eps)


def batch_norm_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Those of every channel over the batch, (1, C), which move the running ones; no gradient.

    Raises:
        ValueError: there is one value per channel.
    """
    count = _values_per_channel(x)
    mean, rstd = _norm_stats(x.detach(), x.shape[1], True, eps)
    _update(running_mean, running_var, mean[0], rstd[0], momentum, eps, count)
    return mean, rstd


def _values_per_channel(x: Tensor) -> int:
    count = x.numel() // x.shape[1]
    if count <= 1:
        raise ValueError(f"training takes more than one value per channel, got {tuple(x.shape)}")
    return count


def stored_statistics(
    running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Running statistics in the form of the others, (1, C); for ``fixed`` ones."""
    return running_mean.float()[None], torch.rsqrt(running_var.float() + eps)[None]


def activate(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    fixed: bool = False,
) -> Tensor:
    """relu((x - mean) * rstd * weight + bias + residual), by statistics of x or ``fixed`` ones."""
    return _norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, fixed)


@torch.no_grad()
def _update(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    rstd: Tensor,
    momentum: float,
    eps: float,
    count: int,
) -> None:
    # Of a channel that never changes rounding would leave a variance just below 0.
    unbiased = (rstd.pow(-2) - eps).clamp_(min=0).mul_(count / (count - 1))
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(unbiased.to(running_var.dtype), momentum)


def _check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    if x.dtype not in _FLOATS:
        raise TypeError(f"x must be float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must be (N, C, *), got {tuple(x.shape)}")
    if weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise ValueError(
            f"weight and bias must be ({x.shape[1]},) for x {tuple(x.shape)}, "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must be {tuple(x.shape)}, got {tuple(residual.shape)}")


def _like(residual: Tensor | None, x: Tensor) -> Tensor | None:
    return residual if residual is None or residual.dtype == x.dtype else residual.to(x.dtype)


@dataclass(frozen=True)
class _Cut:
    """How a kernel cuts a tensor up: tiles, units of places, and splits of a sample.

    A split is one unit of a kernel that maps. Of one that reduces it is every ``splits``-th unit:
    programs that run side by side then read what lies side by side.
    """

    block_r: int
    block_c: int
    channel_blocks: int
    unit: int
    splits: int


@dataclass(frozen=True)
class _Plan:
    """How a tensor is cut up: a function of its shape alone, so results are the same.

    ``samples`` is 1 where the batch's statistics let samples be one run of rows.
    """

    samples: int
    channels: int
    places: int
    strides: tuple[int, int, int]
    stats: _Cut
    sums: _Cut
    maps: _Cut

    def programs(self, cut: _Cut) -> int:
        """Programs of a kernel."""
        return self.samples * cut.splits * cut.channel_blocks


@functools.lru_cache(maxsize=4096)
def _plan(
    samples: int, channels: int, places: int, channels_last: bool, over_batch: bool, itemsize: int
) -> _Plan:
    if channels_last and over_batch:
        samples, places = 1, samples * places
    strides = (places * channels, channels, 1)
    if not channels_last:
        strides = (channels * places, 1, places)
    small = _block(channels, places, channels_last, _STATS_TILE_BYTES // itemsize)
    large = _block(channels, places, channels_last, _TILE_BYTES // itemsize)
    blocks = -(-channels // large[1])
    in_all = -(-places // large[0]) * samples * blocks
    per_map = 4 * max(1, in_all // (4 * _MAP_PROGRAMS)) * large[0]
    return _Plan(
        samples,
        channels,
        places,
        strides,
        # The last, smaller unit of statistics belongs to one of the others.
        stats=_strided(samples, channels, small, _STATS_TILES, _STATS_PROGRAMS, places, whole=True),
        sums=_strided(samples, channels, large, _SUMS_TILES, _SUMS_PROGRAMS, places, whole=False),
        maps=_Cut(*large, blocks, per_map, -(-places // per_map)),
    )


def _block(channels: int, places: int, channels_last: bool, size: int) -> tuple[int, int]:
    """Places and channels of a tile of ``size`` values, the longer along memory."""
    if channels_last:
        block_c = min(_power_of_2(channels), 128)
        return min(_power_of_2(places), size // block_c), block_c
    block_r = min(_power_of_2(places), size)
    return block_r, min(_power_of_2(channels), size // block_r)


def _strided(
    samples: int,
    channels: int,
    block: tuple[int, int],
    tiles: int,
    programs: int,
    places: int,
    *,
    whole: bool,
) -> _Cut:
    """The cut of a kernel that reduces: units are dealt out evenly to about ``programs``."""
    unit = tiles * block[0]
    units = max(1, places // unit if whole else -(-places // unit))
    blocks = -(-channels // block[1])
    most = max(1, programs // (samples * blocks))
    each = -(-units // most)
    return _Cut(*block, blocks, unit, -(-units // each))


def _power_of_2(number: int) -> int:
    """The smallest power of 2 that is not below a number from 1."""
    return 1 << (number - 1).bit_length()


def _format(x: Tensor) -> torch.memory_format | None:
    """The memory format that x is in of those the kernels read; None where it is in neither."""
    last = _channels_last(x.ndim)
    if last is None:
        return torch.contiguous_format if x.is_contiguous() else None
    # One place per sample is both; channels are then to be the axis with a stride of 1.
    if x.is_contiguous(memory_format=last) and (not x.is_contiguous() or x.shape[1] > 1):
        return last
    return torch.contiguous_format if x.is_contiguous() else None


def _channels_last(ndim: int) -> torch.memory_format | None:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(ndim)


def _dense(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """X in one of the two formats, a copy if need be, and which."""
    found = _format(x)
    if found is not None:
        return x, found
    last = _channels_last(x.ndim)
    wanted = last if last is not None and x.stride(1) == 1 else torch.contiguous_format
    return x.contiguous(memory_format=wanted), wanted


def _plan_of(x: Tensor, memory_format: torch.memory_format, over_batch: bool) -> _Plan:
    samples, channels = x.shape[:2]
    last = memory_format != torch.contiguous_format
    places = x.numel() // (samples * channels)
    return _plan(samples, channels, places, last, over_batch, x.element_size())


def _stats(x: Tensor, num_groups: int, over_batch: bool, eps: float) -> tuple[Tensor, Tensor]:
    mean, rstd = _stats_fake(x, num_groups, over_batch, eps)
    if x.numel() == 0:
        return mean.fill_(torch.nan), rstd.fill_(torch.nan)
    x, memory_format = _dense(x)
    plan = _plan_of(x, memory_format, over_batch)
    kernels = kernels_for("norm_triton", x.device)
    per_group = plan.channels // num_groups
    stride_n, _, stride_c = plan.strides
    # One shift for all that is merged.
    shift_stride = 0 if over_batch else stride_n
    cut = plan.stats
    rows = plan.samples * cut.splits
    splits = rows if over_batch else cut.splits
    partial = torch.empty(2, rows, plan.channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        kernels.partial_stats[(plan.programs(cut),)](
            x,
            partial[0],
            partial[1],
            plan.channels,
            plan.places,
            per_group,
            cut.splits,
            cut.unit,
            cut.channel_blocks,
            *plan.strides,
            shift_stride,
            BLOCK_R=cut.block_r,
            BLOCK_C=cut.block_c,
            num_warps=_WARPS,
        )
        kernels.merge_stats[(mean.numel(),)](
            x,
            partial[0],
            partial[1],
            mean,
            rstd,
            plan.channels,
            plan.places,
            per_group,
            cut.splits,
            cut.unit,
            num_groups,
            splits,
            stride_c,
            shift_stride,
            float(x.numel() // mean.numel()),
            eps,
            BLOCK=_MERGE_BLOCK,
            num_warps=_WARPS,
        )
    return mean, rstd


def _stats_fake(x: Tensor, num_groups: int, over_batch: bool, eps: float) -> tuple[Tensor, Tensor]:
    shape = (1 if over_batch else x.shape[0], num_groups)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


def _act(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    fixed: bool,
) -> Tensor:
    x, memory_format = _dense(x)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    over_batch = _is_over_batch(x, mean)
    plan = _plan_of(x, memory_format, over_batch)
    cut = plan.maps
    kernels = kernels_for("norm_triton", x.device)
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    with on_device(x.device):
        kernels.apply_forward[(plan.programs(cut),)](
            x,
            mean,
            rstd,
            weight,
            bias,
            x if residual is None else residual,
            y,
            plan.channels,
            plan.places,
            plan.channels // mean.shape[1],
            cut.splits,
            cut.unit,
            cut.channel_blocks,
            *plan.strides,
            0 if over_batch else mean.shape[1],
            HAS_RESIDUAL=residual is not None,
            RELU=relu,
            BLOCK_R=cut.block_r,
            BLOCK_C=cut.block_c,
            num_warps=_WARPS,
        )
    return y


def _act_fake(x: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(_dense(x)[0])


def _is_over_batch(x: Tensor, mean: Tensor) -> bool:
    """Whether statistics are over the batch. For one sample with one channel a group it's equal."""
    return mean.shape == (1, x.shape[1])


def _act_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor | None,
    relu: bool,
    fixed: bool,
    residual_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and, if asked for and not ``grad`` itself, the residual."""
    x, memory_format = _dense(x)
    grad_x = torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    writes = residual_grad and relu
    masked = torch.empty_like(x) if writes else x.new_empty(0)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_(), masked
    grad = grad.contiguous(memory_format=memory_format)
    over_batch = _is_over_batch(x, mean)
    plan = _plan_of(x, memory_format, over_batch)
    kernels = kernels_for("norm_triton", x.device)
    num_groups = mean.shape[1]
    per_group = plan.channels // num_groups
    mask = 0 if not relu else 1 if y is None else 2
    y = x if y is None else y.contiguous(memory_format=memory_format)
    cut = plan.sums
    rows = plan.samples * cut.splits
    partial = torch.empty(2, rows, plan.channels, dtype=torch.float32, device=x.device)
    means = torch.empty((2, *mean.shape), dtype=torch.float32, device=x.device)
    groups = 0 if fixed else mean.numel()
    stat_stride = 0 if over_batch else num_groups
    with on_device(x.device):
        kernels.partial_sums[(plan.programs(cut),)](
            x,
            grad,
            y,
            masked if writes else x,
            mean,
            rstd,
            weight,
            bias,
            partial[0],
            partial[1],
            plan.channels,
            plan.places,
            per_group,
            cut.splits,
            cut.unit,
            cut.channel_blocks,
            *plan.strides,
            stat_stride,
            MASK=mask,
            WRITE_MASKED=writes,
            BLOCK_R=cut.block_r,
            BLOCK_C=cut.block_c,
            num_warps=_WARPS,
        )
        kernels.merge_sums[(groups + -(-plan.channels // _MERGE_CHANNELS),)](
            partial[0],
            partial[1],
            weight,
            means[0],
            means[1],
            grad_weight,
            grad_bias,
            plan.channels,
            per_group,
            num_groups,
            rows if over_batch else cut.splits,
            groups,
            rows,
            float(x.numel() // mean.numel()),
            BLOCK=_MERGE_BLOCK,
            BLOCK_Q=_MERGE_SPLITS,
            BLOCK_C=_MERGE_CHANNELS,
            num_warps=_WARPS,
        )
        kernels.apply_backward[(plan.programs(plan.maps),)](
            x,
            masked if writes else grad,
            y,
            mean,
            rstd,
            weight,
            bias,
            means[0],
            means[1],
            grad_x,
            plan.channels,
            plan.places,
            per_group,
            plan.maps.splits,
            plan.maps.unit,
            plan.maps.channel_blocks,
            *plan.strides,
            stat_stride,
            MASK=0 if writes else mask,
            FIXED=fixed,
            BLOCK_R=plan.maps.block_r,
            BLOCK_C=plan.maps.block_c,
            num_warps=_WARPS,
        )
    return grad_x, grad_weight, grad_bias, masked


def _act_backward_fake(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor | None,
    relu: bool,
    fixed: bool,
    residual_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = _dense(x)[0]
    masked = torch.empty_like(like) if residual_grad and relu else x.new_empty(0)
    return torch.empty_like(like), torch.empty_like(weight), torch.empty_like(bias), masked


class _Act(torch.autograd.Function):
    """``norm_act`` with its gradients.

    Put into the dispatcher by hand: ``torch.library.register_autograd`` would do the same for
    twice the time of a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, mean, rstd, weight, bias, residual, relu, fixed = inputs
        with torch._C._AutoDispatchBelowAutograd():
            output = _norm_act(*inputs)
        y = output if relu and residual is not None else None
        ctx.save_for_backward(x, mean, rstd, weight, bias, y)
        ctx.relu, ctx.fixed = relu, fixed
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "videogn's fused norm layers have no second derivative (create_graph=True): "
                "use plain ones"
            )
        residual_grad = ctx.needs_input_grad[5]
        grad_x, grad_weight, grad_bias, masked = _norm_act_backward(
            grad, *ctx.saved_tensors, ctx.relu, ctx.fixed, residual_grad
        )
        grad_residual = (masked if ctx.relu else grad) if residual_grad else None
        return grad_x, None, None, grad_weight, grad_bias, grad_residual, None, None


def _act_autograd(*inputs: Any) -> Tensor:
    if torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in inputs
    ):
        output: Tensor = _Act.apply(*inputs)
        return output
    with torch._C._AutoDispatchBelowAutograd():
        return _norm_act(*inputs)


_RUNS: tuple[Callable[..., Any], ...] = (_stats, _act, _act_backward)
_FAKES: tuple[Callable[..., Any], ...] = (_stats_fake, _act_fake, _act_backward_fake)
for _schema, _run, _fake in zip(_SCHEMAS, _RUNS, _FAKES, strict=True):
    _name = _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"videogn::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("norm_act", _act_autograd, "Autograd")  # type: ignore[no-untyped-call]

_norm_stats: Callable[..., tuple[Tensor, Tensor]] = torch.ops.videogn.norm_stats.default
_norm_act: Callable[..., Tensor] = torch.ops.videogn.norm_act.default
_norm_act_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = (
    torch.ops.videogn.norm_act_backward.default
)
