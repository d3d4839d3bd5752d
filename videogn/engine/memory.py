"""What a training step needs of a device's memory, from shapes alone.

A step is played through on torch's meta device: every tensor that torch would allocate is counted
when it appears and taken off when it is freed, so nothing is computed and no memory is used. All
shapes grow in proportion to the batch, hence at each moment of the step the bytes are a straight
line in the number of clips; two batches give the lines, and the highest line at a batch is its
peak. Shapes: B clips of T frames of H x W, uint8 as they come from the readers.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from videogn.data.transforms import normalize
from videogn.engine.allocations import Allocations, MetaAutocast, tensor_bytes
from videogn.engine.arithmetic import dtype_of
from videogn.models.execution import EAGER, Execution
from videogn.models.formats import VIDEO
from videogn.models.spec import NetworkSpec
from videogn.models.summary import meta_network

TRACED_BATCHES = (2, 3)
"""Batches whose steps are played through; not 1, of which batch norm may have a single value."""

SLACK = 1.1
"""What a device should have for each byte that comes and goes in a step: torch's allocator rounds
and leaves holes, and kernels take some of their own. Assumed, not measured."""

GB = 10**9
CARDS_GB = (16, 24, 40, 80, 141)
"""Memory of the usual GPUs, as they are named."""
CARD_RESERVE = 2**30
"""Bytes of a GPU that its driver, libraries and the exchange of gradients take. Assumed too."""


@dataclass(frozen=True)
class Moments:
    """Bytes at each moment of a step as lines in the number of clips.

    Attributes:
        lines: (bytes of any batch, bytes of every clip), those that are highest at some batch.
    """

    lines: tuple[tuple[int, int], ...]

    def peak(self, clips: int) -> int:
        """Bytes at the fullest moment."""
        return max(fixed + clips * per_clip for fixed, per_clip in self.lines)

    def largest_batch(self, room: int) -> int:
        """The most clips whose peak is within ``room`` bytes; 0 where not one is."""
        if self.peak(0) > room:
            return 0
        return min((room - fixed) // per_clip for fixed, per_clip in self.lines if per_clip)


@dataclass(frozen=True)
class StepMemory:
    """Predicted memory of one training step on one device.

    Attributes:
        state_bytes: what is there between steps: weights, gradients, momentum and any average of
            the weights.
        kept: what the forward pass leaves to the backward pass.
        allocated: what torch allocates beyond the state, moment by moment.
        with_workspace: the same, where convolutions take as much again as their tensors, for
            copies in the layout that they compute in.
    """

    state_bytes: int
    kept: Moments
    allocated: Moments
    with_workspace: Moments

    def peak(self, clips: int) -> int:
        """Bytes of a step of so many clips, with workspace for convolutions."""
        return self.state_bytes + self.with_workspace.peak(clips)

    def least(self, clips: int) -> int:
        """Bytes without which the step cannot be, whatever kernels are chosen."""
        return self.state_bytes + self.allocated.peak(clips)

    def largest_batch(self, available_bytes: int) -> int:
        """The most clips that fit, with workspace and slack; 0 where not one does."""
        return self.with_workspace.largest_batch(
            math.floor((available_bytes - self.state_bytes) / SLACK)
        )


def predict_memory(
    spec: NetworkSpec,
    clip: tuple[int, int, int],
    precision: str,
    *,
    device: str = "cuda",
    execution: Execution = EAGER,
    averaged: bool = False,
) -> StepMemory:
    """Play a training step through and say what memory it needs.

    Args:
        clip: (T, H, W).
        device: ``cuda`` or ``cpu``, whose autocast differ.
        execution: the form in which the network trains.
    """
    if execution.convolutions == "mixed":
        # They keep as much, and torch's 3D convolutions lose the order of channels on that device.
        execution = replace(execution, convolutions="2d")
    network = execution.apply(meta_network(spec))
    return step_memory(
        network,
        clip,
        dtype_of(precision),
        device=device,
        memory_format=execution.memory_format,
        averaged=averaged,
    )


def step_memory(
    network: nn.Module,
    clip: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    device: str = "cuda",
    memory_format: torch.memory_format = torch.contiguous_format,
    averaged: bool = False,
) -> StepMemory:
    """The memory of a training step of a network on the meta device."""
    traces = [
        _trace(network, (batch, *clip), dtype, device, memory_format) for batch in TRACED_BATCHES
    ]
    allocated = _lines([trace.allocated for trace in traces])
    with_workspace = _lines([trace.with_workspace for trace in traces])
    trained = sum(tensor_bytes(p) for p in network.parameters() if p.requires_grad)
    # SGD over lists of tensors copies the gradients for weight decay and for Nesterov's step; the
    # fused one of a GPU does not.
    update = (0 if device == "cuda" else 2 * trained, 0)
    return StepMemory(
        state_bytes=state_bytes(network, averaged=averaged),
        kept=Moments(tuple(_lines([[trace.kept] for trace in traces]))),
        allocated=Moments(_highest([*allocated, update])),
        with_workspace=Moments(_highest([*with_workspace, update])),
    )


def state_bytes(network: nn.Module, *, averaged: bool = False) -> int:
    """Weights, gradients and momentum of those that are trained, and an average where wanted."""
    held = [*network.parameters(), *network.buffers()]
    trained = [p for p in network.parameters() if p.requires_grad]
    copies = 2 if averaged else 1
    return copies * sum(map(tensor_bytes, held)) + 2 * sum(map(tensor_bytes, trained))


def play_step(
    network: nn.Module,
    batch: tuple[int, int, int, int],
    device: torch.device,
    casts: AbstractContextManager[object],
    memory_format: torch.memory_format,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Forward and backward pass as :func:`videogn.engine.trainer.train_step` has them.

    Args:
        batch: (B, T, H, W).
        casts: what the network is called in.
        memory_format: of the clips.
        between: called between the two passes.
    """
    num_clips, *size = batch
    pixels = torch.zeros(num_clips, *size, 3, dtype=torch.uint8, device=device)
    clips = normalize(pixels.permute(0, 4, 1, 2, 3), VIDEO.mean, VIDEO.std)
    clips = clips.contiguous(memory_format=memory_format)
    del pixels
    labels = torch.zeros(num_clips, dtype=torch.long, device=device)
    with casts:
        logits = network(clips)
    loss = F.cross_entropy(logits.float(), labels)
    between()
    loss.backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Trace:
    """Bytes beyond the state, after each operation and between the two passes."""

    allocated: list[int]
    with_workspace: list[int]
    kept: int


