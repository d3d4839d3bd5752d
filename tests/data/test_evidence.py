"""Files that were cut off or overwritten are not taken for whole ones."""

from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.decode import PyAVReader
from videogn.data.forms import paused
from videogn.errors import DecodeError


def test_pauses_that_avi_counts_as_frames_are_not_damage(tmp_path: Path) -> None:
    path = paused(tmp_path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 100
    assert PyAVReader(str(path)).num_frames == 41


CUTTABLE = {
    "fast.mp4": ("libx264", {"movflags": "faststart"}),
    "fragmented.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "a.mkv": ("libx264", {}),
    "a.webm": ("libvpx", {}),
    "a.avi": ("mpeg4", {}),
    "a.flv": ("libx264", {}),
    "a.mpg": ("mpeg2video", {}),
}


@pytest.mark.parametrize("percent", [30, 60, 90])
@pytest.mark.parametrize("name", CUTTABLE)
def test_truncated_file_is_never_taken_for_a_shorter_one(name, percent, make_video) -> None:
    codec, options = CUTTABLE[name]
    path = make_video(name, 60, codec=codec, container_options=options, g="15")
    assert PyAVReader(str(path)).num_frames == 60
    with av.open(str(path)) as container:
        # mpeg tells the place of some packets only.
        packets = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos)
    start, size = packets[len(packets) * percent // 100]
    path.write_bytes(path.read_bytes()[: start + size // 2])
    with pytest.raises(DecodeError):
        PyAVReader(str(path))


@pytest.mark.parametrize("percent", [30, 60, 90])
@pytest.mark.parametrize(
    "name",
    [
        "flipping_pancake.mkv",
        "stream_vp8_hidden.webm",
        "abseiling_vp9.webm",
        "basketball_ucf.avi",
        "archery_ucf.avi",
        "wave_hmdb.avi",
    ],
)
def test_truncated_footage_is_an_error(name, percent, footage: Path, tmp_path: Path) -> None:
    content = (footage / "clips" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(DecodeError):
        PyAVReader(str(path))


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_mp4_cut_exactly_between_frames_is_an_error(percent: int, make_video) -> None:
    path = make_video(num_frames=60, container_options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = sorted(
            packet.pos + packet.size for packet in container.demux(video=0) if packet.size
        )
    path.write_bytes(path.read_bytes()[: ends[len(ends) * percent // 100]])
    with pytest.raises(DecodeError, match=r"truncated: holds \d+ of 60 frames"):
        PyAVReader(str(path))


def test_overwritten_payload_never_gives_other_frames_silently(make_video) -> None:
    """Random bytes in the middle of the pictures: an error, or the true number of frames."""
    path = make_video(num_frames=30, size=(128, 160))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    errors = 0
    for _ in range(20):
        damaged = bytearray(content)
        start = int(rng.integers(200, len(content) // 2))
        damaged[start : start + 200] = rng.bytes(200)
        path.write_bytes(damaged)
        try:
            assert PyAVReader(str(path)).num_frames == 30
        except DecodeError:
            errors += 1
    # Where a single picture was hit, noise may parse as another picture.
    assert errors >= 8
