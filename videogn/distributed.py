"""Ranks, reductions and gathers; in a single process every function is a plain no-op.

A process learns its place from the variables torchrun sets. Nothing here knows about models or
videos.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from videogn.errors import RunError

T = TypeVar("T")

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
PATIENCE_SECONDS = 10.0
"""A rank that fails waits so long for the first rank to fail alike."""


@dataclass(frozen=True)
class World:
    """The place of this process among the processes of a job.

    Attributes:
        rank: 0 … size - 1.
        size: number of processes.
        device: where this process computes.
        local_size: processes of the job on this machine.
    """

    rank: int
    size: int
    device: torch.device
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def shard(self, num_items: int) -> range:
        """The items of this rank: every one belongs to exactly one rank, none is padded."""
        return range(self.rank, num_items, self.size)


def launched() -> bool:
    """Whether a launcher such as torchrun started this process.

    Raises:
        RunError: only some of the launcher's variables are set.
    """
    present = [name for name in RANK_VARIABLES if name in os.environ]
    if present and len(present) < len(RANK_VARIABLES):
        absent = [name for name in RANK_VARIABLES if name not in os.environ]
        raise RunError(
            f"the environment sets {', '.join(present)} but not {', '.join(absent)}; "
            "start with torchrun, or unset them"
        )
    wrong = [name for name in present if not os.environ[name].isdigit()]
    if wrong:
        raise RunError(f"the environment has {wrong[0]}={os.environ[wrong[0]]!r}, not a number")
    return bool(present)


@contextmanager
def joined_world(timeout_seconds: float = 1800) -> Iterator[World]:
    """Join the job this process belongs to, and leave it at the end.

    Raises:
        RunError: a rank has no GPU of its own, or the environment is incomplete.
    """
    if not launched():
        yield World(0, 1, _device_of(0))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    device = _device_of(local_rank)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    try:
        size = dist.get_world_size()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        yield World(dist.get_rank(), size, device, local_size)
    finally:
        dist.destroy_process_group()


def _device_of(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise RunError(
            f"process {local_rank} of this machine has no GPU: there are {count}; "
            f"start at most {count} processes per machine"
        )
    return torch.device("cuda", local_rank)


def note_failure(message: str) -> None:
    """Let the other ranks know what the first one has said before it ends."""
    store = _launcher_store()
    if store is not None:
        # A launcher that is gone needs no word.
        with suppress(RuntimeError):
            store.set(_failure_key(), _digest(message))


def first_rank_said(message: str) -> bool:
    """Whether the first rank fails with the same message; it is given some seconds to do so.

    False where nobody can tell, so that no message is lost.
    """
    store = _launcher_store()
    if store is None:
        return False
    # Launchers stop every rank when one has ended; this one has yet to speak.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store.wait([_failure_key()], timedelta(seconds=PATIENCE_SECONDS))
        return bool(store.get(_failure_key()) == _digest(message).encode())
    except RuntimeError:
        return False


def _launcher_store() -> TCPStore | None:
    """The store in torchrun's own process, which outlives the ranks; None under other launchers."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
    except (KeyError, ValueError, RuntimeError):
        return None


def _failure_key() -> str:
    return f"videogn/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _digest(message: str) -> str:
    return hashlib.sha256(message.encode(errors="surrogateescape")).hexdigest()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum of every rank's ``values``, on every rank."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_over_ranks(item: T) -> list[T]:
    """Every rank's ``item`` in rank order, on every rank."""
    if not dist.is_initialized():
        return [item]
    items: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def any_rank(answer: bool, device: torch.device) -> bool:
    """Whether any rank's ``answer`` is yes, on every rank."""
    if not dist.is_initialized():
        return answer
    total = torch.tensor(float(answer), device=device)
    dist.all_reduce(total)
    return bool(total > 0)


def from_first_rank(item: T) -> T:
    """Rank 0's ``item``, on every rank."""
    if not dist.is_initialized():
        return item
    items = [item]
    dist.broadcast_object_list(items, src=0)
    return items[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0.

    BN's running statistics differ between ranks after a step; without this each rank would
    validate its own network.
    """
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait until every rank has come here."""
    if dist.is_initialized():
        dist.barrier()
