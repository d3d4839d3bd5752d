from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandAugment

from videogn.data.changed import ChangedClips
from videogn.data.clips import RandomClips
from videogn.data.dataset import TrainDataset, ValDataset
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import VideoOpener
from videogn.data.rand_augment import RandAugmentation
from videogn.data.workers import Workers

CPU = torch.device("cpu")
PLAIN = RandomClips(
    num_frames=4,
    frame_stride=2,
    short_side_min=40,
    short_side_max=48,
    crop_size=32,
    flip_probability=0.5,
    open_video=VideoOpener("pyav"),
)


@pytest.fixture
def records(make_video) -> list[VideoRecord]:
    # The first has fewer frames than the clip shows.
    paths = [make_video(f"{i}.mp4", 3 + 9 * i) for i in range(4)]
    return [VideoRecord(str(path), i, path.name) for i, path in enumerate(paths)]


def augmented(num_ops: int = 2, magnitude: int = 9) -> ChangedClips:
    return ChangedClips(PLAIN, RandAugmentation(num_ops, magnitude))


def one_by_one(clip: torch.Tensor, seed: int, num_ops: int, magnitude: int) -> torch.Tensor:
    """Every frame augmented by itself, from the same seed."""
    frames = []
    with torch.random.fork_rng():
        for image in clip.transpose(0, 1):
            torch.manual_seed(seed)
            frames.append(RandAugment(num_ops, magnitude)(image.contiguous()))
    return torch.stack(frames, 1)


@pytest.mark.parametrize(("num_ops", "magnitude"), [(1, 9), (3, 30)])
def test_all_frames_go_through_the_same_operations(records, num_ops, magnitude) -> None:
    changed = 0
    for index in range(len(records)):
        for epoch in range(6):
            rng = np.random.default_rng([3, epoch, index, 0])
            PLAIN.read(records[index].path, rng)
            seed = int(rng.integers(2**63))
            plain = TrainDataset(records, PLAIN, seed=3)[epoch, index].clip
            found = TrainDataset(records, augmented(num_ops, magnitude), seed=3)[epoch, index].clip
            assert found.shape == (3, 4, 32, 32)
            assert found.dtype == torch.uint8
            assert torch.equal(found, one_by_one(plain, seed, num_ops, magnitude))
            changed += not torch.equal(found, plain)
    assert changed >= 15


def test_replacement_is_drawn_anew_and_validation_stays(records, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    listed = [replace(records[0], path=str(tmp_path / "bad.mp4")), *records[1:]]
    train = TrainDataset(listed, augmented(), seed=3)
    assert torch.equal(train[1, 0].clip, train[1, 0].clip)
    assert len({train[epoch, 2].clip.numpy().tobytes() for epoch in range(8)}) == 8
    val = ValDataset(records, augmented(), seed=3)
    assert torch.equal(val[1].clip, val[1].clip)


def test_no_generator_of_the_process_moves(records) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = TrainDataset(records, augmented(), seed=3)[0, 1].clip
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.rand(3)
    assert torch.equal(TrainDataset(records, augmented(), seed=3)[0, 1].clip, first)


@pytest.mark.dist
def test_clips_do_not_depend_on_workers(records) -> None:
    def batches(workers: int) -> list[bytes]:
        keys = TrainBatches(
            num_videos=4, clips_per_gpu=3, rank=0, world_size=1, seed=7, first_step=0, last_step=4
        )
        loader = build_train_loader(TrainDataset(records, augmented(), 7), keys, Workers(workers))
        return [batch.clips_on(CPU).numpy().tobytes() for batch in loader]

    assert batches(2) == batches(0)


def test_frames_that_are_not_finished_are_refused(records) -> None:
    clips = RandomClips(**{**vars(PLAIN), "planar_room": 5.0})
    with pytest.raises(ValueError, match="planar_room"):
        ChangedClips(clips, RandAugmentation(1, 9)).read(records[3].path, np.random.default_rng(0))
