import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.engine.resuming import share_batch
from videogn.errors import RunError


@pytest.mark.parametrize(
    ("world_size", "expected"),
    # 8 clips on each of 8 GPUs; on fewer accumulation makes up for them, and BN's batch stays.
    [(8, (8, 1)), (4, (8, 2)), (1, (8, 8)), (16, (4, 1)), (64, (1, 1))],
)
def test_64_clips_on_other_numbers_of_gpus(world_size: int, expected: tuple[int, int]) -> None:
    found = share_batch(64, world_size=world_size, clips_per_gpu=8, accumulation=1)
    assert found == expected


@given(
    global_batch=st.integers(1, 500),
    world_size=st.integers(1, 64),
    clips=st.integers(1, 32),
    accumulation=st.integers(1, 8),
)
def test_no_clip_is_lost_and_bns_batch_is_the_largest_there_can_be(
    global_batch: int, world_size: int, clips: int, accumulation: int
) -> None:
    asked = {"world_size": world_size, "clips_per_gpu": clips, "accumulation": accumulation}
    if global_batch % world_size:
        with pytest.raises(RunError, match="start it on"):
            share_batch(global_batch, **asked)
        return
    found, times = share_batch(global_batch, **asked)
    assert found * times * world_size == global_batch
    if clips * accumulation * world_size == global_batch:
        assert (found, times) == (clips, accumulation)
    else:
        of_each = global_batch // world_size
        assert found <= clips
        assert not any(of_each % more == 0 for more in range(found + 1, clips + 1))


def test_numbers_of_gpus_that_can_are_named() -> None:
    with pytest.raises(RunError, match="start it on 1, 2, 3 or 6 of them"):
        share_batch(6, world_size=4, clips_per_gpu=2, accumulation=1)
    with pytest.raises(RunError, match="start it on 1 GPU, not 2"):
        share_batch(1, world_size=2, clips_per_gpu=1, accumulation=1)
