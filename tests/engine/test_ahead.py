import itertools

import pytest
import torch
from torch import Tensor

from videogn.data.clips import RandomClips
from videogn.data.dataset import TrainDataset
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import VideoOpener
from videogn.data.synthetic import render_motion_dataset
from videogn.data.workers import Workers
from videogn.engine.ahead import Ahead, Moved, Waits

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
IN_USE = 2


class Lent:
    """A batch whose clips lie in memory that is used again, as a loader's."""

    def __init__(self, memory: Tensor, number: int) -> None:
        self._memory = memory
        self.labels, self.places = torch.tensor([number]), torch.tensor([number])
        self.failures = ((f"{number}.mp4", "broken"),)

    def clips_on(self, device: torch.device) -> Tensor:
        # What the loader's does: on the CPU, a tensor of its own.
        return self._memory.clone().to(device)


def lent_batches(asked: list[int]):
    memory = [torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8) for _ in range(IN_USE)]
    for number in itertools.count():
        asked.append(number)
        yield Lent(memory[number % IN_USE].fill_(number), number)


def numbers_of(parts: list[Moved]) -> list[int]:
    found = []
    for part in parts:
        [number] = part.clips.cpu().unique().tolist()
        assert part.labels.tolist() == part.places.tolist() == [number]
        assert part.failures == ((f"{number}.mp4", "broken"),)
        found.append(number)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("early", [False, True])
def test_an_iteration_may_want_more_batches_than_a_loader_keeps(device, early):
    asked: list[int] = []
    source = Ahead(lent_batches(asked), 5, device)
    for iteration in range(3):
        if early:
            source.ask()
            source.ask()  # once is enough
        first = 5 * iteration
        assert numbers_of(source.take()) == list(range(first, first + 5))
        assert asked == list(range(first + 5))


@pytest.mark.dist
def test_accumulated_clips_are_those_that_were_read(tmp_path):
    """Workers write the clips of later batches over those of batches that were asked for before."""
    render_motion_dataset(tmp_path, {"train": 12}, seed=5)
    paths = sorted((tmp_path / "train").iterdir())
    records = [VideoRecord(str(path), 0, path.name) for path in paths]
    clips = RandomClips(
        num_frames=8,
        frame_stride=1,
        short_side_min=32,
        short_side_max=40,
        crop_size=32,
        flip_probability=0.5,
        open_video=VideoOpener("pyav", None),
    )

    def read(workers: int) -> list[Tensor]:
        dataset = TrainDataset(records, clips, seed=0)
        keys = TrainBatches(
            num_videos=len(records),
            clips_per_gpu=2,
            rank=0,
            world_size=1,
            seed=0,
            first_step=0,
            last_step=24,
            accumulation=8,
        )
        source = Ahead(iter(build_train_loader(dataset, keys, Workers(workers))), 8, CPU)
        return [part.clips_on(CPU) for _ in range(3) for part in source.take()]

    for ours, theirs in zip(read(2), read(0), strict=True):
        assert torch.equal(ours, theirs)


def test_on_a_cpu_waiting_is_what_the_clock_says():
    times = iter([10.0, 12.5, 20.0, 20.25])
    waits, done = Waits(CPU), []
    for number in range(2):
        waits.during(lambda number=number: done.append(number), lambda: next(times))
    assert done == [0, 1]
    assert waits.take() == 2.75
    assert waits.take() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_busy_gpu_does_not_wait_and_an_idle_one_does():
    import time

    device = torch.device("cuda")
    values = torch.randn(4096, 4096, device=device)

    def work() -> None:
        for _ in range(200):
            values @ values

    work()
    torch.cuda.synchronize()
    waits = Waits(device)
    work()  # takes the GPU longer than the host sleeps
    waits.during(lambda: time.sleep(0.01), time.monotonic)
    assert waits.take() < 0.005
    torch.cuda.synchronize()
    waits.during(lambda: time.sleep(0.05), time.monotonic)
    assert waits.take() == pytest.approx(0.05, abs=0.01)
