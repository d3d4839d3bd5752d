import resource
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from videogn.data.clips import CenterClips, RandomClips
from videogn.data.dataset import MAX_TRIES, TestDataset, TrainDataset, ValDataset, clip_of
from videogn.data.decode import PyAVReader
from videogn.data.list_checks import VideoRecord
from videogn.data.opening import READERS, VideoOpener
from videogn.errors import DecodeError

CPU = torch.device("cpu")


def random_clips(**changes) -> RandomClips:
    options = {
        "num_frames": 4,
        "frame_stride": 2,
        "short_side_min": 64,
        "short_side_max": 80,
        "crop_size": 56,
        "flip_probability": 0.5,
        "open_video": VideoOpener("pyav"),
    }
    return RandomClips(**{**options, **changes})


def videos_of(records: list[VideoRecord], **changes) -> TestDataset:
    options = {
        "num_frames": 4,
        "frame_stride": 2,
        "num_clips": 3,
        "num_crops": 1,
        "protocol": "paper",
        "short_side": 64,
        "crop_size": 48,
        "open_video": VideoOpener("pyav"),
    }
    return TestDataset(records, **{**options, **changes})


@pytest.fixture
def records(make_video) -> list[VideoRecord]:
    """Six videos of 20, 23, ... frames, of which those at 1 and 4 cannot be decoded."""
    paths = [make_video(f"{i}.mp4", 20 + 3 * i) for i in range(6)]
    paths[1].write_text("no video")
    paths[4].unlink()
    return [VideoRecord(str(path), 10 + i, path.name) for i, path in enumerate(paths)]


def test_sample_shows_frames_at_the_stride(records, make_video) -> None:
    # No scaling, cropping or mirroring, so the numbers can be read.
    clips = random_clips(short_side_max=64, crop_size=64, flip_probability=0.0)
    train = TrainDataset(records, clips, seed=3)
    starts = set()
    for epoch in range(12):
        sample = train[epoch, 0]
        assert (sample.label, sample.place, sample.failures) == (10, 0, ())
        assert sample.clip.shape == (3, 4, 64, 64)
        whole = PyAVReader(records[0].path).frames(range(20))
        found = [
            (start, left)
            for start in range(20 - 6)
            for left in range(96 - 64 + 1)
            if np.array_equal(
                sample.clip.permute(1, 2, 3, 0).numpy(),
                whole[start : start + 7 : 2, :, left : left + 64],
            )
        ]
        assert len(found) == 1
        starts.add(found[0])
    assert len({start for start, _ in starts}) > 4
    assert len({left for _, left in starts}) > 6


def test_flip_is_of_the_whole_clip(records) -> None:
    options = {"short_side_max": 64, "crop_size": 64}
    plain = TrainDataset(records, random_clips(flip_probability=0.0, **options), 3)[5, 0].clip
    flipped = TrainDataset(records, random_clips(flip_probability=1.0, **options), 3)[5, 0].clip
    assert torch.equal(flipped, plain.flip(3))


def test_sample_is_a_function_of_seed_epoch_and_index(records) -> None:
    first, second = (TrainDataset(records, random_clips(), seed=3) for _ in range(2))
    forwards = {key: first[key] for key in [(0, 0), (0, 2), (1, 0)]}
    for key in reversed(forwards):
        assert torch.equal(second[key].clip, forwards[key].clip)
    assert not torch.equal(forwards[0, 0].clip, forwards[1, 0].clip)
    other_seed = TrainDataset(records, random_clips(), seed=4)
    assert not torch.equal(other_seed[0, 0].clip, forwards[0, 0].clip)


def test_bad_video_is_replaced_with_the_label_of_its_replacement(records) -> None:
    train = TrainDataset(records, random_clips(), seed=3)
    bad = {records[1].path: "Invalid data", records[4].path: "no such file"}
    replacements = set()
    for epoch in range(20):
        sample = train[epoch, 1]
        assert sample.place not in (1, 4)
        assert sample.label == records[sample.place].label
        assert sample.failures[0][0] == records[1].path
        for path, reason in sample.failures:
            assert bad[path] in reason
        again = train[epoch, 1]
        assert torch.equal(again.clip, sample.clip)
        assert again[2:] == sample[2:]
        replacements.add(sample.place)
    assert replacements == {0, 2, 3, 5}


def test_list_of_bad_videos_ends_in_an_error(records) -> None:
    train = TrainDataset([records[4]] * 3, random_clips(), seed=3)
    with pytest.raises(DecodeError, match=rf"no such file.*{MAX_TRIES - 1} videos.*check the list"):
        train[0, 0]


def test_validation_clips_never_change_and_are_not_replaced(records) -> None:
    val = ValDataset(records, random_clips(), seed=3)
    sample = val[0]
    assert (sample.label, sample.place, sample.failures) == (10, 0, ())
    assert torch.equal(ValDataset(records, random_clips(), seed=3)[0].clip, sample.clip)
    failed = val[4]
    assert failed.frames is None
    assert failed[2:] == (14, 4, ((records[4].path, "no such file"),))


