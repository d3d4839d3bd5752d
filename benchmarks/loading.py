"""Batches of training clips from data workers: shared memory, torch's own way, and threads.

    python benchmarks/loading.py [VIDEO …] [--workers 2] [--rounds 5] [--device cuda]

The same clips reach the training process four ways: ``ring`` is what videogn does, workers that
write into shared memory; ``ring, device`` the same with YUV crops; ``torch`` lets torch's
DataLoader carry finished clips over its queue, as its users do; ``threads`` reads in threads of one
process, as SPDL does. Videos are re-encoded to short side 256 as ``videogn data prepare`` does,
where workers have least to decode and moving clips weighs most; without a video one is made. A
round takes the same number of batches each way, one way after the other; wall and CPU time of all
processes count per clip, medians over rounds are compared. With a device, clips are finished and
normalised on it, which is what training asks of the loader.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from reading import FORMS, encode, made_video
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videogn.data.clips import RandomClips
from videogn.data.crew import prepare_worker, worker_context
from videogn.data.dataset import TrainDataset
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import VideoOpener
from videogn.data.transforms import normalize
from videogn.data.workers import Workers

CLIPS_PER_BATCH = 8
BATCHES = 12
CLIP = (32, 224, 224, 3)
FORM = "256 prepared"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="cuda, cpu; none: clips are only looked at")
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        sources = words.videos or [made_video(Path(folder) / "made.mp4")]
        paths = [
            encode(source, Path(folder) / f"{number}.mp4", *FORMS[FORM])
            for number, source in enumerate(sources)
        ]
        index = Path(folder) / "index"
        file = IndexFile(index, create=True)
        file.add([index_entry(path) for path in paths])
        file.close()
        records = [VideoRecord(path, 0, path) for path in paths * 100]
        device = None if words.device is None else torch.device(words.device)
        report(measure(ways(records, index, words.workers, device), words.rounds))


def ways(
    records: list[VideoRecord], index: Path, workers: int, device: torch.device | None
) -> dict[str, Callable[[], Iterator[Tensor]]]:
    finished, planar = (data_set(records, index, room) for room in (0.0, 1.0))
    return {
        "ring": lambda: ring(finished, workers, device),
        "ring, device": lambda: ring(planar, workers, device),
        "torch": lambda: torch_queue(finished, workers, device),
        "threads": lambda: threads(lambda: data_set(records, index, 0.0), workers, device),
    }


def data_set(records: list[VideoRecord], index: Path, planar_room: float) -> TrainDataset:
    clips = RandomClips(
        num_frames=32,
        frame_stride=2,
        short_side_min=256,
        short_side_max=320,
        crop_size=224,
        flip_probability=0.5,
        open_video=VideoOpener("pyav", index),
        planar_room=planar_room,
    )
    return TrainDataset(records, clips, seed=0)


def keys_of(dataset: TrainDataset) -> TrainBatches:
    return TrainBatches(
        num_videos=len(dataset),
        clips_per_gpu=CLIPS_PER_BATCH,
        rank=0,
        world_size=1,
        seed=0,
        first_step=0,
        last_step=10**6,
    )


def used(clips: Tensor, device: torch.device | None) -> Tensor:
    """(B, C, T, H, W) clips as a training step takes them, or a look at every page of them."""
    if device is None:
        return clips.permute(0, 2, 3, 4, 1).reshape(-1)[::4096].sum()
    return normalize(clips.to(device, non_blocking=True), (0.45,) * 3, (0.225,) * 3)


def ring(dataset: TrainDataset, workers: int, device: torch.device | None) -> Iterator[Tensor]:
    for batch in build_train_loader(dataset, keys_of(dataset), Workers(workers)):
        if device is None:
            yield torch.stack([frames.samples[::4096].sum() for frames in batch.frames])
        else:
            yield used(batch.clips_on(device), device)


class Finished(Dataset[Tensor]):
    """Clips as a user's own data set gives them: (C, T, H, W) uint8."""

    def __init__(self, dataset: TrainDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        clip = self._dataset[key].clip
        assert clip is not None
        return clip


def torch_queue(
    dataset: TrainDataset, workers: int, device: torch.device | None
) -> Iterator[Tensor]:
    batches: DataLoader[Any] = DataLoader(
        Finished(dataset),
        batch_sampler=keys_of(dataset),
        num_workers=workers,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=prepare_worker,
        multiprocessing_context=worker_context(),
    )
    for batch in batches:
        yield used(batch, device)


def threads(
    make: Callable[[], TrainDataset], workers: int, device: torch.device | None
) -> Iterator[Tensor]:
    # An index file belongs to the thread that opened it.
    own = threading.local()

    def read(keys: list[tuple[int, int]]) -> Tensor:
        if not hasattr(own, "dataset"):
            own.dataset = make()
        dataset = own.dataset
        memory = np.empty((len(keys), *CLIP), np.uint8)
        for key, part in zip(keys, memory, strict=True):
            dataset.read(key, part.reshape(-1))
        return torch.from_numpy(memory).permute(0, 4, 1, 2, 3)

    with ThreadPoolExecutor(workers) as pool:
        keys = iter(keys_of(make()))
        waiting = [pool.submit(read, next(keys)) for _ in range(2 * workers)]
        try:
            while True:
                batch = waiting.pop(0).result()
                waiting.append(pool.submit(read, next(keys)))
                yield used(batch, device)
        finally:
            pool.shutdown(cancel_futures=True)


def measure(
    found: dict[str, Callable[[], Iterator[Tensor]]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds per clip of each way: on the clock, and of all processes' cores."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, start in found.items():
            batches = start()
            for _ in range(CLIPS_PER_BATCH):  # workers have started, and have read ahead
                next(batches)
            wall, cpu = time.monotonic(), cpu_seconds()
            for _ in range(BATCHES):
                done = next(batches)
            done.sum().item()  # waits for the device
            clips = BATCHES * CLIPS_PER_BATCH
            times[name].append(((time.monotonic() - wall) / clips, (cpu_seconds() - cpu) / clips))
            batches.close()  # type: ignore[attr-defined]
    return {
        name: (statistics.median(w for w, _ in values), statistics.median(c for _, c in values))
        for name, values in times.items()
    }


def cpu_seconds() -> float:
    process = psutil.Process()
    everyone = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in everyone if one.is_running())


def report(seconds: dict[str, tuple[float, float]]) -> None:
    slowest, _ = seconds["torch"]
    print(
        f"{CLIPS_PER_BATCH} clips a batch, form {FORM!r}; clips a second as ratios to torch's way"
    )
    for name, (wall, cpu) in sorted(seconds.items(), key=lambda item: item[1]):
        print(
            f"  {name:14} {1000 * wall:7.1f} ms a clip  {slowest / wall:5.2f} x   "
            f"{1000 * cpu:7.1f} ms of all cores"
        )


if __name__ == "__main__":
    main()
