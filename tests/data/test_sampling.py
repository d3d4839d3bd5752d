from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.sampling import (
    clip_span,
    num_resampled,
    random_clip,
    resampled,
    uniform_clips,
)

totals = st.integers(1, 400)
lengths = st.integers(1, 64)
strides = st.integers(1, 8)


@given(totals, lengths, strides, st.integers(0, 2**32))
def test_random_clip_is_a_stride_of_frames_that_fits_or_loops(total, length, stride, seed) -> None:
    indices = random_clip(total, length, stride, np.random.default_rng(seed))
    assert indices.shape == (length,)
    assert indices.dtype == np.int64
    span = 1 + stride * (length - 1)
    start = indices[0]
    assert 0 <= start <= max(0, total - span)
    position = start
    for index in indices:
        assert index == position
        position += stride
        while position >= total:
            position -= total
    if total >= span:
        assert indices[-1] == start + span - 1


def test_random_starts_are_uniform_with_both_ends() -> None:
    rng = np.random.default_rng(0)
    starts = [random_clip(13, 4, 2, rng)[0] for _ in range(7000)]
    counts = np.bincount(starts)
    assert len(counts) == 13 - clip_span(4, 2) + 1 == 7
    # Chi-square with 6 degrees of freedom exceeds 22.5 once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5


@given(totals, lengths, strides, st.integers(1, 12))
def test_uniform_clips_equal_an_exact_decimal_restatement(total, length, stride, clips) -> None:
    found = uniform_clips(total, length, stride, clips)
    room = max(0, total - ((length - 1) * stride + 1))
    for j in range(clips):
        exact = Decimal(j * room) / (clips - 1) if clips > 1 else Decimal(room) / 2
        start = int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))
        expected = [(start + k * stride) % total for k in range(length)]
        assert found[j].tolist() == expected


@pytest.mark.parametrize("total", range(63, 401))
def test_uniform_starts_equal_those_of_mmaction2(total: int) -> None:
    """Its SampleFrames(test_mode): numpy's rounding of the positions j * (N - S) / 9."""
    spread = (total - 63) / 9
    theirs = np.around(np.arange(10) * spread).astype(np.int64)
    ours = uniform_clips(total, 32, 2, 10)[:, 0]
    # Their product of floats may fall just below a half that it should hit.
    halves = (np.arange(10) * (total - 63) * 2) % 18 == 9
    np.testing.assert_array_equal(ours[~halves], theirs[~halves])
    assert np.abs(ours - theirs).max(initial=0) <= 1


def test_the_example_of_300_frames() -> None:
    clips = uniform_clips(300, 32, 2, 10)
    assert clips[:, 0].tolist() == [0, 26, 53, 79, 105, 132, 158, 184, 211, 237]
    assert clips[[0, 8, 9], -1].tolist() == [62, 273, 299]


def test_short_video_loops_from_its_beginning() -> None:
    np.testing.assert_array_equal(uniform_clips(3, 4, 2, 2), [[0, 2, 1, 0], [0, 2, 1, 0]])


def test_video_without_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        uniform_clips(0, 4, 2, 2)


def all_resampled(seconds: np.ndarray, fps: float) -> list[int]:
    return resampled(seconds, fps, np.arange(num_resampled(seconds, fps))).tolist()


@given(st.integers(1, 500), st.sampled_from([10, 12.5, 24, 25, 30000 / 1001, 30, 60]))
@pytest.mark.parametrize("unit", [1 / 1000, 1 / 90000, 1 / 15360])
def test_a_video_at_its_own_rate_stays_as_it_is(unit, total, fps) -> None:
    seconds = np.round(np.arange(total) / fps / unit) * unit
    assert all_resampled(seconds, fps) == list(range(total))


@pytest.mark.parametrize(
    ("total", "native", "fps", "expected"),
    [
        (10, 10, 5, [0, 2, 4, 6, 8]),
        (5, 5, 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (10, 25, 30, [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]),
        (6, 30, 20, [0, 1, 3, 4]),
        (1, 25, 30, [0]),
        (3, 25, 0.1, [0]),
    ],
)
def test_a_constant_rate_becomes_another(total, native, fps, expected) -> None:
    assert all_resampled(np.arange(total) / native, fps) == expected


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.sampled_from([5.0, 24.0, 29.97, 30.0, 61.3]),
)
def test_the_frame_shown_at_each_instant_of_an_uneven_video(steps, fps) -> None:
    seconds = np.concatenate([[0], np.cumsum(steps)]) / 1000
    found = all_resampled(seconds, fps)
    duration = seconds[-1] + seconds[-1] / len(steps)
    assert len(found) == max(1, round(duration * fps))
    for k, frame in enumerate(found):
        shown = [i for i, time in enumerate(seconds) if time <= k / fps + 1e-3]
        assert frame == shown[-1]


def test_clips_keep_their_shape_at_another_rate() -> None:
    seconds = np.arange(10) / 10
    clips = resampled(seconds, 5, uniform_clips(num_resampled(seconds, 5), 2, 1, 3))
    assert clips.tolist() == [[0, 2], [4, 6], [6, 8]]
    assert clips.dtype == np.int64
