"""A progress line for commands that go through many videos, and how many processes they use."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PROGRESS_SECONDS = 2.0


def num_cores() -> int:
    """Cores this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def watched(items: Iterable[T], total: int, done: str) -> Iterator[T]:
    """Pass items on, with a progress line every few seconds.

    Args:
        done: what was done with them: "indexed".
    """
    started = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        now = time.monotonic()
        if now - shown > PROGRESS_SECONDS or count == total:
            shown, pace = now, (now - started) / count
            print(
                f"{done} {count:,}/{total:,} videos  {1 / max(pace, 1e-9):.1f} videos/s  "
                f"eta {(total - count) * pace:.0f} s",
                flush=True,
            )
        yield item
