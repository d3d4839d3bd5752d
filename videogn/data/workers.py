"""How many processes read a data set, and how far ahead: from cores, memory and a short probe."""

import math
import os
import statistics
from collections.abc import Callable
from typing import Literal, NamedTuple

import psutil

READ_SECONDS = 300.0
"""A video's time where no config gives one."""
MIN_PREFETCH, MAX_PREFETCH = 2, 6
MEMORY_SHARE = 0.25
"""Batches on their way take at most this share of the memory that is free."""

Count = int | Literal["auto"]


class Workers(NamedTuple):
    """How batches are read.

    Attributes:
        processes: that read; 0 for none beside the one that trains.
        prefetch: batches that each of them reads ahead.
        timeout: seconds after which the reading of a video is given up.
    """

    processes: int
    prefetch: int = MIN_PREFETCH
    timeout: float = READ_SECONDS

    def at_most(self, processes: int) -> "Workers":
        """No more processes than so many."""
        return self._replace(processes=min(self.processes, processes))

    def line(self) -> str:
        """What a user is told."""
        if self.processes == 0:
            return "in the training process"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{processes}, {self.prefetch} batches ahead each"


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_workers(
    processes: Count,
    prefetch: Count,
    *,
    sharing: int,
    computes_here: bool,
    batch_size: int,
    batch_bytes: int,
    seconds: Callable[[], list[float]],
) -> Workers:
    """Take what is set, and choose what is "auto".

    A core for each process that reads, less one for the process that trains, or half of them where
    it computes on the same cores. The more one sample's time differs from another's, the further
    ahead: the slowest batch of the probe must not keep the others waiting.

    Args:
        processes, prefetch: numbers, or "auto".
        sharing: processes that train on this machine.
        computes_here: whether the network runs on the machine's cores.
        batch_size: samples of a batch.
        batch_bytes: memory of a batch.
        seconds: reads a few samples and tells how long each took.
    """
    count = _process_count(sharing, computes_here) if processes == "auto" else processes
    if prefetch != "auto":
        return Workers(count, prefetch)
    if count == 0:
        return Workers(0)
    room = MEMORY_SHARE * psutil.virtual_memory().available / sharing
    fitting = max(1, int(room / max(1, batch_bytes * count)))
    return Workers(count, min(_prefetch(seconds(), batch_size), fitting))


def _process_count(sharing: int, computes_here: bool) -> int:
    share = max(1, cores() // sharing)
    return max(1, share // 2 if computes_here else share - 1)


def _prefetch(seconds: list[float], batch_size: int) -> int:
    if not seconds:
        return MIN_PREFETCH
    mean = statistics.mean(seconds)
    slowest = ((batch_size - 1) * mean + max(seconds)) / (batch_size * mean)
    return min(max(math.ceil(MIN_PREFETCH * slowest), MIN_PREFETCH), MAX_PREFETCH)
