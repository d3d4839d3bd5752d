from fractions import Fraction
from pathlib import Path

import pytest

from videogn.commands.setup import clips_of
from videogn.config import ClipConfig
from videogn.data.decode import PyAVReader
from videogn.data.probing import clip_seconds, probe
from videogn.data.processes import Lost, Pool, run_all
from videogn.errors import DecodeError


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_headers_of_made_videos(name, make_video):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    found = probe(str(make_video(name, 50, codec=codec)))
    expected = "mpeg4" if name == "a.avi" else "h264"
    assert (found.codec, found.width, found.height) == (expected, 96, 64)
    assert found.rate == Fraction(25)
    assert found.seconds == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    ("name", "codec", "size", "rate", "seconds"),
    [
        ("nasa_two_video_streams.mp4", "h264", (480, 270), 29.97, 13.01),
        ("abseiling_vp9.webm", "vp9", (454, 256), 25, 10.0),
        ("people_long_139s.mp4", "h264", (768, 432), 10, 139.4),
    ],
)
def test_headers_of_footage(name, codec, size, rate, seconds, footage: Path):
    found = probe(str(footage / "clips" / name))
    assert (found.codec, (found.width, found.height)) == (codec, size)
    assert float(found.rate) == pytest.approx(rate, rel=1e-3)
    assert found.seconds == pytest.approx(seconds, rel=0.01)


@pytest.mark.dist
def test_bad_files_are_named(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(DecodeError, match="in the headers"):
        probe(str(path))
    [(_, outcome)] = run_all(probe, [str(path)], Pool(1, 60.0))
    assert isinstance(outcome, Lost)
    assert str(path) not in outcome.reason


def test_clips_are_timed(make_video):
    clips = clips_of(ClipConfig(num_frames=4), PyAVReader)
    assert clip_seconds(clips, str(make_video()), 2) > 0
