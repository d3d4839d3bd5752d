"""The memory limit of processes that decode."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORKER_BYTES = 3 * 2**29
"""Memory a decoding process may allocate: 1.5 GiB, so that a crafted file costs one video."""


def limit_memory() -> None:
    """Limit this process to the memory it has and :data:`WORKER_BYTES` more, where /proc tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    [used] = [line.split()[1] for line in status.read_text().splitlines() if "VmData" in line]
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = int(used) * 1024 + WORKER_BYTES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


@contextmanager
def limited_memory() -> Iterator[None]:
    """The same for as long as one video is read by a process that does other work too.

    Without data workers that is the training process, which a crafted file would otherwise make
    ask for many gigabytes. A process that has a limit keeps it.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if before[0] != resource.RLIM_INFINITY:
        yield
        return
    limit_memory()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