def test_no_two_purposes_share_a_stream_of_random_numbers(records, monkeypatch) -> None:
    states = []
    clips = random_clips()
    monkeypatch.setattr(
        clips,
        "read",
        lambda path, rng, memory: (
            states.append(rng.bit_generator.state["state"]["state"]) or (None, None)
        ),
    )
    train, val = TrainDataset(records, clips, seed=3), ValDataset(records, clips, seed=3)
    for index in range(3):
        val[index]
        for epoch in range(3):
            train[epoch, index]
    assert len(set(states)) == len(states) == 12


def views_by_hand(path: str, starts: list[int], short_side: int) -> torch.Tensor:
    """(J, C, T, H, W) in floats, decoded, scaled and coloured (BT.601) apart from the data set."""
    with av.open(path) as container:
        whole = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    frames = np.stack([whole[start + 2 * k] for start in starts for k in range(4)])
    size = (short_side, short_side * 96 // 64)
    planes = []
    for first, rows, columns in ((0, 64, 96), (64, 32, 48), (80, 32, 48)):
        lines = frames[:, first : first + rows * columns // 96].reshape(-1, 1, rows, columns)
        part = size if first == 0 else (size[0] // 2, size[1] // 2)
        scaled = F.interpolate(torch.from_numpy(lines).float(), size=part, mode="bilinear")
        planes.append(F.interpolate(scaled, size=size, mode="nearest"))
    luma, blue, red = 255 / 219 * (planes[0] - 16), planes[1] - 128, planes[2] - 128
    colours = [1.596 * red, -0.392 * blue - 0.813 * red, 2.017 * blue]
    images = torch.cat([luma + part for part in colours], 1).clamp(0, 255)
    return images.unflatten(0, (len(starts), 4)).transpose(1, 2)


def test_views_are_the_whole_frames_of_evenly_spaced_clips(records) -> None:
    video = videos_of(records, short_side=40)[2]
    assert (video.place, video.reason) == (2, None)
    assert video.on(CPU).stack().dtype == torch.uint8
    # 26 frames, span 7: 19 places to start from, the middle at 9.5.
    expected = views_by_hand(records[2].path, [0, 10, 19], 40)
    assert video.on(CPU).stack().shape == expected.shape == (3, 3, 4, 40, 60)
    difference = (video.on(CPU).stack().float() - expected).abs()
    # Three levels by the converter's fixed point, one by rounding the scaled planes.
    assert difference.max() < 4.2
    assert difference.mean() < 1.7


def test_three_crops_come_clip_by_clip(records) -> None:
    whole = videos_of(records)[0].on(CPU).stack()
    crops = videos_of(records, num_crops=3)[0].on(CPU).stack()
    assert crops.shape == (9, 3, 4, 64, 64)
    for clip in range(3):
        for number, left in enumerate((0, 16, 32)):
            assert torch.equal(crops[3 * clip + number], whole[clip, ..., left : left + 64])


def test_center_protocol_takes_the_middle(records) -> None:
    whole = videos_of(records)[0].on(CPU).stack()
    views = videos_of(records, protocol="center")[0].on(CPU).stack()
    assert torch.equal(views, whole[..., 8:56, 24:72])


def test_short_video_loops(make_video) -> None:
    path = make_video(num_frames=3)
    views = videos_of([VideoRecord(str(path), 0, "a")], num_clips=2)[0].on(CPU).stack()
    frames = views.permute(0, 2, 3, 4, 1).numpy()
    assert [make_video.numbers_in(clip) for clip in frames] == [[0, 2, 1, 0]] * 2


def test_failing_test_video_has_a_reason(records) -> None:
    videos = videos_of(records)
    assert (videos[4].place, videos[4].frames, videos[4].reason) == (4, None, "no such file")
    with pytest.raises(ValueError, match="no such file"):
        videos[4].on(CPU)
    assert "Invalid data" in videos[1].reason


def test_video_is_opened_once_for_all_clips(records, monkeypatch) -> None:
    opened = []
    monkeypatch.setitem(READERS, "pyav", lambda path: opened.append(path) or PyAVReader(path))
    videos_of(records)[0]
    assert opened == [records[0].path]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_is_a_reason(error, records, monkeypatch) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setitem(READERS, "pyav", fail)
    assert "memory" in videos_of(records)[0].reason
    assert "memory" in ValDataset(records, random_clips(), 0)[0].failures[0][1]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited_while_a_video_is_read_without_workers(records, monkeypatch) -> None:
    seen = []

    def look(path: str) -> PyAVReader:
        seen.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        return PyAVReader(path)

    monkeypatch.setitem(READERS, "pyav", look)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert videos_of(records)[0].reason is None
    TrainDataset(records, random_clips(), 0)[0, 0]
    assert all(limit != resource.RLIM_INFINITY for limit in seen)
    assert len(seen) == 2
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_programming_errors_are_not_swallowed(records, monkeypatch) -> None:
    def fail(path: str) -> None:
        raise TypeError("a bug")

    monkeypatch.setitem(READERS, "pyav", fail)
    for items, key in (
        (videos_of(records), 0),
        (ValDataset(records, random_clips(), 0), 0),
        (TrainDataset(records, random_clips(), 0), (0, 0)),
    ):
        with pytest.raises(TypeError, match="a bug"):
            items[key]


def test_rotated_footage_is_upright(footage: Path) -> None:
    record = VideoRecord(str(footage / "clips" / "cake_rotation_tag.mp4"), 0, "cake")
    views = videos_of([record], num_clips=1, short_side=80)[0].on(CPU).stack()
    assert views.shape == (1, 3, 4, 106, 80)


def test_clips_at_another_rate_show_the_frames_of_their_instants(make_video) -> None:
    path = str(make_video(num_frames=50, size=(64, 64)))  # 25 frames per second
    for fps, step in ((12.5, 4), (50.0, 1)):
        clips = random_clips(
            short_side_max=64, crop_size=64, flip_probability=0.0, num_frames=3, fps=fps
        )
        starts = set()
        for seed in range(20):
            clip = clip_of(*clips.read(path, np.random.default_rng(seed)))
            numbers = make_video.numbers_in(clip.permute(1, 2, 3, 0).numpy())
            assert np.diff(numbers).tolist() == [step] * 2
            starts.add(numbers[0])
        assert len(starts) > 5
    views = videos_of([VideoRecord(path, 0, "a")], fps=12.5, num_clips=2)[0]
    numbers = np.array(make_video.numbers_in(views.frames.rgb().permute(1, 2, 3, 0).numpy()))
    # 25 instants of 0.08 s: the first clip at 0, the last ends with the 25th.
    assert numbers[views.shown].tolist() == [[0, 4, 8, 12], [36, 40, 44, 48]]


def test_a_rate_needs_times(make_video, monkeypatch) -> None:
    path = str(make_video())

    def refuse(video: PyAVReader) -> np.ndarray:
        raise DecodeError(path, "no times")

    monkeypatch.setattr(PyAVReader, "times", refuse)
    failed = videos_of([VideoRecord(path, 0, "a")], fps=30.0)[0]
    assert failed.reason == "no times"
    assert videos_of([VideoRecord(path, 0, "a")])[0].reason is None


def center_clips(**changes) -> CenterClips:
    options = {
        "num_frames": 4,
        "frame_stride": 2,
        "short_side": 64,
        "crop_size": 48,
        "open_video": VideoOpener("pyav"),
    }
    return CenterClips(**{**options, **changes})


def val_clip(path: Path, **changes) -> np.ndarray:
    """(T, H, W, C) of the validation clip."""
    val = ValDataset([VideoRecord(str(path), 0, path.name)], center_clips(**changes), seed=3)
    sample = val[0]
    assert sample.failures == ()
    return sample.clip.permute(1, 2, 3, 0).numpy()


def test_center_clip_is_the_middle_of_the_middle_frames(make_video) -> None:
    path = make_video(num_frames=21)
    # Four frames at stride 2 span 7 of 21: 7 before, 7 after; 8 rows and 24 columns on each side.
    whole = PyAVReader(str(path)).frames(range(21))
    assert make_video.numbers_in(whole[[7, 9, 11, 13]]) == [7, 9, 11, 13]
    expected = whole[[7, 9, 11, 13], 8:56, 24:72]
    assert np.array_equal(val_clip(path), expected)


def test_center_clip_is_taken_at_the_rate_that_is_asked_for(make_video) -> None:
    path = make_video(num_frames=22)
    seconds = PyAVReader(str(path)).times()
    fps = 0.5 / float(seconds[1] - seconds[0])
    found = val_clip(path, fps=fps, frame_stride=1, num_frames=5)
    # At half the rate every second frame is there, 11 in all: 3 before the clip and 3 after it.
    whole = PyAVReader(str(path)).frames([6, 8, 10, 12, 14])
    assert np.array_equal(found, whole[:, 8:56, 24:72])


def test_center_clip_is_scaled_to_the_short_side(make_video) -> None:
    path = make_video(num_frames=21, size=(96, 64))
    whole = PyAVReader(str(path)).frames([7, 9, 11, 13])
    # Half as large. The scaler's filter is not the mean of four pixels, and noise shows that: the
    # place it comes from must fit far better than any other.
    halved = whole.reshape(4, 48, 2, 32, 2, 3).astype(np.float64).mean((2, 4))
    found = val_clip(path, short_side=32, crop_size=24)
    errors = {
        (top, left): np.abs(found - halved[:, top : top + 24, left : left + 24]).mean()
        for top in range(25)
        for left in range(9)
    }
    best, second = sorted(errors, key=errors.__getitem__)[:2]
    assert best == (12, 4)
    assert 1.5 * errors[best] < errors[second]


def test_center_clip_of_a_short_video_loops(make_video) -> None:
    path = make_video(num_frames=3)
    whole = PyAVReader(str(path)).frames(range(3))
    assert np.array_equal(val_clip(path), whole[[0, 2, 1, 0], 8:56, 24:72])


def test_center_clip_left_to_the_device_is_the_same(make_video) -> None:
    path = make_video(num_frames=21, g="6", bf="2")
    difference = val_clip(path).astype(int) - val_clip(path, planar_room=5.0).astype(int)
    assert np.abs(difference).max() <= 4
