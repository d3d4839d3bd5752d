from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.clips import RandomClips
from videogn.data.dataset import TestDataset, TrainDataset
from videogn.data.decode import PyAVReader, converted
from videogn.data.frames import MATRICES, RGB, Frames, Wanted, write_frames
from videogn.data.list_checks import VideoRecord
from videogn.data.opening import VideoOpener
from videogn.data.rgb import CHROMA_STEPS, Box, RgbConverter, Stored

CPU = torch.device("cpu")


class Made:
    """A reader of frames that exist."""

    def __init__(self, frames: list[av.VideoFrame], quarters: int = 0) -> None:
        self._made = frames
        self.stored = Stored(frames[0].height, frames[0].width, quarters)
        self.height, self.width = self.stored.upright
        self.num_frames = len(frames)
        self.decodes = 0

    def decoded(self, indices):
        self.decodes += 1
        yield from (self._made[index] for index in indices)

    def images(self, indices, box=None):
        return converted("made", self.decoded(indices), RgbConverter(self.stored, box))


def smooth_frame(height: int, width: int, pixels: str, seed: int = 0) -> av.VideoFrame:
    """Planes of slow waves within the legal range, so that scaling does not magnify roundings."""
    frame = av.VideoFrame(width, height, pixels)
    rng = np.random.default_rng(seed)
    for number, plane in enumerate(frame.planes):
        rows, columns = np.ogrid[: plane.height, : plane.line_size]
        wave = np.sin(rows / rng.uniform(5, 9) + columns / rng.uniform(5, 9))
        values = 120 + wave * (25 if number else 70)
        plane.update(values.astype(np.uint8).tobytes())
    return frame


def both_ways(video, wanted: Wanted, indices=(0,)) -> tuple[Frames, torch.Tensor, torch.Tensor]:
    """Frames as they travel, those finished of them, and those finished where they are read."""
    memory = np.zeros(2**22, np.uint8)
    form = write_frames(memory, video, "made", list(indices), wanted, planar=True)
    other = np.zeros(2**22, np.uint8)
    there = write_frames(other, video, "made", list(indices), wanted, planar=False)
    assert there.pixels == RGB
    travelling = Frames.in_memory(form, memory)
    return travelling, travelling.rgb(), Frames.in_memory(there, other).rgb()


