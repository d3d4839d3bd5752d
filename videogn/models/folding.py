"""Batch norms of stored statistics, folded into the convolutions before them: for testing only."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from videogn.models.norm import FrozenBatchNorm
from videogn.models.summary import on_meta

BATCH_NORM_TYPES = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm)
CONVOLUTION_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Folded(nn.Identity):
    """What is in the place of a batch norm that is part of a convolution now."""


def fold_batch_norms(network: nn.Module, view: tuple[int, int, int]) -> int:
    """Fold every batch norm whose input is the output of a convolution; the network is changed.

    y = gamma (w * x - mu) / sqrt(var + eps) + beta is a convolution too, by the kernel
    gamma w / sqrt(var + eps) and with a bias. GN has no stored statistics and stays.

    Args:
        network: in evaluation mode from here on.
        view: (T, H, W) of a clip that the network takes.

    Returns:
        How many were folded.
    """
    network.eval()
    pairs = list(_pairs(network, view))
    for convolution, norm in pairs:
        _fold(network.get_submodule(convolution), network.get_submodule(norm))
        parent, _, name = norm.rpartition(".")
        setattr(network.get_submodule(parent), name, Folded())
    return len(pairs)


def _pairs(network: nn.Module, view: tuple[int, int, int]) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the norms behind them, as a clip meets them."""
    shadow, made = on_meta(network), {}
    pairs: dict[str, str] = {}

    def after_convolution(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Kept alive, so that no later tensor has its identity.
            made[id(output)] = (name, output)

        return note

    def before_norm(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                pairs[name] = made[id(inputs[0])][0]

        return note

    for name, module in shadow.named_modules():
        if isinstance(module, CONVOLUTION_TYPES):
            module.register_forward_hook(after_convolution(name))
        elif isinstance(module, BATCH_NORM_TYPES):
            module.register_forward_pre_hook(before_norm(name))
    with torch.inference_mode():
        shadow(torch.zeros((1, 3, *view), device="meta"))
    return ((convolution, norm) for norm, convolution in pairs.items())


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> None:
    # In double precision: the product is rounded once.
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if convolution.bias is not None:
        shift += convolution.bias.double() * scale
    kernel = convolution.weight
    shape = (-1,) + (1,) * (kernel.ndim - 1)
    kernel.copy_((kernel.double() * scale.view(shape)).to(kernel.dtype))
    convolution.bias = nn.Parameter(shift.to(kernel.dtype), requires_grad=False)
