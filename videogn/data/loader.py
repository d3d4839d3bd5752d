"""The order of samples, and decoding in worker processes.

Shapes: B clips, C = 3 colours, T frames, H x W pixels.
"""

import contextlib
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from videogn.data.crew import EXIT_SECONDS, Crew, Losses, prepare_worker, worker_context
from videogn.data.dataset import (
    ClipSample,
    TestDataset,
    TrainDataset,
    ValDataset,
    VideoViews,
    clip_of,
)
from videogn.data.frames import Form, Frames
from videogn.data.shared import Ring
from videogn.data.watched import WatchedRecords
from videogn.data.workers import Workers
from videogn.errors import DecodeError, UserError

logger = logging.getLogger("videogn")

T = TypeVar("T")

ORDER = 2
"""Ends the seeds of epoch orders, so that no clip is drawn from the same one."""

IN_USE = 2
"""Batches that the training process may still need: the last one, and one the GPU works on."""
LOCKING_PAYS = 500
"""Videos of a test from which memory for the longest of them is locked for a GPU: that takes
seconds, and spares the host a copy of some 30 MB a video."""


PROBE_SECONDS = 2.0
"""How long samples are read to see how much their times differ."""
PROBE_START_SECONDS = 60.0
"""How long the first of them is waited for: a worker has to come up before."""


class ClipBatch(NamedTuple):
    """Clips for one step.

    Attributes:
        frames: of each clip.
        shown: which of its frames each clip shows, (T,) int64.
        labels: (B,) int64.
        places: (B,) int64, where they stand in the list.
        failures: (path, reason) of each video that could not be read.
    """

    frames: tuple[Frames, ...]
    shown: tuple[np.ndarray, ...]
    labels: Tensor
    places: Tensor
    failures: list[tuple[str, str]]

    def clips_on(self, device: torch.device) -> Tensor:
        """(B, C, T, H, W) uint8 on a device, where what was left of the work on pixels is done.

        Raises:
            ValueError: there are no clips.
        """
        clips: Tensor | None = None
        for place, (frames, shown) in enumerate(zip(self.frames, self.shown, strict=True)):
            # Colours last, as finished frames come: copied as they lie.
            clip = clip_of(frames.to(device), shown).permute(1, 2, 3, 0)
            if clips is None:
                clips = clip.new_empty((len(self.frames), *clip.shape))
            clips[place] = clip
        if clips is None:
            raise ValueError("a batch of no clips")
        return clips.permute(0, 4, 1, 2, 3)


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Which samples each step takes: a slice of one endless stream.

    Position p of the stream is entry p mod N of a permutation that (seed, p div N) decides. An
    iteration takes B = clips_per_gpu * accumulation * world_size positions, one iteration after
    the other, and each rank a slice of those, which its ``accumulation`` steps share. So no sample
    is lost or repeated at an epoch's end or on resuming, and the order does not depend on workers,
    nor, for the same B, on the number of ranks.

    Args:
        accumulation: steps of an iteration.
        order: gives the permutation, (N,) int64, by (seed, epoch); :func:`epoch_order` where None.

    Yields:
        (epoch, index) keys of :class:`TrainDataset` for steps first_step … last_step - 1.
    """

    def __init__(
        self,
        *,
        num_videos: int,
        clips_per_gpu: int,
        rank: int,
        world_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        accumulation: int = 1,
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self._accumulation = accumulation
        self._num_videos = num_videos
        self._order = order or partial(epoch_order, num_videos)
        self.clips_per_gpu = clips_per_gpu
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self._steps:
            keys = []
            iteration, part = divmod(step, self._accumulation)
            slice_of_rank = iteration * self._world_size + self._rank
            start = (slice_of_rank * self._accumulation + part) * self.clips_per_gpu
            for position in range(start, start + self.clips_per_gpu):
                if position // self._num_videos != epoch:
                    epoch = position // self._num_videos
                    order = self._order(self._seed, epoch)
                keys.append((epoch, int(order[position % self._num_videos])))
            yield keys


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, (N,) int64, a permutation that (seed, epoch) decides."""
    rng = np.random.default_rng([seed, epoch, 0, 0, ORDER])
    return rng.permutation(num_videos)


