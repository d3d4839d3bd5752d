"""What a network computes for a batch, by shapes alone: on torch's meta device, unmeasured.

Shapes: N clips, C channels, T frames, H x W positions.
"""
# ruff: noqa: RUF001

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compute_parts.networks import LAYOUTS
from compute_parts.scale import Scale
from videogn.models import i3d

HALF_BYTES = 2
Size = tuple[int, ...]


@dataclass(frozen=True)
class NormShape:
    """A norm layer with what its kernel does besides.

    Attributes:
        size: (N, C, T, H, W).
        residual: whether the block's input is added.
        relu: whether a ReLU follows.
    """

    size: Size
    residual: bool
    relu: bool

    @property
    def nbytes(self) -> int:
        """Of the tensor in 16 bits."""
        return prod(self.size) * HALF_BYTES

    def passes(self, backward: bool) -> int:
        """Tensors of this size that fused kernels must read or write.

        Forward: statistics read x, the activation reads x (and the residual) and writes y.
        Backward: sums read x and the gradient (with a residual also y, and they write the
        residual's gradient), then x and that gradient are read and x's gradient is written.
        """
        if backward:
            return 7 if self.residual and self.relu else 5
        return 4 if self.residual else 3


@dataclass(frozen=True)
class ConvShape:
    """A convolution: arguments of ``nn.Conv3d`` and sizes of its tensors."""

    in_size: Size
    out_size: Size
    kernel: Size
    stride: Size
    padding: Size

    @property
    def flops(self) -> int:
        """Of one forward pass, two per multiply-add."""
        return 2 * prod(self.out_size) * self.in_size[1] * prod(self.kernel)

    @property
    def nbytes(self) -> int:
        """Of input and output in 16 bits."""
        return (prod(self.in_size) + prod(self.out_size)) * HALF_BYTES

    @property
    def is_stem(self) -> bool:
        return self.in_size[1] == 3

    def __str__(self) -> str:
        kernel = "×".join(map(str, self.kernel))
        step = "" if set(self.stride) == {1} else " / " + "×".join(map(str, self.stride))
        places = "×".join(map(str, self.in_size[2:]))
        return f"{self.in_size[1]} → {self.out_size[1]}, {kernel}{step} on {places}"

    def module(self) -> nn.Conv3d:
        return nn.Conv3d(
            self.in_size[1],
            self.out_size[1],
            self.kernel,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            bias=False,
        )


@dataclass(frozen=True)
class PoolShape:
    """A max pool."""

    in_size: Size
    out_size: Size
    kernel: Size
    stride: Size
    padding: Size


@dataclass(frozen=True)
class Work:
    """Layers of a network by shape, with how often each occurs, for one batch.

    Attributes:
        flops: of forward and backward pass, counted by torch, two per multiply-add.
        forward_flops: of the forward pass.
    """

    norms: Counter[NormShape]
    convs: Counter[ConvShape]
    pools: Counter[PoolShape]
    flops: int
    forward_flops: int


def work_of(scale: Scale, layout: str, clips: int, view: tuple[int, int, int]) -> Work:
    """Work of a batch of clips (clips, 3, *view). ``layout``: a key of LAYOUTS."""
    with torch.device("meta"):
        network = i3d(norm="bn", layout=LAYOUTS[layout], **scale.network)
        batch = torch.empty(clips, 3, *view)
    norms: Counter[NormShape] = Counter()
    convs: Counter[ConvShape] = Counter()
    pools: Counter[PoolShape] = Counter()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            module.register_forward_hook(_noting_norm(norms, name))
        elif isinstance(module, nn.Conv3d):
            module.register_forward_hook(_noting(convs, ConvShape))
        elif isinstance(module, nn.MaxPool3d):
            module.register_forward_hook(_noting(pools, PoolShape))
    with FlopCounterMode(display=False) as counter:
        out = network(batch)
        forward = counter.get_total_flops()
        out.sum().backward()
    return Work(norms, convs, pools, counter.get_total_flops(), forward)


def _noting_norm(norms: Counter[NormShape], name: str):  # type: ignore[no-untyped-def]
    last = name.rpartition(".")[2]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The shortcut's norm has neither; the block's last one has the sum and the ReLU after it.
        shape = NormShape(tuple(output.shape), last == "norm_c", last != "branch1_norm")
        norms[shape] += 1

    return note


def _noting(shapes: Counter, kind: type):  # type: ignore[no-untyped-def, type-arg]
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        extents = (_triple(module.kernel_size), _triple(module.stride), _triple(module.padding))
        shapes[kind(tuple(inputs[0].shape), tuple(output.shape), *extents)] += 1

    return note


def _triple(value: int | Iterable[int]) -> Size:
    return (value,) * 3 if isinstance(value, int) else tuple(int(number) for number in value)
