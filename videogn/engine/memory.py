"""What a training step needs of a device's memory, from shapes alone.

A step is played through on torch's meta device: every tensor that torch would allocate is counted
when it appears and taken off when it is freed, so nothing is computed and no memory is used. All
shapes grow in proportion to the batch, hence at each moment of the step the bytes are a straight
line in the number of clips; two batches give the lines, and the highest line at a batch is its
peak. Shapes: B clips of T frames of H x W, uint8 as they come from the readers.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from videogn.data.transforms import normalize
from videogn.engine.allocations import Allocations, MetaAutocast, tensor_bytes
from videogn.engine.arithmetic import dtype_of
from videogn.engine.device_memory import available_bytes, gib, is_out_of_memory
from videogn.engine.optim import build_optimizer
from videogn.errors import RunError
from videogn.models.build import build_network
from videogn.models.execution import EAGER, Execution
from videogn.models.formats import VIDEO
from videogn.models.spec import NetworkSpec
from videogn.models.summary import meta_network

TRACED_BATCHES = (2, 3)
"""Batches whose steps are played through; not 1, of which batch norm may have a single value."""

SLACK = 1.1
"""What a device should have for each byte that comes and goes in a step: torch's allocator rounds
and leaves holes, and kernels take some of their own. Assumed, not measured."""

GRAPHS = 1.4
"""What a training pass that is captured as CUDA graphs keeps for each byte of a step: 1.28 to 1.37
on an H200 (benchmarks/compute_nvidia-h200_2026-11-26.md), reserved to allocated."""
BESIDE_GRAPHS = 0.2
"""What else a device should have for each byte of a step: validation cannot use what graphs keep,
and its passes keep nothing for a backward pass. Assumed, not measured."""

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


@dataclass(frozen=True)
class MemoryPlan:
    """A step's memory beside what a device has.

    Attributes:
        available_bytes: what this process may fill.
    """

    step: StepMemory
    clips_per_gpu: int
    available_bytes: int

    @property
    def largest_batch(self) -> int:
        """The most clips per GPU that fit."""
        return self.step.largest_batch(self.available_bytes)

    @property
    def graphs_bytes(self) -> int:
        """What the steps keep where they are captured as CUDA graphs."""
        return math.ceil(GRAPHS * self.step.peak(self.clips_per_gpu))

    @property
    def room_for_graphs(self) -> int:
        """What there should be for them and for the validation beside them."""
        return math.ceil((GRAPHS + BESIDE_GRAPHS) * self.step.peak(self.clips_per_gpu))

    def graphs_fault(self) -> str | None:
        """Why steps should not be captured as CUDA graphs here; None where they fit."""
        if self.room_for_graphs <= self.available_bytes:
            return None
        return (
            f"CUDA graphs and a validation beside them take about {gib(self.room_for_graphs)}, "
            f"plain steps {gib(self.step.peak(self.clips_per_gpu))}, and "
            f"{gib(self.available_bytes)} are free"
        )

    def line(self, *, graphs: bool = False) -> str:
        """The plan as one line of text.

        Args:
            graphs: whether steps are captured as CUDA graphs.
        """
        step, clips = self.step, self.clips_per_gpu
        kept = step.kept.peak(clips)
        passing = step.peak(clips) - step.state_bytes - kept
        tight = "tight: " if clips > self.largest_batch else ""
        return (
            f"memory      {gib(step.state_bytes)} for weights, gradients and momentum + "
            f"{gib(kept)} kept of {_clips(clips)} + {gib(passing)} in passing "
            f"= {gib(step.peak(clips))} of {gib(self.available_bytes)} free; "
            f"{tight}{_clips(self.largest_batch)} should fit"
            + (f"; as CUDA graphs {gib(self.graphs_bytes)}" if graphs else "")
        )

    def check(self) -> None:
        """Refuse a plan that cannot fit.

        Raises:
            RunError: naming the largest number of clips per GPU that fits.
        """
        if self.step.least(self.clips_per_gpu) > self.available_bytes:
            raise RunError(
                f"train.clips_per_gpu={self.clips_per_gpu} needs about "
                f"{gib(self.step.peak(self.clips_per_gpu))} and {gib(self.available_bytes)} are "
                f"free; {self.remedy()}"
            )

    def remedy(self) -> str:
        """What to set where the clips do not fit."""
        fitting = min(self.largest_batch, self.clips_per_gpu - 1)
        if fitting < 1:
            return (
                "not one clip fits: set a smaller clip.num_frames or clip.crop_size, or take a "
                "larger device"
            )
        return f"at most {_clips(fitting)} should fit: set train.clips_per_gpu={fitting}"


def check_memory(
    spec: NetworkSpec,
    clip: tuple[int, int, int],
    *,
    clips_per_gpu: int,
    precision: str,
    device: torch.device,
    execution: Execution = EAGER,
    local_ranks: int = 1,
    averaged: bool = False,
) -> MemoryPlan:
    """The memory of a run's steps, refused where it cannot fit.

    Args:
        clip: (T, H, W).
        precision: a key of :data:`PRECISIONS`, or tf32.
        execution: the form in which the network trains.
        local_ranks: processes of the job on this machine, which share its memory on a CPU.
        averaged: whether an average of the weights is kept.

    Raises:
        RunError: naming the largest number of clips per GPU that fits.
        UserError: the network cannot be built, or the clips are too small for it.
    """
    step = predict_memory(
        spec, clip, precision, device=device.type, execution=execution, averaged=averaged
    )
    sharing = local_ranks if device.type == "cpu" else 1
    plan = MemoryPlan(step, clips_per_gpu, available_bytes(device) // sharing)
    plan.check()
    return plan


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


def measure_step(
    spec: NetworkSpec,
    clip: tuple[int, int, int],
    *,
    clips_per_gpu: int,
    precision: str,
    device: torch.device,
    execution: Execution = EAGER,
) -> int:
    """Train two steps of random clips on a GPU and return the most bytes that torch held.

    Weights of its own are used and dropped; what the process held before is not counted.

    Raises:
        RunError: the device has too little memory, with the most clips that are predicted to fit.
    """
    if spec.norm == "sync_bn":
        # Its statistics would have to be exchanged, and ranks that do not get so far waited for.
        spec = replace(spec, norm="bn")
    before, available = torch.cuda.memory_allocated(device), available_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _two_steps(spec, (clips_per_gpu, *clip), precision, device, execution)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        # The error holds the tensors of the step that failed, and is gone by now.
        gc.collect()
        torch.cuda.empty_cache()
    step = predict_memory(spec, clip, precision, device=device.type, execution=execution)
    raise out_of_memory(MemoryPlan(step, clips_per_gpu, available))


def out_of_memory(plan: MemoryPlan, what: str = "a step", *, graphs: bool = False) -> RunError:
    """The error of a step, or of something else, for which the device had too little memory.

    Args:
        graphs: whether steps are captured as CUDA graphs.
    """
    told = f"{what} ran out of memory, of which {gib(plan.available_bytes)} were free"
    remedy = f"by prediction {plan.remedy()}"
    if graphs:
        more = plan.graphs_bytes - plan.step.peak(plan.clips_per_gpu)
        remedy = f"set compute.graphs=off, which takes about {gib(more)} less, or {remedy}"
    return RunError(f"train.clips_per_gpu={plan.clips_per_gpu}: {told}; {remedy}")


@contextmanager
def memory_told(plan: MemoryPlan, what: str, *, graphs: bool) -> Iterator[None]:
    """Within it, that the device has too little memory is told with a remedy.

    Raises:
        RunError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(plan, what, graphs=graphs) from error


def _two_steps(
    spec: NetworkSpec,
    batch: tuple[int, int, int, int],
    precision: str,
    device: torch.device,
    execution: Execution,
) -> None:
    """Two, because momentum exists from the end of the first one on."""
    network = execution.apply(build_network(spec), device).train()
    optimizer = build_optimizer(
        network, learning_rate=1e-9, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0
    )
    dtype = dtype_of(precision)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        casts = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
        _play_step(network, batch, device, casts, execution.memory_format)
        optimizer.step()


def _play_step(
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
        _play_step(
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


def _clips(count: int) -> str:
    return f"{count} {'clip' if count == 1 else 'clips'}"
