"""What a training step needs of a device's memory beside what the device has, and what to say.

Shapes: B clips of T frames of H x W.
"""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from videogn.engine.arithmetic import dtype_of
from videogn.engine.device_memory import available_bytes, gib, is_out_of_memory
from videogn.engine.memory import StepMemory, play_step, predict_memory
from videogn.engine.optim import build_optimizer
from videogn.errors import RunError
from videogn.models.build import build_network
from videogn.models.execution import EAGER, Execution
from videogn.models.spec import NetworkSpec

GRAPHS = 1.4
"""What a training pass that is captured as CUDA graphs keeps for each byte of a step: 1.28 to 1.37
on an H200 (benchmarks/compute_nvidia-h200_2026-11-26.md), reserved to allocated."""
BESIDE_GRAPHS = 0.2
"""What else a device should have for each byte of a step: validation cannot use what graphs keep,
and its passes keep nothing for a backward pass. Assumed, not measured."""


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
        play_step(network, batch, device, casts, execution.memory_format)
        optimizer.step()


def _clips(count: int) -> str:
    return f"{count} {'clip' if count == 1 else 'clips'}"
