import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.decode import PyAVReader, decode_whole
from videogn.data.list_checks import VideoRecord
from videogn.data.preparing import (
    Done,
    Failed,
    Journal,
    Settings,
    Task,
    output_names,
    prepare,
    prepare_all,
    prepared_size,
)
from videogn.data.processes import Lost, Pool

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
    outcome = prepare(Task(str(source), str(tmp_path), "videos/a.mp4", SETTINGS))
    assert isinstance(outcome, Done), outcome
    target = tmp_path / "videos" / "a.mp4"
    assert plain_times(target) == plain_times(source)
    assert outcome.frames == len(plain_times(source))
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
    prepare(Task(str(source), str(tmp_path), "a.mp4", same_size))
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
    outcome = prepare(Task(str(source), str(tmp_path), "a.mp4", SETTINGS))
    assert isinstance(outcome, Done), outcome
    [image] = PyAVReader(str(tmp_path / "a.mp4")).frames([0]).astype(int)
    assert image.shape == (32, 50, 3)
    for ours, theirs in ((image[:, :20], pixels[0, 0]), (image[:, 30:], pixels[0, 50])):
        assert np.abs(ours - theirs).max() < 6


def test_frames_keep_their_order(make_video, tmp_path) -> None:
    source = make_video("a.mkv", 40, g="20")
    prepare(Task(str(source), str(tmp_path), "b.mp4", SETTINGS))
    frames = PyAVReader(str(tmp_path / "b.mp4")).frames(range(40))
    assert make_video.numbers_in(frames) == list(range(40))


def test_broken_video_fails_and_leaves_nothing(make_video, tmp_path) -> None:
    source = make_video("a.mp4", 40)
    source.write_bytes(source.read_bytes()[:-3000])
    outcome = prepare(Task(str(source), str(tmp_path / "out"), "b.mp4", SETTINGS))
    assert isinstance(outcome, Failed)
    assert outcome.source == str(source)
    assert not list((tmp_path / "out").glob("*"))


def test_times_that_fall_are_refused(footage: Path, tmp_path: Path) -> None:
    source = footage / "clips" / "wave_hmdb.avi"
    outcome = prepare(Task(str(source), str(tmp_path), "b.mp4", SETTINGS))
    assert isinstance(outcome, Failed)
    assert "do not rise: frame 2" in outcome.reason


def test_output_that_differs_is_removed(make_video, tmp_path, monkeypatch) -> None:
    source = make_video("a.mp4", 10)

    def one_fewer(path):
        found = list(decode_whole(path))
        return iter(found if path == str(source) else found[:-1])

    monkeypatch.setattr("videogn.data.preparing.decode_whole", one_fewer)
    outcome = prepare(Task(str(source), str(tmp_path / "out"), "b.mp4", SETTINGS))
    assert isinstance(outcome, Failed)
    assert "9 of 10 frames" in outcome.reason
    assert not list((tmp_path / "out").iterdir())


def test_journal_knows_what_holds(make_video, tmp_path) -> None:
    source = make_video("a.mp4", 5)
    task = Task(str(source), str(tmp_path), "b.mp4", SETTINGS)
    outcome = prepare(task)
    assert isinstance(outcome, Done)
    Journal(tmp_path).add([outcome])
    with (tmp_path / "prepared.jsonl").open("a") as file:
        file.write('{"name": "b.m')
    assert Journal(tmp_path).find(task) == outcome
    other = task._replace(settings=Settings(32, 8, 12, "ultrafast", "none"))
    assert Journal(tmp_path).find(other) is None
    os.utime(source, ns=(1, 1))
    assert Journal(tmp_path).find(task) is None
    again = prepare(task)
    Journal(tmp_path).add([again])
    assert Journal(tmp_path).find(task) == again
    (tmp_path / "b.mp4").unlink()
    assert Journal(tmp_path).find(task) is None


def test_killed_process_leaves_nothing(tmp_path, monkeypatch) -> None:
    left = [tmp_path / "b.mp4", tmp_path / ".b.mp4.x1y2.mp4"]
    for path in (*left, tmp_path / ".bb.mp4.x1y2.mp4"):
        path.write_bytes(b"half")
    task = Task("/a.mp4", str(tmp_path), "b.mp4", SETTINGS)
    monkeypatch.setattr(
        "videogn.data.processes.run_all", lambda *_, **__: iter([(task, Lost("killed"))])
    )
    outcomes = list(prepare_all([task], Journal(tmp_path), Pool(1, 1.0)))
    assert outcomes == [Failed("/a.mp4", "killed")]
    assert [path.name for path in tmp_path.iterdir()] == [".bb.mp4.x1y2.mp4"]


def test_names_stay_inside_the_folder_and_differ() -> None:
    names = ["run/a.mp4", "run/b.avi", "/far/run/a.mp4", "../run/a.mp4", "c.mp4", "C.mp4"]
    records = [VideoRecord(f"/{i}/run/{Path(n).name}", 0, n) for i, n in enumerate(names)]
    found = list(output_names(records).values())
    assert found[:2] == ["videos/run/a.mp4", "videos/run/b.avi.mp4"]
    assert len({name.lower() for name in found}) == len(names)
    for name in found[2:]:
        assert name.startswith("videos/run/")
        assert ".." not in name
