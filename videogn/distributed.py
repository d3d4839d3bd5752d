"""Ranks, reductions and gathers; in a single process every function is a plain no-op.

Where a process stands is told by :mod:`videogn.ranks`. The ranks of a job meet in a store, which
the launcher holds, or the first rank where the launcher has none. Nothing here knows about models
or videos.
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
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from videogn.errors import RunError
from videogn.ranks import Place, find_place, meeting_point

T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""A rank that fails waits so long for the first rank to fail alike, and the first rank that holds
the store for the others to have read it."""
JOIN_SECONDS = 600.0
"""Hosts of one job may start minutes apart."""
COLLECTIVE_SECONDS = 1800.0
"""Longer than :class:`videogn.watchdog.Watchdog` waits, whose message says more."""


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
    """Whether torchrun, ``--gpus`` or ``srun`` started this process as one of a job.

    Raises:
        RunError: as :func:`videogn.ranks.find_place`.
    """
    return find_place() is not None


@contextmanager
def joined_world(timeout_seconds: float = COLLECTIVE_SECONDS) -> Iterator[World]:
    """Join the job this process belongs to, and leave it at the end.

    Args:
        timeout_seconds: how long a rank waits in a reduction or gather for the others.

    Raises:
        RunError: a rank has no GPU of its own, the environment is incomplete, or the ranks do not
            find each other.
    """
    place = find_place()
    if place is None:
        yield World(0, 1, _device_of(0))
        return
    device = _device_of(place.local_rank, place)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    store = _own_store(JOIN_SECONDS)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", _named(store)),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    try:
        yield World(place.rank, place.size, device, place.local_size)
    except BaseException:
        # Before the group is left, for that makes others fail who shall know why.
        with suppress(RuntimeError):
            mark_first_failure(_named(store), place.rank)
        raise
    finally:
        dist.destroy_process_group()
    _leave_together(place, _named(store))


def _leave_together(place: Place, store: PrefixStore) -> None:
    """The rank that holds the store stays until the others need it no more, or for some seconds."""
    with suppress(RuntimeError):
        store.set(f"left {place.rank}", "")
        if place.hosts_store and place.rank == 0:
            names = [f"left {rank}" for rank in range(place.size)]
            store.wait(names, timedelta(seconds=PATIENCE_SECONDS))


def _device_of(local_rank: int, place: Place | None = None) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and place is not None and place.is_step:
        # srun --gpus-per-task=1 shows every rank its own GPU alone. Ranks that share one after
        # all are refused by NCCL ("Duplicate GPU detected").
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise RunError(
            f"process {local_rank} of this machine has no GPU: there are {count}; "
            f"start at most {count} processes per machine"
        )
    return torch.device("cuda", local_rank)


def open_store(seconds: float, *, may_host: bool = False) -> TCPStore:
    """A new connection to the store of the job this process belongs to.

    Args:
        seconds: how long to wait for it, and later for each answer.
        may_host: make the store where this is the rank that has to.

    Raises:
        RunError: its port is taken, or nobody answers.
    """
    place, (host, port) = find_place(), meeting_point()
    hosts = may_host and place is not None and place.hosts_store and place.rank == 0
    try:
        return TCPStore(
            host,
            port,
            is_master=hosts,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )
    except (RuntimeError, ValueError) as error:
        if hosts:
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"rank 0 cannot open port {port} of {host} for the other ranks: {reason}; "
                "choose another by MASTER_PORT"
            ) from error
        raise RunError(
            f"rank {place.rank if place else 0} found no store at {host}:{port} in {seconds:.0f} s;"
            " is rank 0 there? MASTER_ADDR and MASTER_PORT must name its host and a free port"
        ) from error


_store: TCPStore | None = None
"""The store as this process uses it, from the first use to the end of the process."""


def _own_store(seconds: float) -> TCPStore:
    global _store
    if _store is None:
        _store = open_store(seconds, may_host=True)
    return _store


def _named(store: TCPStore) -> PrefixStore:
    """The part of a store that belongs to the present try; torchrun may start ranks again."""
    return PrefixStore(f"videogn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def connect(seconds: float) -> PrefixStore:
    """A connection of its own to the job's store, for a thread beside the main one.

    Raises:
        RunError: nobody answers.
    """
    return _named(open_store(seconds))


def first_rank_holds_store() -> bool:
    """Whether the job's store ends and halts with the first rank, not with a launcher."""
    place = find_place()
    return place is not None and place.hosts_store


def mark_first_failure(store: PrefixStore, rank: int) -> None:
    """Note in the job's store that ``rank`` fails, unless another did before.

    The others then leave it to that rank to say why the job ends.
    """
    store.compare_set("first failure", "", str(rank))


def note_failure(message: str) -> None:
    """Let the other ranks know what the first one has said before it ends.

    Where the first rank holds the store itself, it waits some seconds for the others to read.
    """
    with _for_last_words() as found:
        if found is None:
            return
        place, store = found
        store.set("said", _digest(message))
        if place.hosts_store:
            names = [f"heard {rank}" for rank in range(1, place.size)]
            store.wait(names, timedelta(seconds=PATIENCE_SECONDS))


def first_rank_said(message: str) -> bool:
    """Whether the first rank fails with the same message; it is given some seconds to do so.

    False where nobody can tell, so that no message is lost.
    """
    same = False
    with _for_last_words() as found:
        if found is None:
            return False
        place, store = found
        store.wait(["said"], timedelta(seconds=PATIENCE_SECONDS))
        same = bool(store.get("said") == _digest(message).encode())
        store.set(f"heard {place.rank}", "")
    return same


def another_failed_first() -> bool:
    """Whether this process fails because another rank did, which tells why itself."""
    first = None
    with _for_last_words() as found:
        if found is None:
            return False
        place, store = found
        if store.check(["first failure"]):
            first = int(store.get("first failure"))
    return first is not None and first != place.rank


@contextmanager
def _for_last_words() -> Iterator[tuple[Place, PrefixStore] | None]:
    """The place of this process and the job's store, or None; a store that fails is passed over."""
    # Launchers stop every rank when one has ended; this one has yet to speak.
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        place = find_place()
        store = None if place is None else _named(_own_store(PATIENCE_SECONDS))
    except RunError:
        place = store = None
    # A launcher that is gone needs no word.
    with suppress(RuntimeError):
        yield None if place is None or store is None else (place, store)


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
