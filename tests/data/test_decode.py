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

from videogn.data import decode, decord_reader
from videogn.data.decode import PyAVReader, exact, nominal_rate
from videogn.data.decord_reader import DecordReader
from videogn.data.forms import edit_list, paused, two_sizes
from videogn.data.opening import READERS
from videogn.data.probing import probe
from videogn.errors import DecodeError

# Frames of the stream that ffmpeg calls best, height and width as shown upright.
SOUND = {
    "arm_wrestling.mp4": (280, 256, 340),
    "cleaning_pool.mp4": (300, 256, 340),
    "cleaning_pool_1s.mp4": (32, 256, 340),
    "basketball_gym.mp4": (300, 240, 426),
    "flipping_pancake.mkv": (310, 240, 426),
    "abseiling.mp4": (250, 256, 454),
    "basketball_ucf.avi": (141, 240, 320),
    "archery_ucf.avi": (131, 240, 320),
    "wave_hmdb.avi": (74, 240, 320),
    "weightlifting_19fps.mp4": (355, 240, 320),
    "yoga.mp4": (300, 320, 568),
    "hugging_1080p_gap.mp4": (72, 1080, 1920),
    "sign_book.mkv": (109, 480, 640),
    "people_long_139s.mp4": (1394, 432, 768),
    "drums_portrait_36s.mp4": (1090, 360, 204),
    "houseplant_1s.mp4": (36, 240, 320),
    "rotate90_3frames.mov": (3, 568, 320),
    "stream_vp8_hidden.webm": (90, 360, 480),
    "nasa_two_video_streams.mp4": (390, 270, 480),
    "abseiling_vp9.webm": (250, 256, 454),
    "cake_rotation_tag.mp4": (300, 426, 320),
    "yoga_vfr.mp4": (232, 320, 568),
}
BROKEN = {
    "arm_wrestling_truncated.mp4": "Invalid data",
    "basketball_damaged.mp4": "after 130 frames",
    "audio_only.mp4": "no video stream",
}
# Clips on which decord counts and shows the frames of a full decode.
DECORD_IS_RIGHT = ["cleaning_pool.mp4", "cake_rotation_tag.mp4", "rotate90_3frames.mov"]


def plain_decode(path: Path, wanted: set[int]) -> tuple[int, dict[int, np.ndarray]]:
    """Number of frames, and the wanted ones in RGB, by the shortest PyAV program there is."""
    images, count = {}, 0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            if count in wanted:
                images[count] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            count += 1
    return count, images


