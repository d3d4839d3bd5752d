"""Entries of a run's log by how far the training was: iterations differ with the batch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MOST = 1e15
"""No count in a log is larger: what is cannot be drawn either."""


def by_epoch(
    log: Iterable[Mapping[str, Any]], kind: str
) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """(epoch, entry) of each entry of a kind, by the newest start before it.

    Entries whose epoch cannot be told are passed over.
    """
    per_iteration = None
    for entry in log:
        if entry.get("kind") == "start":
            batch, videos = entry.get("global_batch", 0), entry.get("num_videos", 0)
            known = is_number(batch) and is_number(videos) and videos > 0
            per_iteration = batch / videos if known else None
        elif entry.get("kind") == kind and per_iteration is not None:
            iteration = entry.get("iteration", -1)
            if is_number(iteration):
                yield iteration * per_iteration, entry


def is_number(value: Any) -> bool:
    """Whether a value of a log is a number that can be drawn."""
    return type(value) in (int, float) and abs(value) < MOST
