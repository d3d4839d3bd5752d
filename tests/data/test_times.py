from fractions import Fraction

import numpy as np
import pytest

from videogn.data.decode import PyAVReader, packet_seconds
from videogn.data.opening import READERS
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader
from videogn.data.seeking import open_seeking
from videogn.data.times import frame_times
from videogn.errors import DecodeError

MILLISECOND = Fraction(1, 1000)


def test_stamps_are_seconds_since_the_first_frame() -> None:
    times = frame_times([500, 533, 600, 600], MILLISECOND, Fraction(25))
    np.testing.assert_allclose(times.seconds(), [0, 0.033, 0.1, 0.1], rtol=0, atol=1e-12)
    assert frame_times([7], MILLISECOND, None).seconds().tolist() == [0]


@pytest.mark.parametrize("stamps", [[0, 2, 1], [0, None, 2], [5, 5, 5]])
def test_useless_stamps_give_way_to_the_rate_of_the_headers(stamps: list) -> None:
    times = frame_times(stamps, MILLISECOND, Fraction(30000, 1001))
    np.testing.assert_allclose(times.seconds(), [0, 1001 / 30000, 2002 / 30000])
    assert len(frame_times(stamps, MILLISECOND, None).ticks) == 0


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "10", "bf": "3"}),
        ("a.mkv", "libx264", {"bf": "2"}),
        ("a.ts", "libx264", {"bf": "2"}),
        ("a.avi", "mpeg4", {}),
        ("a.webm", "libvpx-vp9", {}),
    ],
)
def test_every_reader_tells_the_same_times(name, codec, options, make_video) -> None:
    path = str(make_video(name, 31, codec=codec, **options))
    expected = np.arange(31) / 25
    for times in [PyAVReader(path).times(), open_seeking(path).times(), packet_seconds(path, 31)]:
        np.testing.assert_allclose(times, expected, rtol=0, atol=1.1e-3)
        assert np.array_equal(times, PyAVReader(path).times())
    try:
        index = index_video(path)
    except NotIndexableError:
        assert name == "a.ts"
    else:
        assert np.array_equal(IndexedReader(path, index).times(), PyAVReader(path).times())


@pytest.mark.parametrize("reader", READERS)
def test_times_of_readers_of_other_libraries(reader: str, make_video, need_reader) -> None:
    need_reader(reader)
    video = READERS[reader](str(make_video(num_frames=12, bf="2")))
    np.testing.assert_allclose(video.times(), np.arange(12) / 25, rtol=0, atol=1e-9)


def test_packets_and_frames_that_are_not_as_many(make_video) -> None:
    path = str(make_video(num_frames=12))
    np.testing.assert_allclose(packet_seconds(path, 11), np.arange(11) / 25)


def test_a_file_that_tells_no_times_is_an_error(make_video, monkeypatch) -> None:
    video = PyAVReader(str(make_video(num_frames=3)))
    monkeypatch.setattr(video, "_stamps", [2, 1, 0])
    np.testing.assert_allclose(video.times(), [0, 0.04, 0.08])
    monkeypatch.setattr("videogn.data.decode.nominal_rate", lambda stream: None)
    with pytest.raises(DecodeError, match=r"video\.mp4: tells neither the times"):
        video.times()


def test_times_that_cannot_be_are_an_error(make_video, monkeypatch) -> None:
    video = PyAVReader(str(make_video(num_frames=3)))
    monkeypatch.setattr(video, "_stamps", [0, 1, 2**62])
    with pytest.raises(DecodeError, match=r"its last frame is shown after 3\.\d+e\+14 s") as caught:
        video.times()
    assert caught.value.code == "timestamps"


@pytest.mark.parametrize("name", ["yoga_vfr.mp4", "wave_hmdb.avi", "stream_vp8_hidden.webm"])
def test_times_of_footage(name, footage) -> None:
    path = str(footage / "clips" / name)
    whole = PyAVReader(path)
    times = whole.times()
    assert times.shape == (whole.num_frames,)
    assert (np.diff(times) > 0).all()
    assert np.array_equal(times, open_seeking(path).times())
    assert np.array_equal(times, IndexedReader(path, index_video(path)).times())
    if name == "yoga_vfr.mp4":
        assert np.diff(times).max() > 0.2
        assert times[-1] == pytest.approx(9.967, abs=1e-3)
