"""Orders of epochs over shards."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches
from videogn.data.shard_order import buffered_order, shard_order, shards_of
from videogn.files import member_path

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def shards_with(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def records_of(sizes: list[int]) -> list[VideoRecord]:
    return [
        VideoRecord(member_path(f"/d/s{shard}.tar", 512 + 1024 * i, 7, f"{i}.mp4"), 0, f"{i}")
        for shard, size in enumerate(sizes)
        for i in range(size)
    ]


@given(SIZES, st.integers(1, 300), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_no_sample_is_lost_or_repeated(
    sizes: list[int], buffer: int, seed: int, epoch: int
) -> None:
    order = buffered_order(shards_with(sizes), buffer, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    again = buffered_order(shards_with(sizes), buffer, seed, epoch)
    assert order.tolist() == again.tolist()


@given(SIZES, st.integers(1, 40), st.integers(0, 1000))
def test_a_sample_comes_out_of_a_window_of_the_buffer(
    sizes: list[int], buffer: int, epoch: int
) -> None:
    shards = shards_with(sizes)
    order = buffered_order(shards, buffer, 3, epoch)
    # A buffer of one gives the stream itself: shards permuted, each in its own order.
    stream = buffered_order(shards, 1, 3, epoch)
    heads = {int(shard[0]) for shard in shards}
    for before, after in pairwise(stream):
        assert after == before + 1 or int(after) in heads
    # What the buffer of K does: place p can only show samples that entered by then.
    entered = {int(sample): place for place, sample in enumerate(stream)}
    shards_started = [entered[int(sample)] for sample in order]
    assert all(place <= p + buffer - 1 for p, place in enumerate(shards_started))


def test_epochs_and_seeds_differ_and_shards_are_permuted() -> None:
    shards = shards_with([50] * 20)
    orders = {
        tuple(buffered_order(shards, 10, seed, epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    firsts = {buffered_order(shards, 10, 0, epoch)[0] // 50 for epoch in range(20)}
    assert len(firsts) > 5


def test_a_buffer_of_the_whole_list_mixes_all_of_it() -> None:
    shards = shards_with([100] * 10)
    places = np.mean([buffered_order(shards, 1000, 0, epoch) for epoch in range(200)], axis=0)
    # Uniform indices have mean 499.5 and deviation 289: of 200 epochs about 20.
    assert np.all(np.abs(places - 499.5) < 120)


def test_shards_are_found_in_records_in_any_order() -> None:
    records = records_of([3, 1, 4])
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    shards = shards_of(shuffled)
    assert shards is not None
    found = [[shuffled[i].path for i in shard] for shard in shards]
    expected = [r.path for r in records]
    assert found == [expected[:3], expected[3:4], expected[4:]]


def test_other_lists_have_no_shards() -> None:
    records = records_of([2])
    assert shards_of([*records, VideoRecord("/d/x.mp4", 0, "x.mp4")]) is None
    assert shards_of([]) is None
    assert shard_order([VideoRecord("/d/x.mp4", 0, "x.mp4")], 10) is None


@given(st.integers(1, 4), st.integers(1, 6), SIZES)
def test_ranks_together_take_the_stream_once(
    world_size: int, clips_per_gpu: int, sizes: list[int]
) -> None:
    num_videos = sum(sizes)
    order = shard_order(records_of(sizes), 5)
    assert order is not None
    steps = 2 * num_videos
    taken: list[list[list[tuple[int, int]]]] = [
        list(
            TrainBatches(
                num_videos=num_videos,
                clips_per_gpu=clips_per_gpu,
                rank=rank,
                world_size=world_size,
                seed=7,
                first_step=0,
                last_step=steps,
                order=order,
            )
        )
        for rank in range(world_size)
    ]
    stream = [
        key for step in range(steps) for rank in range(world_size) for key in taken[rank][step]
    ]
    epochs = len(stream) // num_videos
    expected = [(e, int(i)) for e in range(epochs) for i in order(7, e)]
    assert stream[: len(expected)] == expected
