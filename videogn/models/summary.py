"""What a network is made of and what it costs, from shapes alone.

Networks and inputs are on torch's meta device, so nothing is computed and no memory is used.
Shapes: C channels, T frames, H x W positions.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from videogn.models.build import build_network
from videogn.models.norm import FrozenBatchNorm, is_norm
from videogn.models.spec import NetworkSpec

LISTED = (nn.Conv2d, nn.Conv3d, nn.Linear, nn.modules.pooling._MaxPoolNd, nn.AvgPool3d)
BLOCKS = ("ResBlock", "Bottleneck")
"""Classes whose input stays in memory, for the shortcut, until they end."""

BATCH_NORM_OPERATIONS, NORM_OPERATIONS = 2, 5
"""Operations per value: stored statistics are a scale and a shift, others are worked out first
(fvcore counts so)."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerRow:
    """One layer of the table.

    Attributes:
        name: of the module.
        kind: its class.
        kernel: along (T, H, W) or (H, W); empty where it has none.
        stride: likewise.
        output: (C, T, H, W) or what else it gives for one clip.
        parameters: its own, with those of the norm behind it counted there.
    """

    name: str
    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Cost:
    """What one view costs.

    Attributes:
        multiply_adds: of convolutions and linear layers; one multiply-add counts once, as the
            field's tables have it.
        norm_operations: of norm layers in evaluation, as fvcore counts them.
        peak_bytes: largest inputs and outputs of a layer that exist together, in float32, without
            the weights; the memory an evaluation needs for them.
    """

    multiply_adds: int
    norm_operations: int
    peak_bytes: int


@dataclass(frozen=True)
class Summary:
    """A network's layers and size, and the cost of one clip."""

    rows: tuple[LayerRow, ...]
    parameters: int
    trained_parameters: int
    cost: Cost


def summarise(spec: NetworkSpec, clip: tuple[int, int, int]) -> Summary:
    """Layers, parameters and cost of a network for one clip of (T, H, W).

    Raises:
        UserError: the network cannot be built, or the clip is too small for it.
    """
    network = meta_network(spec)
    rows: list[LayerRow] = []
    with _watched(network, lambda name, module, _, output: rows.extend(_row(name, module, output))):
        network(_clip(clip))
    return Summary(
        rows=tuple(rows),
        parameters=sum(p.numel() for p in network.parameters()),
        trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        cost=cost_of(network, clip),
    )


def cost_of(network: nn.Module, view: tuple[int, int, int]) -> Cost:
    """Cost of one view of (T, H, W) of a network on the meta device."""
    norms, peak = 0, 0

    def note(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        nonlocal norms, peak
        norms += norm_operations(module, output)
        held = blocks.get(name.rpartition(".")[0].rpartition(".branch")[0], 0)
        peak = max(peak, held + _bytes(inputs) + _bytes(output))

    blocks: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: blocks.__setitem__(name, _bytes(inputs[0]))
        )
        for name, module in network.named_modules()
        if type(module).__name__ in BLOCKS
    ]
    try:
        with _watched(network, note), FlopCounterMode(display=False) as counter:
            network(_clip(view))
    finally:
        for handle in handles:
            handle.remove()
    return Cost(counter.get_total_flops() // 2, norms, peak)  # torch counts each as two


def norm_operations(module: nn.Module, output: Tensor) -> int:
    """Operations of a norm layer in evaluation; 0 of any other."""
    if not is_norm(module):
        return 0
    stored = isinstance(module, FrozenBatchNorm | nn.modules.batchnorm._BatchNorm)
    return output.numel() * (BATCH_NORM_OPERATIONS if stored else NORM_OPERATIONS)


def meta_network(spec: NetworkSpec) -> nn.Module:
    """The network in evaluation mode, without memory."""
    with torch.device("meta"):
        return build_network(spec).eval()


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of a network that has shapes and computes nothing."""
    held: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False)
        for p in network.parameters()
    }
    held |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo=held)


def _clip(shape: tuple[int, int, int]) -> Tensor:
    return torch.empty(1, 3, *shape, device="meta")


@contextmanager
def _watched(network: nn.Module, note: Any) -> Iterator[None]:
    """Call ``note(name, module, input, output)`` after each module that has no others in it."""
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: note(name, module, inputs[0], output)
        )
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _row(name: str, module: nn.Module, output: Tensor) -> Iterator[LayerRow]:
    if not isinstance(module, LISTED):
        return
    shape = tuple(output.shape[1:])
    if isinstance(module, nn.Linear):
        # The classifier works on the last axis.
        shape = (shape[-1], *shape[:-1])
    rank = 3 if len(shape) == 4 else 2
    yield LayerRow(
        name=name,
        kind=type(module).__name__,
        kernel=_extent(module, "kernel_size", rank),
        stride=_extent(module, "stride", rank),
        output=shape,
        parameters=sum(p.numel() for p in module.parameters()),
    )


def _extent(module: nn.Module, attribute: str, rank: int) -> tuple[int, ...]:
    value = getattr(module, attribute, ())
    return (value,) * rank if isinstance(value, int) else tuple(int(size) for size in value)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * FLOAT_BYTES