class Reads(Protocol):
    """A data set that writes the frames of a sample where it is told."""

    @property
    def videos(self) -> WatchedRecords:
        """The list it reads."""
        ...

    @property
    def sample_bytes(self) -> int:
        """Memory that a sample needs."""
        ...

    def read(self, key: Any, memory: np.ndarray) -> Any:
        """A sample with ``frames``, or None for them where it could not be read."""
        ...


class Loader(Generic[T]):
    """Batches of samples, read in worker processes that write their frames into shared memory.

    A batch is valid until the one after the next is asked for; then its memory is used again.
    A video that kills its worker, or is not read in time, is quarantined, and what it was wanted
    for is read again by another worker: the data set treats it as one that cannot be decoded.

    Args:
        dataset: what reads a sample.
        batches: the keys of each batch.
        batch_size: samples of the largest batch.
        finish: makes a batch of its samples.
        workers: how many processes read, and how far ahead.
        persistent: whether they stay for another iteration.
        pinned: whether a GPU fetches from the shared memory.

    Raises:
        UserError: what a worker raised, as it was; a :class:`RunError` where too many were lost.
        RuntimeError: a worker failed otherwise; the message has its traceback.
    """

    def __init__(
        self,
        dataset: Reads,
        batches: Sampler[Any] | Sequence[Sequence[Any]],
        batch_size: int,
        finish: Callable[[list[Any]], T],
        workers: Workers,
        *,
        persistent: bool = False,
        pinned: bool = True,
    ) -> None:
        self._videos = dataset.videos
        self._keys = batches
        self._finish = finish
        self._workers = workers
        self._persistent = persistent
        self._waiting: Crew | None = None
        self._losses = Losses()
        self._ring: Ring | None = None
        if workers.processes:
            slots = workers.processes * workers.prefetch + IN_USE
            self._ring = Ring(slots, batch_size * dataset.sample_bytes)
            if pinned and torch.cuda.is_available():
                _pin(self._ring)
        self._fill = _Filling(dataset, self._ring)

    def __len__(self) -> int:
        return len(self._keys)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        return _paced(self._batches())

    def _batches(self) -> Iterator[T]:
        for item in self._filled():
            if isinstance(item, UserError):
                raise item
            yield self._finish([self._attached(item.slot, sample) for sample in item.samples])

    def _filled(self) -> "Iterator[_Filled | UserError]":
        processes = self._workers.processes
        if processes == 0:
            yield from (self._fill(number, keys) for number, keys in enumerate(self._keys))
            return
        crew, self._waiting = self._waiting, None
        if crew is None:
            crew = Crew(self._fill, self._videos, processes, self._workers.timeout, self._losses)
        try:
            yield from crew.in_order(self._keys, processes * self._workers.prefetch)
        except BaseException:
            # Those that are still at it would answer to the next iteration.
            crew.end()
            raise
        if self._persistent:
            self._waiting = crew
        else:
            crew.end()

    def _attached(self, slot: int, sample: Any) -> Any:
        if isinstance(sample.frames, _Loose):
            return sample._replace(frames=Frames.in_memory(*sample.frames))
        if not isinstance(sample.frames, _Placed) or self._ring is None:
            return sample
        form, start = sample.frames
        return sample._replace(frames=Frames.in_memory(form, self._ring.slot(slot)[start:]))


def _pin(ring: Ring) -> None:
    """Lock the ring's pages where the driver lets it; copies wait for the host where not."""
    try:
        ring.pin()
    except RuntimeError as error:
        logger.warning("the memory that clips come in is not locked for the GPU: %s", error)


def _paced(batches: Iterator[T]) -> Iterator[T]:
    """Give batches on, but none before the GPU is done with the copies of the one before the last.

    Its memory is the next to be written.
    """
    if not torch.cuda.is_available():
        yield from batches
        return
    copied: deque[torch.cuda.Event] = deque()
    for batch in batches:
        yield batch
        # The caller has asked for the next one: its copies of this one are on their way.
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        copied.append(event)
        if len(copied) == IN_USE:
            copied.popleft().synchronize()


class _Placed(NamedTuple):
    """Stands for the frames of a sample, which lie in a slot of the ring from ``start`` on."""

    form: Form
    start: int


class _Loose(NamedTuple):
    """Stands for frames that are larger than their place in the ring: bytes (form.num_bytes,)."""

    form: Form
    samples: np.ndarray


