"""Convolutions in bf16 that are right on CPUs with instructions for it.

oneDNN's code for them (3.12 and before) fails where a kernel is longer than what it runs over, or
where strides leave one column: gradients of weights hold what lay in memory before and memory
behind a tensor is written to (AVX-512 BF16), outputs are wrong (AMX). A clip has such layers where
it has few frames or pixels for its network. They are computed in float32, and are small.

Shapes: N clips, C channels, T frames, H x W positions.
"""

import torch
from torch import Tensor, nn

from videogn.models.fused import as_kind, exchange
from videogn.models.views import FramesConv3d


class SoundConv3d(nn.Conv3d):
    """torch's convolution; in float32 where it would be wrong in bf16."""

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, O, T', H', W')."""
        return _in_float32(self, video) if _fails(self, video) else super().forward(video)


class SoundConv2d(nn.Conv2d):
    """The same of images."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        return _in_float32(self, images) if _fails(self, images) else super().forward(images)


class SoundFramesConv3d(FramesConv3d):
    """1xKxK kernels as a 2D convolution, whose code has one of the faults."""

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, O, T', H', W')."""
        return _in_float32(self, video) if _fails(self, video) else super().forward(video)


TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SoundConv2d,
    nn.Conv3d: SoundConv3d,
    FramesConv3d: SoundFramesConv3d,
}


def make_sound(network: nn.Module) -> nn.Module:
    """Exchange a network's convolutions for such ones, with the same parameters, in place.

    Args:
        network: for a CPU; its convolutions have the form in which they will be computed.
    """
    exchange(network, _twin_of)
    return network


def _twin_of(module: nn.Module) -> nn.Module | None:
    kind = TWINS.get(type(module))
    return None if kind is None else as_kind(kind, module)


def _fails(convolution: nn.Conv2d | nn.Conv3d, video: Tensor) -> bool:
    if video.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    places = tuple(video.shape[2:])
    if any(kernel > size for kernel, size in zip(convolution.kernel_size, places, strict=True)):
        return True
    stride, padding = convolution.stride[-1], convolution.padding[-1]
    span = convolution.dilation[-1] * (convolution.kernel_size[-1] - 1) + 1
    padded = places[-1] + (0 if isinstance(padding, str) else 2 * padding)
    return stride > 1 and padded - span < stride


def _in_float32(convolution: nn.Conv2d | nn.Conv3d, video: Tensor) -> Tensor:
    bias = None if convolution.bias is None else convolution.bias.float()
    with torch.autocast("cpu", enabled=False):
        out: Tensor = convolution._conv_forward(video.float(), convolution.weight.float(), bias)
    return out.to(torch.get_autocast_dtype("cpu"))
