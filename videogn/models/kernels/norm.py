"""Group and batch normalisation with residual sum and ReLU, as operators of torch.

Shapes: x is (N, C, *) in float32, float16 or bfloat16, contiguous or with channels last (anything
else is copied into one of the two); statistics and their sums are float32; results have x's dtype
and memory format.
"""

import torch
from torch import Tensor

from videogn.models.kernels.launch import is_available
from videogn.models.kernels.norm_operators import norm_act, norm_stats

__all__ = ["batch_norm", "group_norm", "is_available"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
    mean, rstd = norm_stats(x.detach(), num_groups, False, eps)
    return norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, False)


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
        return norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, True)
    count = _values_per_channel(x)
    mean, rstd = norm_stats(x.detach(), x.shape[1], True, eps)
    if running_mean is not None and running_var is not None:
        _update(running_mean, running_var, mean[0], rstd[0], momentum, eps, count)
    return norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, False)


def group_norm_statistics(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(var + eps) of every group of every sample, (N, G); without gradient."""
    return norm_stats(x.detach(), num_groups, False, eps)


def batch_norm_statistics(
    x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Those of every channel over the batch, (1, C), which move the running ones; no gradient.

    Raises:
        ValueError: there is one value per channel.
    """
    count = _values_per_channel(x)
    mean, rstd = norm_stats(x.detach(), x.shape[1], True, eps)
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
    return norm_act(x, mean, rstd, weight, bias, _like(residual, x), relu, fixed)


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
