"""Batches on their way to the device while it computes the step before.

Shapes: B clips of T frames of H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Batch(Protocol):
    """Clips for one step, as a loader gives them."""

    @property
    def labels(self) -> Tensor:
        """(B,) int64."""
        ...

    @property
    def places(self) -> Tensor:
        """(B,) int64, where the clips stand in the list."""
        ...

    @property
    def failures(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of each video that could not be read."""
        ...

    def clips_on(self, device: torch.device) -> Tensor:
        """(B, 3, T, H, W) uint8 on a device."""
        ...


@dataclass(frozen=True)
class Moved:
    """A batch whose clips are where they are used.

    Attributes:
        clips: (B, 3, T, H, W) uint8.
        labels: (B,) int64.
        places: (B,) int64.
        failures: (path, reason) of each video that could not be read.
    """

    clips: Tensor
    labels: Tensor
    places: Tensor
    failures: Sequence[tuple[str, str]]

    def clips_on(self, device: torch.device) -> Tensor:
        """The clips, which are there already."""
        return self.clips.to(device)


class Ahead:
    """Takes the batches of an iteration out of the loader together.

    Their clips are moved, or copied, as they come: a loader's memory is used again as soon as the
    batch after the next is asked for, and an iteration may want more. On a GPU this is done on a
    stream of its own, and can be begun while the iteration before is computed.

    Args:
        batches: of the loader.
        count: batches of an iteration.
    """

    def __init__(self, batches: Iterator[Batch], count: int, device: torch.device) -> None:
        self._batches, self._count, self._device = batches, count, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._coming: list[Moved] = []

    @property
    def overlaps(self) -> bool:
        """Whether moving goes on beside computing, so that it pays to ask early."""
        return self._stream is not None

    def ask(self) -> None:
        """Have the next iteration's batches come, unless they do already."""
        if self._coming:
            return
        with self._moving():
            self._coming = [self._moved(next(self._batches)) for _ in range(self._count)]

    def take(self) -> list[Moved]:
        """The next iteration's batches; what is queued on the device from now on finds them."""
        self.ask()
        parts, self._coming = self._coming, []
        if self._stream is not None:
            mine = torch.cuda.current_stream(self._device)
            mine.wait_stream(self._stream)
            for part in parts:
                part.clips.record_stream(mine)
                part.labels.record_stream(mine)
        return parts

    def _moving(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _moved(self, batch: Batch) -> Moved:
        # Places stay: they are asked for where they are.
        labels = batch.labels.to(self._device, non_blocking=True)
        return Moved(batch.clips_on(self._device), labels, batch.places, batch.failures)


class Waits:
    """Seconds that a device stands still because something on the host takes long.

    On a GPU, whose queue may be full all the while, they are measured on the GPU itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def during(self, work: Callable[[], T], clock: Callable[[], float]) -> T:
        """Do something that the device may have to wait for, and return what comes of it."""
        before = clock()
        if self._device.type != "cuda":
            made = work()
            self._seconds += clock() - before
            return made
        begun = self._mark()
        made = work()
        self._open.append((begun, self._mark()))
        return made

    def take(self) -> float:
        """The seconds since this was last asked; waits until the GPU has come so far."""
        for begun, ended in self._open:
            ended.synchronize()
            self._seconds += begun.elapsed_time(ended) / 1000
        self._open.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