@given(st.data())
def test_finished_on_the_device_is_what_the_workers_would_have_made(data) -> None:
    height, width = (2 * data.draw(st.integers(12, 40)) for _ in range(2))
    frame = smooth_frame(height, width, data.draw(st.sampled_from(sorted(CHROMA_STEPS))))
    frame.color_range = data.draw(st.sampled_from([0, 1, 2]))
    frame.colorspace = data.draw(st.sampled_from(sorted(MATRICES)))
    video = Made([frame], data.draw(st.integers(0, 3)))
    sides = video.height, video.width
    rows, columns = (2 * data.draw(st.integers(4, side // 2)) for side in sides)
    box = Box(
        2 * data.draw(st.integers(0, (video.height - rows) // 2)),
        2 * data.draw(st.integers(0, (video.width - columns) // 2)),
        rows,
        columns,
    )
    size = data.draw(st.sampled_from([(rows, columns), (24, 24), (31, 17)]))
    box = data.draw(st.sampled_from([box, None]))
    wanted = Wanted(box, size, mirror=data.draw(st.booleans()))
    frames, ours, theirs = both_ways(video, wanted)
    assert frames.form.pixels == frame.format.name
    assert ours.shape == theirs.shape == (3, 1, *size)
    assert ours.dtype == torch.uint8
    # The scaler's fixed-point colours are off by up to three levels, scaling's roundings add one.
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 4
    assert difference.float().mean() < 1.6


def test_box_between_samples_of_colour_is_finished() -> None:
    video = Made([smooth_frame(40, 60, "yuv420p")])
    frames, ours, theirs = both_ways(video, Wanted(Box(3, 4, 20, 20), (24, 24)))
    assert frames.form.pixels == RGB
    assert torch.equal(ours, theirs)


def test_kept_part_is_cut_after_scaling() -> None:
    video = Made([smooth_frame(40, 60, "yuv420p")])
    _, ours, theirs = both_ways(video, Wanted(None, (32, 48), Box(4, 9, 20, 22), mirror=True))
    assert ours.shape == theirs.shape == (3, 1, 20, 22)
    assert (ours.int() - theirs.int()).abs().max() <= 4


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray", "rgb24", "nv12"])
def test_other_formats_are_finished_in_one_decode(pixels: str) -> None:
    frame = av.VideoFrame(32, 24, pixels)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    video = Made([frame])
    memory = np.zeros(10000, np.uint8)
    wanted = Wanted(Box(2, 2, 16, 16), (20, 20))
    assert write_frames(memory, video, "made", [0], wanted, planar=True).pixels == RGB
    assert video.decodes == 1


def test_frames_too_large_for_their_memory_are_finished() -> None:
    video = Made([smooth_frame(64, 64, "yuv420p")])
    wanted = Wanted(None, (16, 16))
    for room, pixels in ((64 * 64 * 3 // 2, "yuv420p"), (64 * 64 * 3 // 2 - 1, RGB)):
        memory = np.zeros(room, np.uint8)
        assert write_frames(memory, video, "made", [0], wanted, planar=True).pixels == pixels
    assert video.decodes == 2


def test_video_that_changes_its_form_is_finished() -> None:
    frames = [smooth_frame(40, 40, "yuv420p"), smooth_frame(40, 40, "yuv420p", 1)]
    frames[1].colorspace = 1
    video = Made(frames)
    found, ours, theirs = both_ways(video, Wanted(None, (32, 32)), (0, 1))
    assert found.form.pixels == RGB
    assert torch.equal(ours, theirs)


def test_many_frames_are_finished_in_parts(monkeypatch) -> None:
    video = Made([smooth_frame(24, 24, "yuv420p", seed) for seed in range(7)])
    frames, whole, _ = both_ways(video, Wanted(None, (30, 30)), range(7))
    monkeypatch.setattr("videogn.data.frames.CHUNK_PIXELS", 2 * 30 * 30)
    assert torch.equal(frames.rgb(), whole)


@pytest.mark.parametrize("name", ["yoga.mp4", "cake_rotation_tag.mp4", "abseiling_vp9.webm"])
def test_real_clips_are_the_same_either_way(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    options = {
        "num_frames": 8,
        "frame_stride": 2,
        "short_side_min": 256,
        "short_side_max": 320,
        "crop_size": 224,
        "flip_probability": 0.5,
        "open_video": VideoOpener("pyav"),
    }
    records = [VideoRecord(path, 0, name)]
    finished = TrainDataset(records, RandomClips(**options), 0)
    planar = TrainDataset(records, RandomClips(**options, planar_room=5.0), 0)
    for epoch in range(3):
        here, there = finished[epoch, 0], planar[epoch, 0]
        assert there.frames.form.pixels in CHROMA_STEPS
        difference = (here.clip.int() - there.clip.int()).abs().float()
        assert difference.mean() < 1.6


def test_test_views_are_the_same_either_way(make_video) -> None:
    records = [VideoRecord(str(make_video(size=(128, 160))), 0, "a")]
    for protocol in ("paper", "center"):
        options = {
            "num_frames": 4,
            "frame_stride": 2,
            "num_clips": 3,
            "num_crops": 1,
            "protocol": protocol,
            "short_side": 112,
            "crop_size": 96,
            "open_video": PyAVReader,
        }
        here, there = (TestDataset(records, **options, planar=way)[0] for way in (False, True))
        memory = np.zeros(2**23, np.uint8)
        room = TestDataset(records, **options, planar=True).read(0, memory)
        assert room.frames.form.pixels == "yuv420p"
        assert here.on(CPU).stack().shape == room.on(CPU).stack().shape
        difference = (here.on(CPU).stack().int() - room.on(CPU).stack().int()).abs().float()
        assert difference.mean() < 1.6
        # Without room for whole frames they are finished.
        assert there.frames.form.pixels == (RGB if protocol == "center" else "yuv420p")
