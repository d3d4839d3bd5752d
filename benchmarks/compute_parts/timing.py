"""Times of calls on a device: warmed up, repeated, medians; and what happens when one fails."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Value = TypeVar("Value")

AHEAD_CYCLES = 4_000_000
"""About 2 ms for which the GPU waits while the CPU queues the calls to be timed."""


@dataclass(frozen=True)
class Failure:
    """A cell that could not be measured."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Memory:
    """Bytes of a device.

    Attributes:
        allocated: of live tensors; what CUDA graphs use inside them is not counted.
        reserved: that torch holds of the device, for tensors and for graphs.
    """

    allocated: int
    reserved: int


@dataclass(frozen=True)
class Timer:
    """Times calls.

    Attributes:
        ends_at: of ``time.monotonic``; nothing is begun after it.
    """

    device: torch.device
    ends_at: float

    def left(self) -> float:
        """Seconds that are left."""
        return self.ends_at - time.monotonic()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def kernel(self, call: Callable[[int], object], repeats: int = 15, warm_up: int = 4) -> float:
        """Median seconds of a call of few kernels, without the time to launch them.

        Args:
            call: is told the number of the repeat, to rotate among inputs.
        """
        if self.device.type != "cuda":
            # In a dry run alone, where kernels are interpreted.
            return self._seconds(lambda: call(0))
        for number in range(warm_up):
            call(number)
        events = []
        for number in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(AHEAD_CYCLES)
            first.record()
            call(number)
            last.record()
            events.append((first, last))
        torch.cuda.synchronize()
        return statistics.median(first.elapsed_time(last) for first, last in events) / 1e3

    def _seconds(self, call: Callable[[], object]) -> float:
        self.synchronize()
        started = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - started

    def interleaved(
        self, steps: Mapping[str, Callable[[], object]], rounds: int, in_a_row: int = 2
    ) -> dict[str, float | Failure]:
        """Median seconds of each step; one round runs each ``in_a_row`` times, one after another.

        On a GPU the host may queue a step while the one before computes, as it does in training,
        and one step before is not counted: it settles what memory the others left. Rounds end
        early where time is up.
        """
        settles = self.device.type == "cuda" and in_a_row > 1
        times: dict[str, list[float]] = {name: [] for name in steps}
        failures: dict[str, Failure] = {}

        def run(step: Callable[[], object]) -> None:
            for _ in range(in_a_row):
                step()

        for number in range(rounds):
            if number and self.left() < 0:
                break
            for name, step in steps.items():
                if name in failures:
                    continue
                if settles:
                    attempt(step)
                taken = attempt(lambda step=step: self._seconds(lambda: run(step)))
                if isinstance(taken, Failure):
                    failures[name] = taken
                else:
                    times[name].append(taken / in_a_row)
        return {name: failures.get(name) or statistics.median(times[name]) for name in steps}

    def memory(self) -> Memory:
        """What is there now; 0 on a CPU."""
        if self.device.type != "cuda":
            return Memory(0, 0)
        return Memory(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())

    def peaks(self, step: Callable[[], object], before: Memory) -> Memory | None:
        """Bytes beyond those ``before`` at the peak of a step; None on a CPU.

        What torch keeps of earlier steps is handed back first, so that reserved is what a step
        needs of the device.
        """
        if self.device.type != "cuda":
            return None
        self.synchronize()
        free()
        torch.cuda.reset_peak_memory_stats()
        step()
        self.synchronize()
        return Memory(
            torch.cuda.max_memory_allocated() - before.allocated,
            torch.cuda.max_memory_reserved() - before.reserved,
        )


def attempt(call: Callable[[], Value]) -> Value | Failure:
    """What a call gives, or why it failed: no cell ends the run."""
    try:
        return call()
    except torch.OutOfMemoryError:
        reason = "out of memory"
    except ModuleNotFoundError as error:
        reason = f"not installed: {error.name}"
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"failed: {type(error).__name__}: {first[:120]}"
    # Outside of the handler: the traceback holds tensors.
    free()
    return Failure(reason)


def free() -> None:
    """Hand memory that nothing uses back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
