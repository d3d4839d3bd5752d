import copy
import multiprocessing
import os
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import forked
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.clips import RandomClips
from videogn.data.dataset import TestDataset, TrainDataset, ValDataset, VideoViews
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import (
    Loader,
    TrainBatches,
    build_test_loader,
    build_train_loader,
    build_val_loader,
    collate_clips,
    epoch_order,
)
from videogn.data.opening import READERS, VideoOpener
from videogn.data.shared import Ring
from videogn.data.workers import Workers
from videogn.errors import DecodeError

CPU = torch.device("cpu")
CLIPS = RandomClips(
    num_frames=4,
    frame_stride=2,
    short_side_min=40,
    short_side_max=48,
    crop_size=32,
    flip_probability=0.5,
    open_video=VideoOpener("pyav"),
)


def keys_of(num_videos: int, per_rank: int, ranks: int, first: int, last: int, seed: int = 0):
    """Keys by step and rank, as the ranks together see them."""
    by_rank = [
        list(
            TrainBatches(
                num_videos=num_videos,
                clips_per_gpu=per_rank,
                rank=rank,
                world_size=ranks,
                seed=seed,
                first_step=first,
                last_step=last,
            )
        )
        for rank in range(ranks)
    ]
    assert all(len(batch) == per_rank for batches in by_rank for batch in batches)
    return [[batches[step] for batches in by_rank] for step in range(last - first)]


def stream_of(steps) -> list[tuple[int, int]]:
    return [key for ranks in steps for batch in ranks for key in batch]


sizes = st.integers(1, 20)


@given(sizes, st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.integers(0, 3))
def test_ranks_together_take_the_stream_without_loss_or_repetition(n, b, ranks, steps, seed):
    stream = stream_of(keys_of(n, b, ranks, 0, steps, seed))
    assert [epoch for epoch, _ in stream] == [p // n for p in range(b * ranks * steps)]
    for epoch in range(len(stream) // n):
        part = stream[epoch * n : (epoch + 1) * n]
        assert sorted(index for _, index in part) == list(range(n))


@given(sizes, st.integers(1, 3), st.sampled_from([(1, 4), (2, 2), (4, 1), (1, 6), (2, 3), (3, 2)]))
def test_order_does_not_depend_on_the_number_of_ranks(n, b, split) -> None:
    ranks, per_rank = split
    together = stream_of(keys_of(n, ranks * per_rank * b, 1, 0, 6))
    assert stream_of(keys_of(n, per_rank * b, ranks, 0, 6)) == together


@given(sizes, st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_resuming_goes_on_where_the_run_stopped(n, b, ranks, stop) -> None:
    whole = keys_of(n, b, ranks, 0, 10)
    assert keys_of(n, b, ranks, 0, stop) + keys_of(n, b, ranks, stop, 10) == whole


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_length_is_the_number_of_steps() -> None:
    batches = TrainBatches(
        num_videos=5, clips_per_gpu=2, rank=0, world_size=1, seed=0, first_step=3, last_step=10
    )
    assert len(batches) == len(list(batches)) == 7


@pytest.fixture
def records(make_video) -> list[VideoRecord]:
    """Five videos, of which the one at 3 cannot be decoded."""
    paths = [make_video(f"{i}.mp4", 12 + i) for i in range(5)]
    paths[3].write_text("no video")
    return [VideoRecord(str(path), 10 + i, path.name) for i, path in enumerate(paths)]


def kept(loader) -> list:
    """All that a loader gives, apart from the memory that it uses again."""
    batches = []
    for batch in loader:
        one = isinstance(batch, VideoViews)
        frames = [batch.frames] if one else batch.frames
        copies = tuple(part and part._replace(samples=part.samples.clone()) for part in frames)
        batches.append(batch._replace(frames=copies[0] if one else copies))
    return batches


def train_batches(
    records, workers: int, rank: int = 0, ranks: int = 1, steps=(0, 4), clips=CLIPS
) -> list:
    batches = TrainBatches(
        num_videos=len(records),
        clips_per_gpu=4 // ranks,
        rank=rank,
        world_size=ranks,
        seed=7,
        first_step=steps[0],
        last_step=steps[1],
    )
    dataset = TrainDataset(records, clips, seed=7)
    return kept(build_train_loader(dataset, batches, Workers(workers)))


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.clips_on(CPU), theirs.clips_on(CPU))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.places, theirs.places)
        assert ours.failures == theirs.failures


@pytest.mark.dist
def test_clips_do_not_depend_on_workers_ranks_or_interruption(records) -> None:
    alone = train_batches(records, 0)
    assert alone[0].clips_on(CPU).shape == (4, 3, 4, 32, 32)
    assert alone[0].clips_on(CPU).dtype == torch.uint8
    assert alone[0].labels.dtype == alone[0].places.dtype == torch.int64
    assert torch.equal(alone[0].labels, alone[0].places + 10)
    for workers in (1, 3):
        assert_equal(train_batches(records, workers), alone)
    assert_equal(train_batches(records, 1, steps=(2, 4)), alone[2:])
    ranks = [train_batches(records, 0, rank, 2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.clips_on(CPU) for part in parts]), whole.clips_on(CPU))
        assert [f for part in parts for f in part.failures] == whole.failures


