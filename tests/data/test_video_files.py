"""What is opened, and what is refused with which reason."""

import os
import re
import signal
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from videogn.data import decord_reader, video_files
from videogn.data.decode import PyAVReader
from videogn.data.decord_reader import DecordReader
from videogn.data.forms import two_sizes
from videogn.data.probing import probe
from videogn.data.video_files import exact, nominal_rate
from videogn.errors import DecodeError


@pytest.fixture
def secret(make_video) -> Path:
    """A sound video that no other file may make the reader open."""
    return make_video("secret/secret.mp4")


def hostile(tmp_path: Path, secret: Path, kind: str) -> str:
    path = tmp_path / "hostile.mp4"
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile {secret.relative_to(tmp_path)}\n",
        "ffconcat listing itself": "ffconcat version 1.0\nfile hostile.mp4\n",
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "text": "not a video at all\n" * 100,
        "empty": "",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    if kind in texts:
        path.write_text(texts[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        return "/dev/zero"
    return str(path)


REASONS = {
    "ffconcat": "Invalid argument",
    "ffconcat listing itself": "Invalid argument",
    "playlist": "Invalid data",
    "text": "Invalid data",
    "empty": "Invalid data|End of file",
    "sdp": "Invalid argument",
    "pipe": "not a regular file",
    "link to a pipe": "not a regular file",
    "folder": "a folder",
    "device": "not a regular file",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", REASONS)
def test_hostile_file_is_refused_at_once(kind: str, tmp_path: Path, secret: Path) -> None:
    path = hostile(tmp_path, secret, kind)
    start = time.monotonic()
    with pytest.raises(DecodeError, match=REASONS[kind]):
        PyAVReader(path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing"])
def test_decord_is_not_asked_about_what_is_no_file(kind: str, tmp_path: Path, secret: Path) -> None:
    with pytest.raises(DecodeError, match=REASONS[kind]):
        DecordReader(hostile(tmp_path, secret, kind))


@pytest.mark.parametrize("kind", ["ffconcat", "ffconcat listing itself", "playlist", "text"])
def test_decord_is_not_shown_what_the_rules_refuse(
    kind: str, tmp_path: Path, secret: Path, monkeypatch
) -> None:
    def shown(*_: object) -> None:
        raise AssertionError("decord was asked")

    monkeypatch.setattr(decord_reader, "_ask", shown)
    with pytest.raises(DecodeError, match=REASONS[kind]):
        DecordReader(hostile(tmp_path, secret, kind))


def test_decord_errors_are_decode_errors(tmp_path: Path, secret: Path, monkeypatch) -> None:
    path = hostile(tmp_path, secret, "text")
    with pytest.raises(DecodeError, match="decord: "):
        decord_reader._ask(path, {})


@pytest.mark.dist
def test_file_that_crashes_decord_costs_itself_alone(
    tmp_path: Path, secret: Path, make_video
) -> None:
    # The rules would not show decord this playlist of itself, over which it crashes.
    path = hostile(tmp_path, secret, "ffconcat listing itself")
    with pytest.raises(DecodeError, match="process died over this file"):
        decord_reader._ask(path, {})
    assert DecordReader(str(make_video("sound.mp4", 7))).num_frames == 7


@pytest.mark.dist
def test_decord_that_hangs_is_killed(tmp_path: Path, make_video, monkeypatch) -> None:
    path = str(make_video("sound.mp4", 7))
    video = DecordReader(path)
    os.kill(decord_reader._children[0].process.pid, signal.SIGSTOP)
    monkeypatch.setattr(decord_reader, "ANSWER_SECONDS", 0.1)
    with pytest.raises(DecodeError, match=r"no answer in 0\.1 seconds"):
        video.frames([0])
    monkeypatch.undo()
    assert DecordReader(path).num_frames == 7


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4", "pipe:0", "data:video/mp4;base64,AAAA"]
)
def test_addresses_are_only_names_of_missing_files(path: str) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        PyAVReader(path)


def test_file_named_like_an_address_is_a_file(make_video, monkeypatch) -> None:
    path = make_video()
    path.rename(path.with_name("concat:a.mp4"))
    monkeypatch.chdir(path.parent)
    assert PyAVReader("concat:a.mp4").num_frames == 20


def test_nul_in_a_path_is_refused() -> None:
    with pytest.raises(DecodeError, match="NUL"):
        PyAVReader("a\0b.mp4")


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("MAX_SIDE", 95, "96x64 pixels"), ("MAX_PIXELS", 6000, "96x64 pixels")],
)
def test_too_large_frames_are_refused(limit, value, reason, make_video, monkeypatch) -> None:
    path = str(make_video())
    monkeypatch.setattr(video_files, limit, value)
    with pytest.raises(DecodeError, match=reason):
        PyAVReader(path)


def test_frames_that_become_too_large_are_refused(tmp_path: Path, monkeypatch) -> None:
    path = str(two_sizes(tmp_path, [(64, 96), (96, 128)]))
    assert PyAVReader(path).num_frames == 15
    # Between the two; only the decoder meets the second.
    monkeypatch.setattr(video_files, "MAX_PIXELS", 9000)
    with pytest.raises(DecodeError, match="decode error after 10 frames"):
        PyAVReader(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_tags_may_be_in_any_encoding(suffix: str, make_video, tmp_path: Path) -> None:
    path = tmp_path / f"tagged.{suffix}"
    with av.open(str(make_video())) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "Tag: M__nchen"
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.metadata["title"] = "Spur: M__nchen"
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    latin = path.read_bytes().replace(b"M__nchen", "M\xfc\xfcnchen".encode("latin-1"))
    assert b"M\xfc\xfcnchen" in latin
    path.write_bytes(latin)
    reader = PyAVReader(str(path))
    assert make_video.numbers_in(reader.frames(range(20))) == list(range(20))
    assert len(reader.times()) == 20
    assert probe(str(path)).codec == "h264"


@pytest.mark.parametrize(
    ("number", "found"),
    [(None, None), (Fraction(30000, 1001), Fraction(30000, 1001)), (Fraction(0), None)],
)
def test_numbers_that_are_not_set_are_none(number: Fraction | None, found: Fraction | None) -> None:
    assert exact(number) == found


def test_rates_are_exact_fractions(make_video) -> None:
    with av.open(str(make_video())) as container:
        stream = container.streams.video[0]
        rate, tick = nominal_rate(stream), exact(stream.time_base)
    assert (type(rate), type(tick)) == (Fraction, Fraction)
    assert rate == Fraction(25)


def test_a_codec_without_decoder_is_an_error(make_video) -> None:
    path = make_video()
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(DecodeError, match="no decoder"):
        PyAVReader(str(path))


def test_decord_takes_a_file_named_like_an_address_for_a_file(make_video, monkeypatch) -> None:
    path = make_video(num_frames=7)
    path.rename(path.with_name("concat:a.mp4"))
    monkeypatch.chdir(path.parent)
    assert DecordReader("concat:a.mp4").num_frames == 7


def test_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture) + cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence) + sound.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(DecodeError, match="no video stream"):
        PyAVReader(str(path))


def test_a_stream_that_no_decoder_knows_is_an_error(make_video) -> None:
    path = make_video()
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(DecodeError, match="no decoder knows"):
        PyAVReader(str(path))


def test_one_word_for_each_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("text")
    with pytest.raises(DecodeError) as caught:
        PyAVReader(str(path))
    assert re.fullmatch(rf"{re.escape(str(path))}: [^\n]+", str(caught.value))


def test_missing_decord_says_how_to_get_it(monkeypatch, make_video) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'videogn\[decord\]'"):
        DecordReader(str(make_video()))