def _trace(
    network: nn.Module,
    batch: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: str,
    memory_format: torch.memory_format,
) -> _Trace:
    """Play a step of a network on the meta device and note what it allocates."""
    network.train()
    for parameter in network.parameters():
        # Gradients are part of the state: several ranks, or several steps to an update, hold
        # them from one backward pass to the next.
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    held = [*network.parameters(), *network.buffers()]
    held += [p.grad for p in network.parameters() if p.grad is not None]
    casts = MetaAutocast(dtype, device) if dtype != torch.float32 else nullcontext()
    kept: list[int] = []
    with Allocations(held) as allocations:
        play_step(
            network,
            batch,
            torch.device("meta"),
            casts,
            memory_format,
            lambda: kept.append(allocations.live),
        )
    return _Trace(allocations.allocated, allocations.with_workspace, kept[0])


def _lines(columns: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The line through the bytes of each moment at :data:`TRACED_BATCHES`."""
    few, many = TRACED_BATCHES
    lines = []
    for at_few, at_many in zip(*columns, strict=True):
        per_clip = (at_many - at_few) // (many - few)
        lines.append((at_few - few * per_clip, per_clip))
    return lines


def _highest(lines: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The lines that no other one is above at every batch, steepest first."""
    kept: list[tuple[int, int]] = []
    for fixed, per_clip in sorted(set(lines), key=lambda line: (-line[1], -line[0])):
        if not kept or fixed > kept[-1][0]:
            kept.append((fixed, per_clip))
    return tuple(kept)