@pytest.mark.parametrize("name", SOUND)
def test_frames_are_those_of_a_plain_full_decode(name: str, footage: Path) -> None:
    path = footage / "clips" / name
    total, height, width = SOUND[name]
    rng = np.random.default_rng(total)
    indices = np.concatenate([rng.integers(total, size=5), [total - 1, 0]])
    reader = PyAVReader(str(path))
    count, images = plain_decode(path, set(indices.tolist()))
    assert reader.num_frames == count == total
    frames = reader.frames(indices)
    assert frames.shape == (7, height, width, 3)
    assert frames.dtype == np.uint8
    for index, frame in zip(indices, frames, strict=True):
        np.testing.assert_array_equal(frame, images[index])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_footage_is_an_error_with_a_reason(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    with pytest.raises(DecodeError, match=BROKEN[name]) as caught:
        PyAVReader(path)
    assert caught.value.path == path
    assert path not in caught.value.reason


@pytest.mark.parametrize("name", DECORD_IS_RIGHT)
def test_decord_agrees_where_it_is_right(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    ours, theirs = PyAVReader(path), DecordReader(path)
    assert ours.num_frames == theirs.num_frames
    indices = [ours.num_frames - 1, 0, ours.num_frames // 2, 0]
    difference = ours.frames(indices).astype(int) - theirs.frames(indices)
    # Both scale chroma, each in its way; a frame or a quarter turn off would be tens of levels.
    assert difference.shape == ours.frames(indices).shape
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("reader", READERS)
def test_frames_come_by_number_in_any_order(reader: str, make_video, need_reader) -> None:
    need_reader(reader)
    video = READERS[reader](str(make_video(num_frames=40, g="12", bf="3")))
    assert video.num_frames == 40
    indices = [39, 0, 7, 7, 23, 0]
    assert make_video.numbers_in(video.frames(indices)) == indices
    rising = list(range(1, 40, 2))
    assert make_video.numbers_in(np.stack(list(video.images(rising)))) == rising


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("indices", [[-1], [5], [0, 5], []])
def test_frames_outside_the_video_are_refused(reader, indices, make_video, need_reader) -> None:
    need_reader(reader)
    video = READERS[reader](str(make_video(num_frames=5)))
    with pytest.raises(IndexError):
        video.frames(indices)


def test_images_must_rise(make_video) -> None:
    with pytest.raises(IndexError, match="rising"):
        list(PyAVReader(str(make_video())).images([3, 2]))


@pytest.mark.parametrize("budget", [0, 30_000])
def test_video_too_large_to_keep_is_decoded_again(budget: int, make_video, monkeypatch) -> None:
    path = str(make_video())
    kept = PyAVReader(path).frames(range(20))
    decodes = []
    original = decode.opened
    monkeypatch.setattr(decode, "opened", lambda p: decodes.append(p) or original(p))
    monkeypatch.setattr(decode, "KEPT_BYTES", budget)
    video = PyAVReader(path)
    np.testing.assert_array_equal(video.frames([19, 4, 4]), kept[[19, 4, 4]])
    assert make_video.numbers_in(video.frames([0])) == [0]
    assert len(decodes) == 3


def test_second_decode_of_a_file_that_shrank_is_an_error(make_video, monkeypatch) -> None:
    monkeypatch.setattr(decode, "KEPT_BYTES", 0)
    video = PyAVReader(str(make_video(num_frames=20)))
    make_video(num_frames=10)
    with pytest.raises(DecodeError, match="changed while it was read"):
        video.frames([15])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=8"}),
        ("a.mkv", "libx264", {"x264-params": "open-gop=1:keyint=8"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {}),
        ("a.ts", "libx264", {}),
        ("a.flv", "libx264", {}),
        ("a.wmv", "wmv2", {}),
        ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none"}),
    ],
)
def test_codecs_and_containers(name: str, codec: str, options: dict, make_video) -> None:
    path = make_video(name, 40, codec=codec, **options)
    video = PyAVReader(str(path))
    assert video.num_frames == 40
    assert make_video.numbers_in(video.frames(range(40))) == list(range(40))


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path, make_video) -> None:
    video = PyAVReader(str(edit_list(tmp_path, hidden=10)))
    assert make_video.numbers_in(video.frames(range(video.num_frames))) == list(range(10, 41))


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
    monkeypatch.setattr(decode, limit, value)
    with pytest.raises(DecodeError, match=reason):
        PyAVReader(path)


def test_frames_that_become_too_large_are_refused(tmp_path: Path, monkeypatch) -> None:
    path = str(two_sizes(tmp_path, [(64, 96), (96, 128)]))
    assert PyAVReader(path).num_frames == 15
    # Between the two; only the decoder meets the second.
    monkeypatch.setattr(decode, "MAX_PIXELS", 9000)
    with pytest.raises(DecodeError, match="decode error after 10 frames"):
        PyAVReader(path)


def test_frames_of_another_size_are_brought_to_the_first_ones(tmp_path: Path, make_video) -> None:
    video = PyAVReader(str(two_sizes(tmp_path, [(96, 128), (64, 96)])))
    assert video.num_frames == 15
    assert make_video.numbers_in(video.frames([9, 0])) == [9, 0]
    assert video.frames([14, 0, 10]).shape == (3, 96, 128, 3)


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
