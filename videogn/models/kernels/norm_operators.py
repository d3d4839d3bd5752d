"""The operators behind :mod:`videogn.models.kernels.norm`, whose shapes and names hold here.

Two make one layer, so that selective checkpointing can keep the statistics and compute the
activation again:

* ``videogn::norm_stats``: mean and rstd = 1 / sqrt(var + eps), (N, G), or (1, C) over the batch;
* ``videogn::norm_act``: y = relu((x - mean) * rstd * weight + bias + residual).

``norm_act``'s gradient with respect to x includes the way through mean and rstd, which count as
functions of x, not as inputs; with ``fixed`` they are constants.

Kept for the backward pass are x, mean and rstd, and y where ReLU follows a residual sum. Without
a residual, where ReLU let through is computed again from x.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from videogn.models.kernels.launch import kernels_for, on_device
from videogn.models.kernels.tiling import dense, plan_of

_LIBRARY = library.Library("videogn", "FRAGMENT")  # type: ignore[no-untyped-call]
_SCHEMAS = (
    "norm_stats(Tensor x, int num_groups, bool over_batch, float eps) -> (Tensor, Tensor)",
    "norm_act(Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, Tensor? residual,"
    " bool relu, bool fixed) -> Tensor",
    "norm_act_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight,"
    " Tensor bias, Tensor? y, bool relu, bool fixed, bool residual_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)

_WARPS = 4
_MERGE_BLOCK = 1024
_MERGE_SPLITS = 128
_MERGE_CHANNELS = 8
"""Channels of a program that sums over splits: one sector of 32 bytes."""


def _stats(x: Tensor, num_groups: int, over_batch: bool, eps: float) -> tuple[Tensor, Tensor]:
    mean, rstd = _stats_fake(x, num_groups, over_batch, eps)
    if x.numel() == 0:
        return mean.fill_(torch.nan), rstd.fill_(torch.nan)
    x, memory_format = dense(x)
    plan = plan_of(x, memory_format, over_batch)
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
            *plan.arguments(cut, num_groups),
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
    x, memory_format = dense(x)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    over_batch = _is_over_batch(x, mean)
    plan = plan_of(x, memory_format, over_batch)
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
            *plan.arguments(cut, mean.shape[1]),
            0 if over_batch else mean.shape[1],
            HAS_RESIDUAL=residual is not None,
            RELU=relu,
            BLOCK_R=cut.block_r,
            BLOCK_C=cut.block_c,
            num_warps=_WARPS,
        )
    return y


def _act_fake(x: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(dense(x)[0])


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
    x, memory_format = dense(x)
    grad_x = torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    writes = residual_grad and relu
    masked = torch.empty_like(x) if writes else x.new_empty(0)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_(), masked
    grad = grad.contiguous(memory_format=memory_format)
    over_batch = _is_over_batch(x, mean)
    plan = plan_of(x, memory_format, over_batch)
    kernels = kernels_for("norm_backward_triton", x.device)
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
            *plan.arguments(cut, num_groups),
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
            *plan.arguments(plan.maps, num_groups),
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
    like = dense(x)[0]
    masked = torch.empty_like(like) if residual_grad and relu else x.new_empty(0)
    return torch.empty_like(like), torch.empty_like(weight), torch.empty_like(bias), masked


class _Act(torch.autograd.Function):
    """``norm_act`` with its gradients.

    Put into the dispatcher by hand: torch's own ``register_autograd`` would do the same for
    twice the time of a call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, mean, rstd, weight, bias, residual, relu, fixed = inputs
        with torch._C._AutoDispatchBelowAutograd():
            output = norm_act(*inputs)
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
        return norm_act(*inputs)


_RUNS: tuple[Callable[..., Any], ...] = (_stats, _act, _act_backward)
_FAKES: tuple[Callable[..., Any], ...] = (_stats_fake, _act_fake, _act_backward_fake)
for _schema, _run, _fake in zip(_SCHEMAS, _RUNS, _FAKES, strict=True):
    _name = _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CUDA")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    library.register_fake(f"videogn::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("norm_act", _act_autograd, "Autograd")  # type: ignore[no-untyped-call]

norm_stats: Callable[..., tuple[Tensor, Tensor]] = torch.ops.videogn.norm_stats.default
norm_act: Callable[..., Tensor] = torch.ops.videogn.norm_act.default
_norm_act_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = (
    torch.ops.videogn.norm_act_backward.default
)