@pytest.mark.dist
def test_clips_do_not_depend_on_the_reader_or_where_they_are_finished(make_video, tmp_path) -> None:
    paths = [str(make_video(f"{i}.mp4", 20 + i, size=(48, 64), g="6", bf="2")) for i in range(3)]
    records = [VideoRecord(path, 10 + i, path) for i, path in enumerate(paths)]
    index = IndexFile(tmp_path / "index", create=True)
    index.add([index_entry(path) for path in paths])
    index.close()
    openers = {name: VideoOpener(name) for name in READERS}
    openers["index"] = VideoOpener("pyav", tmp_path / "index")
    expected = train_batches(records, 0)
    for opener in openers.values():
        clips = copy.copy(CLIPS)
        clips.open_video = opener
        for workers in (0, 2):
            assert_equal(train_batches(records, workers, clips=clips), expected)
    clips = copy.copy(CLIPS)
    clips.planar_room = 1.0
    for workers in (0, 2):
        found = train_batches(records, workers, clips=clips)
        for ours, theirs in zip(found, expected, strict=True):
            assert {frames.form.pixels for frames in ours.frames} == {"yuv420p"}
            assert torch.equal(ours.places, theirs.places)
            difference = ours.clips_on(CPU).int() - theirs.clips_on(CPU).int()
            # Of noise, which is what such small frames hold, single pixels differ by more.
            assert difference.abs().float().mean() < 3


@pytest.mark.gpu
@pytest.mark.dist
def test_a_gpu_gets_the_same_clips_from_page_locked_memory(records) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    planar = copy.copy(CLIPS)
    planar.planar_room = 1.0
    for clips in (CLIPS, planar):
        dataset, batches = (
            TrainDataset(records, clips, seed=7),
            TrainBatches(
                num_videos=len(records),
                clips_per_gpu=4,
                rank=0,
                world_size=1,
                seed=7,
                first_step=0,
                last_step=40,
            ),
        )
        expected = train_batches(records, 0, steps=(0, 40), clips=clips)
        loader = build_train_loader(dataset, batches, Workers(2))
        # Nothing waits for the copies but the loader, which must not write over their source.
        found = [batch.clips_on(torch.device("cuda")) for batch in loader]
        for ours, theirs in zip(found, expected, strict=True):
            difference = ours.cpu().int() - theirs.clips_on(CPU).int()
            assert difference.abs().max() <= (1 if clips is planar else 0)