class _Filled(NamedTuple):
    """What a worker sends: samples whose frames are in slot ``slot`` of the ring."""

    slot: int
    samples: list[Any]


class _Filling:
    """Reads whole batches, in a worker where there are any."""

    def __init__(self, dataset: Reads, ring: Ring | None) -> None:
        self._dataset = dataset
        self._ring = ring

    def __call__(self, slot: int, keys: Sequence[Any]) -> _Filled | UserError:
        """The samples of a batch; what a user caused is given, not raised, for it has a message."""
        try:
            return self._fill(slot, keys)
        except UserError as error:
            return error

    def _fill(self, slot: int, keys: Sequence[Any]) -> _Filled:
        size, start, samples = self._dataset.sample_bytes, 0, []
        for key in keys:
            if self._ring is None:
                samples.append(self._dataset.read(key, np.empty(size, np.uint8)))
                continue
            memory = self._ring.slot(slot)[start : start + size]
            samples.append(_to_send(self._dataset.read(key, memory), memory, start))
            start += size
        return _Filled(slot, samples)


def _to_send(sample: Any, memory: np.ndarray, start: int) -> Any:
    """A sample without the frames that lie in ``memory``, at ``start`` of the slot."""
    if sample.frames is None:
        return sample
    form, samples = sample.frames
    if _lies_in(sample.frames, memory):
        return sample._replace(frames=_Placed(form, start))
    # Through the pipe: a tensor would go by /dev/shm, which containers keep small.
    return sample._replace(frames=_Loose(form, samples.numpy()))


def _lies_in(frames: Frames, memory: np.ndarray) -> bool:
    return frames.samples.data_ptr() == memory.ctypes.data


def build_train_loader(
    dataset: TrainDataset, batches: TrainBatches, workers: Workers
) -> Loader[ClipBatch]:
    """One :class:`ClipBatch` per step."""
    return Loader(dataset, batches, batches.clips_per_gpu, collate_clips, workers)


def build_val_loader(
    dataset: ValDataset, indices: Sequence[int], batch_size: int, workers: Workers
) -> Loader[ClipBatch]:
    """This rank's validation clips; a batch with failures is that much smaller."""
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    workers = workers.at_most(len(batches))
    return Loader(dataset, batches, batch_size, collate_clips, workers, persistent=True)


def build_test_loader(
    dataset: TestDataset, indices: Sequence[int], workers: Workers
) -> Loader[VideoViews]:
    """This rank's videos, one :class:`VideoViews` each, in order."""
    batches = [[index] for index in indices]
    workers = workers.at_most(len(batches))
    pinned = len(batches) >= LOCKING_PAYS
    return Loader(dataset, batches, 1, _only_one, workers, pinned=pinned)


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Those clips that could be read, and what happened to the others."""
    read = [sample for sample in samples if sample.frames is not None]
    return ClipBatch(
        frames=tuple(sample.frames for sample in read if sample.frames is not None),
        shown=tuple(sample.shown for sample in read),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        places=torch.tensor([sample.place for sample in read], dtype=torch.int64),
        failures=[failure for sample in samples for failure in sample.failures],
    )


def _only_one(samples: Sequence[VideoViews]) -> VideoViews:
    [sample] = samples
    return sample


def time_reads(dataset: Reads, keys: Sequence[Any]) -> list[float]:
    """Seconds that reading each of a few samples takes a worker, as many as there is time for."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = worker_context().Process(target=_time_reads, args=(dataset, keys, theirs))
    process.start()
    theirs.close()
    seconds: list[float] = []
    deadline = time.monotonic() + PROBE_START_SECONDS
    try:
        # Starting a worker takes longer than reading, and what it started first is used later.
        while ours.poll(max(0.0, deadline - time.monotonic())):
            if not seconds:
                deadline = time.monotonic() + PROBE_SECONDS
            seconds.append(ours.recv())
    except EOFError:
        pass
    finally:
        process.kill()
        process.join(EXIT_SECONDS)
        ours.close()
    return seconds


def _time_reads(dataset: Reads, keys: Sequence[Any], pipe: Connection) -> None:
    prepare_worker(0)
    torch.set_num_threads(1)
    memory = np.empty(dataset.sample_bytes, np.uint8)
    for key in keys:
        started = time.monotonic()
        with contextlib.suppress(DecodeError):
            dataset.read(key, memory)
        pipe.send(time.monotonic() - started)
