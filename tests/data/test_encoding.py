from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.decode import PyAVReader
from videogn.data.encoding import Settings, check_times, encode, prepared_size
from videogn.data.forms import FULL, Coding
from videogn.data.forms import encode as encode_form
from videogn.errors import DecodeError

SETTINGS = Settings(short_side=64, gop=8, crf=12, preset="ultrafast", tune="fastdecode")


def plain_times(path: Path) -> list[Fraction]:
    """Times of the frames after the first, by the shortest PyAV program there is."""
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        times = [frame.pts * Fraction(frame.time_base) for frame in frames]
    return [time - times[0] for time in times]


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 256, (256, 342)),
        ((640, 480), 256, (342, 256)),
        ((240, 320), 256, (240, 320)),
        ((241, 321), 256, (240, 320)),
        ((257, 257), 256, (256, 256)),
        ((1, 9), 256, (2, 8)),
    ],
)
def test_sizes_are_even_and_never_larger(size, short_side, expected) -> None:
    assert prepared_size(*size, short_side) == expected


@pytest.mark.parametrize(
    "name",
    [
        "yoga_vfr.mp4",
        "cake_rotation_tag.mp4",
        "rotate90_3frames.mov",
        "weightlifting_19fps.mp4",
        "sign_book.mkv",
        "nasa_two_video_streams.mp4",
        "stream_vp8_hidden.webm",
        "basketball_ucf.avi",
    ],
)
def test_footage_keeps_frames_times_and_colours(name: str, footage: Path, tmp_path: Path) -> None:
    source = footage / "clips" / name
    target = tmp_path / "a.mp4"
    times = encode(str(source), target, SETTINGS)
    check_times(str(target), times)
    assert [time - times[0] for time in times] == plain_times(source)
    assert plain_times(target) == plain_times(source)
    with av.open(str(target)) as container:
        [stream] = container.streams
        first = next(container.decode(stream))
        assert (stream.codec.name, first.format.name, first.rotation) == ("h264", "yuv420p", 0)
        assert first.color_range != 2
        assert min(first.height, first.width) == 64
    with av.open(str(target)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    # Packets stand in decoding order, and a closed group begins with its key frame in both.
    assert [place for place, key in enumerate(keys) if key] == list(range(0, len(keys), 8))


@pytest.mark.parametrize("name", ["sign_book.mkv", "rotate90_3frames.mov", "basketball_ucf.avi"])
def test_colours_are_the_sources(name: str, footage: Path, tmp_path: Path) -> None:
    source = footage / "clips" / name
    same_size = Settings(short_side=4000, gop=8, crf=8, preset="ultrafast", tune="none")
    encode(str(source), tmp_path / "a.mp4", same_size)
    ours = PyAVReader(str(tmp_path / "a.mp4")).frames([0, 2]).astype(float)
    theirs = PyAVReader(str(source)).frames([0, 2]).astype(float)
    # Full range taken for limited would have a slope of 1.16.
    slope, _ = np.polyfit(theirs.ravel(), ours.ravel(), 1)
    assert abs(slope - 1) < 0.01
    assert np.abs(ours - theirs).mean() < 1.5


def test_odd_sizes_and_other_pixels(tmp_path) -> None:
    source = tmp_path / "odd.mkv"
    pixels = np.full((33, 51, 3), (200, 40, 90), dtype=np.uint8)
    pixels[:, 26:] = (10, 160, 220)
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 51, 33, "bgr0"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    check_times(str(tmp_path / "a.mp4"), encode(str(source), tmp_path / "a.mp4", SETTINGS))
    [image] = PyAVReader(str(tmp_path / "a.mp4")).frames([0]).astype(int)
    assert image.shape == (32, 50, 3)
    for ours, theirs in ((image[:, :20], pixels[0, 0]), (image[:, 30:], pixels[0, 50])):
        assert np.abs(ours - theirs).max() < 6


def test_light_that_ffmpeg_cannot_convert_is_no_hindrance(tmp_path: Path) -> None:
    # Forms tag BT.2020 with a logarithmic transfer function.
    coding = Coding(num_frames=3, size=(96, 128), colours="bt2020", color_range=FULL, frames=still)
    source, target = encode_form(tmp_path / "a.mkv", coding), tmp_path / "b.mp4"
    check_times(str(target), encode(str(source), target, SETTINGS))
    ours, theirs = (PyAVReader(str(path)).frames([1])[0] for path in (target, source))
    assert np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))).max() < 2


def still(_: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), (200, 40, 90), dtype=np.uint8)


def test_frames_keep_their_order(make_video, tmp_path) -> None:
    source = make_video("a.mkv", 40, g="20")
    encode(str(source), tmp_path / "b.mp4", SETTINGS)
    frames = PyAVReader(str(tmp_path / "b.mp4")).frames(range(40))
    assert make_video.numbers_in(frames) == list(range(40))


def test_times_that_fall_are_refused(footage: Path, tmp_path: Path) -> None:
    source = footage / "clips" / "wave_hmdb.avi"
    with pytest.raises(DecodeError, match="do not rise: frame 2"):
        encode(str(source), tmp_path / "b.mp4", SETTINGS)


def test_a_file_of_other_times_is_refused(make_video, tmp_path) -> None:
    source, target = make_video("a.mp4", 10), tmp_path / "b.mp4"
    times = encode(str(source), target, SETTINGS)
    check_times(str(target), times)
    with pytest.raises(DecodeError, match="10 of 9 frames"):
        check_times(str(target), times[:-1])
    with pytest.raises(DecodeError, match="frame 9 came out at"):
        check_times(str(target), [*times[:-1], times[-1] + Fraction(1, 1000)])