@pytest.mark.dist
def test_bad_videos_are_reported_through_workers(records) -> None:
    bad = records[3].path
    batches = train_batches(records, 2, steps=(0, 5))  # four epochs
    failures = [failure for batch in batches for failure in batch.failures]
    assert len(failures) >= 4
    assert {path for path, _ in failures} == {bad}
    assert all("Invalid data" in reason for _, reason in failures)
    assert all(3 not in batch.places for batch in batches)
    assert all(len(batch.frames) == 4 for batch in batches)

    loader = build_val_loader(ValDataset(records, CLIPS, seed=7), range(5), 2, Workers(2))
    for _ in range(2):  # workers persist
        found = kept(loader)
        assert [batch.places.tolist() for batch in found] == [[0, 1], [2], [4]]
        assert [path for batch in found for path, _ in batch.failures] == [bad]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.dist)])
def test_error_of_a_worker_arrives_as_it_was(workers: int, records) -> None:
    with pytest.raises(DecodeError, match="check the list") as caught:
        train_batches([records[3]], workers)
    assert caught.value.path == records[3].path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.dist)])
def test_loading_leaves_the_global_random_numbers_alone(workers: int, records) -> None:
    before = torch.get_rng_state()
    train_batches(records, workers)
    list(build_val_loader(ValDataset(records, CLIPS, seed=7), range(2), 2, Workers(workers)))
    list(views_loader(records[:1], workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_of_failures_alone_is_empty(records) -> None:
    [batch] = build_val_loader(ValDataset([records[3]], CLIPS, seed=7), [0], 2, Workers(0))
    assert len(batch.frames) == len(batch.labels) == 0
    assert len(batch.failures) == 1


def views_loader(records, workers: int, **changes):
    options = {
        "num_frames": 4,
        "frame_stride": 2,
        "num_clips": 2,
        "num_crops": 1,
        "protocol": "paper",
        "short_side": 32,
        "crop_size": 32,
        "open_video": VideoOpener("pyav"),
    }
    dataset = TestDataset(records, **{**options, **changes})
    return build_test_loader(dataset, range(len(records)), Workers(workers))


@pytest.mark.dist
def test_views_come_in_order_from_any_number_of_workers(records) -> None:
    alone, parallel = (kept(views_loader(records, workers)) for workers in (0, 2))
    assert [video.place for video in parallel] == [0, 1, 2, 3, 4]
    assert [video.reason is None for video in parallel] == [True, True, True, False, True]
    for ours, theirs in zip(parallel, alone, strict=True):
        assert ours.reason == theirs.reason
        assert theirs.frames is None or torch.equal(ours.on(CPU).stack(), theirs.on(CPU).stack())


@pytest.mark.dist
def test_no_worker_for_a_rank_without_videos(records) -> None:
    assert list(views_loader([], 2)) == []


@pytest.mark.dist
def test_iteration_goes_on_after_a_worker_is_killed(records) -> None:
    others = set(multiprocessing.active_children())
    expected = [batch.places.tolist() for batch in train_batches(records, 0, steps=(0, 20))]
    batches = TrainBatches(
        num_videos=5, clips_per_gpu=4, rank=0, world_size=1, seed=7, first_step=0, last_step=20
    )
    iterator = iter(build_train_loader(TrainDataset(records, CLIPS, seed=7), batches, Workers(2)))
    found = [next(iterator).places.tolist()]
    victim, _ = set(multiprocessing.active_children()) - others
    # It may hold whatever a worker can hold.
    os.kill(victim.pid, signal.SIGKILL)
    rest = list(iterator)
    lost = {path for batch in rest for path, reason in batch.failures if "SIGKILL" in reason}
    assert len(lost) <= 1
    if not lost:
        assert found + [batch.places.tolist() for batch in rest] == expected
    assert len(rest) == 19


PARENT = """
import multiprocessing, sys, time
from videogn.data.list_checks import VideoRecord
from videogn.data.clips import RandomClips
from videogn.data.dataset import TrainDataset
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import VideoOpener
from videogn.data.workers import Workers

def main():
    clips = RandomClips(num_frames=4, frame_stride=1, short_side_min=32, short_side_max=32,
                        crop_size=32, flip_probability=0.0, open_video=VideoOpener("pyav"))
    batches = TrainBatches(num_videos=1, clips_per_gpu=1, rank=0, world_size=1, seed=0,
                           first_step=0, last_step=100)
    records = [VideoRecord(sys.argv[1], 0, "a")]
    iterator = iter(build_train_loader(TrainDataset(records, clips, 0), batches, Workers(2)))
    next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for_line(file: Path, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while not file.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"nothing was said within {seconds:g} seconds"
        time.sleep(0.1)
    return file.read_text()


@pytest.mark.dist
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(make_video, tmp_path: Path) -> None:
    with forked(PARENT, tmp_path, make_video()) as parent:
        workers = [int(pid) for pid in wait_for_line(parent.stdout, 60.0).split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        # It alone, not its session.
        os.kill(parent.pid, signal.SIGKILL)
        assert parent.ended(10) == -signal.SIGKILL
        deadline = time.monotonic() + 15
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, workers))


def claim_samples(path: Path, count: int) -> None:
    """Let the index tables of an mp4 claim ``count`` samples of one byte, in as many bytes."""
    data = bytearray(path.read_bytes())
    for box, words in {
        b"stsz": (1, count),
        b"stts": (1, count, 1),
        b"stsc": (1, 1, count, 1),
    }.items():
        start = data.index(box) + 8  # the name, version and flags
        struct.pack_into(f">{len(words)}I", data, start, *words)
    path.write_bytes(data)


@pytest.mark.dist
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_index_bomb_is_one_failed_video(make_video) -> None:
    bomb, sound = make_video("bomb.mp4"), make_video("sound.mp4")
    claim_samples(bomb, 85_000_000)
    records = [VideoRecord(str(path), 0, path.name) for path in (bomb, sound)]
    others = set(multiprocessing.active_children())
    videos = iter(views_loader(records, 1))
    reasons = "claims 85000000 frames in ", "needs more memory than a worker may use"
    assert next(videos).reason.startswith(reasons)
    [worker] = set(multiprocessing.active_children()) - others
    status = Path(f"/proc/{worker.pid}/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 2**20  # KiB; without a limit it is above 2 GiB
    assert next(videos).frames is not None


@pytest.mark.dist
def test_sound_footage_fits_in_the_memory_of_a_worker(footage: Path) -> None:
    names = ["hugging_1080p_gap.mp4", "people_long_139s.mp4", "flipping_pancake.mkv"]
    records = [VideoRecord(str(footage / "clips" / name), 0, name) for name in names]
    videos = kept(views_loader(records, 1, num_frames=32, num_clips=10, short_side=256))
    assert [video.reason for video in videos] == [None, None, None]
    assert videos[0].on(CPU).stack().shape == (10, 3, 32, 256, 455)


@pytest.mark.dist
@pytest.mark.slow
def test_ten_clips_of_a_long_1080p_video_fit_in_the_memory_of_a_worker(make_video) -> None:
    # 300 frames are 1.9 GB of RGB: more than a worker may use at once.
    path = make_video(num_frames=300, size=(1080, 1920), preset="ultrafast", crf="45")
    [video] = views_loader(
        [VideoRecord(str(path), 0, "a")], 1, num_frames=32, num_clips=10, short_side=256
    )
    assert video.reason is None
    assert np.prod(video.on(CPU).stack().shape) == 10 * 3 * 32 * 256 * 455


def test_a_driver_that_locks_no_memory_is_told_of(records, monkeypatch, caplog) -> None:
    def refuse(ring: Ring) -> None:
        raise RuntimeError("operation not supported")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Ring, "pin", refuse)
    dataset = TrainDataset(records, CLIPS, seed=7)
    Loader(dataset, [[(0, 0)]], 1, collate_clips, Workers(1))
    assert "not locked for the GPU: operation not supported" in caplog.text
