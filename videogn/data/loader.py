"""The order of samples, and decoding in worker processes.

Shapes: B clips, C = 3 colours, T frames, H x W pixels.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from videogn.data.dataset import ClipSample, TestDataset, TrainDataset, ValDataset, VideoViews
from videogn.data.limits import limit_memory
from videogn.errors import UserError

T = TypeVar("T")

ORDER = 2
"""Ends the seeds of epoch orders, so that no clip is drawn from the same one."""


class ClipBatch(NamedTuple):
    """Clips for one step.

    Attributes:
        clips: (B, C, T, H, W) uint8.
        labels: (B,) int64.
        places: (B,) int64, where they stand in the list.
        failures: (path, reason) of each video that could not be read.
    """

    clips: Tensor
    labels: Tensor
    places: Tensor
    failures: list[tuple[str, str]]


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Which samples each step takes: a slice of one endless stream.

    Position p of the stream is entry p mod N of a permutation that (seed, p div N) decides. Step s
    takes B = clips_per_gpu * world_size positions from s * B on, and each rank a slice of those.
    So no sample is lost or repeated at an epoch's end or on resuming, and the order does not
    depend on workers, nor, for the same B, on the number of ranks.

    Args:
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
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self._num_videos = num_videos
        self._order = order or partial(epoch_order, num_videos)
        self._clips_per_gpu = clips_per_gpu
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
            start = (step * self._world_size + self._rank) * self._clips_per_gpu
            for position in range(start, start + self._clips_per_gpu):
                if position // self._num_videos != epoch:
                    epoch = position // self._num_videos
                    order = self._order(self._seed, epoch)
                keys.append((epoch, int(order[position % self._num_videos])))
            yield keys


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, (N,) int64, a permutation that (seed, epoch) decides."""
    rng = np.random.default_rng([seed, epoch, 0, 0, ORDER])
    return rng.permutation(num_videos)


class Loader(Generic[T]):
    """Iterates over what a torch loader gives, and raises errors of its workers as they were.

    On its own torch turns an error of a worker into one with the worker's traceback for a
    message.

    Raises:
        UserError: what a worker raised.
        RuntimeError: a worker died; torch's message has its process id.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        self._loader: DataLoader[Any] = DataLoader(_ErrorsAsItems(dataset), **options)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[T]:
        items = iter(self._loader)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            # Torch may be fetching a clip from the worker when it dies.
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                raise RuntimeError(
                    "a data worker died, perhaps killed for lack of memory; "
                    "data.num_workers=0 decodes in the training process"
                ) from error
            if isinstance(item, UserError):
                raise item
            yield item


class _ErrorsAsItems(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._dataset[key]
        except UserError as error:
            return error


def build_train_loader(
    dataset: TrainDataset, batches: TrainBatches, num_workers: int
) -> Loader[ClipBatch]:
    """One :class:`ClipBatch` per step."""
    return Loader(
        dataset,
        collate_fn=_collate,
        batch_sampler=batches,
        **_worker_options(num_workers, persistent=False),
    )


def build_val_loader(
    dataset: ValDataset, indices: Sequence[int], batch_size: int, num_workers: int
) -> Loader[ClipBatch]:
    """This rank's validation clips; a batch with failures is that much smaller."""
    return Loader(
        dataset,
        collate_fn=_collate,
        sampler=indices,
        batch_size=batch_size,
        **_worker_options(min(num_workers, len(indices)), persistent=True),
    )


def build_test_loader(
    dataset: TestDataset, indices: Sequence[int], num_workers: int
) -> Loader[VideoViews]:
    """This rank's videos, one :class:`VideoViews` each, in order."""
    return Loader(
        dataset,
        sampler=indices,
        batch_size=None,
        **_worker_options(min(num_workers, len(indices)), persistent=False),
    )


def _collate(items: Sequence[ClipSample | UserError]) -> ClipBatch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    return collate_clips([item for item in items if isinstance(item, ClipSample)])


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Stack the clips that could be read; clips stay uint8."""
    read = [sample for sample in samples if sample.clip is not None]
    clips = [sample.clip for sample in read if sample.clip is not None]
    return ClipBatch(
        clips=torch.stack(clips) if clips else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        places=torch.tensor([sample.place for sample in read], dtype=torch.int64),
        failures=[failure for sample in samples for failure in sample.failures],
    )


def _worker_options(num_workers: int, persistent: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        # Torch draws a seed for the workers, which do not use it; drawn from the global generator
        # it would shift the dropout of a run that validates at other steps.
        "generator": torch.Generator(),
    }
    if num_workers == 0:
        return options
    return options | {
        "persistent_workers": persistent,
        "prefetch_factor": 2,
        "worker_init_fn": prepare_worker,
        "multiprocessing_context": worker_context(),
    }


def worker_context() -> BaseContext:
    """How workers are started.

    A forked child of a process with CUDA, NCCL or gloo threads may hang; a spawned one imports
    torch for seconds. The fork server imports it once and has no such threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["videogn.data.dataset"])
    return context


def prepare_worker(worker_id: int) -> None:
    """Set up a decoding process: it ends with its parent, and its memory is limited.

    Ctrl-C is left to the parent.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_memory()


def _end_with_parent() -> None:
    # The fork server lives as long as its workers, and torch's own watch asks for the server: if
    # the training process were killed, both would wait for each other for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
