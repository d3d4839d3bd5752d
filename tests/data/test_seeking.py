import random
from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data import seeking
from videogn.data.decode import PyAVReader
from videogn.data.opening import VideoOpener
from videogn.data.seeking import SeekingReader, open_seeking
from videogn.errors import DecodeError

QUIET, BUFFERING = "log-level=none", "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500"

B = "b-adapt=0:bframes"  # every time, not only where they pay

# Forms that are read by seeking: file name, encoder, its options, those of the container.
SOUGHT = {
    "x264 defaults": ("v.mp4", "libx264", {}, {}),
    "b-pyramid": ("v.mp4", "libx264", {"x264-params": f"b-pyramid=normal:{B}=4"}, {}),
    "open gop": ("v.mp4", "libx264", {"g": "12", "x264-params": f"open-gop=1:{B}=3"}, {}),
    "closed gop": ("v.mp4", "libx264", {"g": "10", "x264-params": f"{B}=2"}, {}),
    "intra refresh": ("v.mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1"}, {}),
    "slices": ("v.mp4", "libx264", {"g": "10", "x264-params": "slices=4"}, {}),
    "headers repeated": ("v.mkv", "libx264", {"g": "10", "x264-params": "repeat-headers=1"}, {}),
    "buffering": ("v.mp4", "libx264", {"x264-params": BUFFERING}, {}),
    "baseline": ("v.mp4", "libx264", {"g": "10", "profile": "baseline"}, {}),
    "fragmented": ("v.mp4", "libx264", {"g": "10"}, {"movflags": "frag_keyframe+empty_moov"}),
    "matroska": ("v.mkv", "libx264", {"g": "10", "x264-params": f"{B}=2"}, {}),
    "mpeg-4 in avi": ("v.avi", "mpeg4", {"g": "10"}, {}),
    "vp8 hidden": ("v.webm", "libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10"}, {}),
    "vp9 hidden": ("v.webm", "libvpx-vp9", {"g": "20", "lag-in-frames": "25"}, {}),
    "vp9 in mp4": ("v.mp4", "libvpx-vp9", {"g": "8", "deadline": "realtime"}, {}),
    "av1": ("v.mp4", "libsvtav1", {"g": "15", "preset": "10"}, {}),
    "hevc": ("v.mp4", "libx265", {"x265-params": f"{QUIET}:keyint=12:{B}=4"}, {}),
    "hevc closed": ("v.mp4", "libx265", {"x265-params": f"{QUIET}:keyint=10:open-gop=0:{B}=3"}, {}),
}  # fmt: skip
# Forms that are not: what is said of them.
WHOLE = {
    "fields": ("v.mp4", "libx264", {"x264-params": "tff=1"}, "allow fields"),
    "start codes": ("v.avi", "libx264", {}, "start codes"),
    "transport stream": ("v.ts", "libx264", {}, "mpegts"),
    "flash": ("v.flv", "libx264", {}, "flv"),
    "mpeg-4 b-frames": ("v.avi", "mpeg4", {"bf": "2"}, "type B"),
    "mpeg-2": ("v.mkv", "mpeg2video", {}, "mpeg2video packets"),
}


def check_exact(path, reader, rounds=20, singles=60):
    whole = PyAVReader(str(path))
    total = whole.num_frames
    assert (reader.num_frames, reader.height, reader.width) == (total, whole.height, whole.width)
    rng = random.Random(0)
    wanted = [[frame] for frame in rng.sample(range(total), min(total, singles))]
    wanted += [list(range(first, total, 2)) for first in range(min(total, 2))]
    for _ in range(rounds):
        start, stride = rng.randrange(total), rng.choice([1, 2, 3])
        wanted.append(sorted({(start + stride * k) % total for k in range(rng.randint(1, 32))}))
    for frames in wanted:
        assert np.array_equal(reader.frames(frames), whole.frames(frames)), frames


@pytest.fixture
def no_whole_decode(monkeypatch):
    """Seeking must do without."""

    def refuse(path):
        raise AssertionError(f"{path} is decoded whole")

    monkeypatch.setattr(seeking, "PyAVReader", refuse)


@pytest.mark.parametrize("form", SOUGHT)
def test_frames_are_those_of_a_full_decode(form, make_video, no_whole_decode):
    name, codec, options, container = SOUGHT[form]
    path = make_video(name, 45, codec=codec, container_options=container, **options)
    reader = open_seeking(str(path))
    assert isinstance(reader, SeekingReader)
    check_exact(path, reader)
    if any(B in value for value in options.values()):
        assert (np.diff(seeking.unproven_index(str(path)).packets) < 0).any()


@pytest.mark.parametrize("form", WHOLE)
def test_forms_that_leave_a_doubt_are_decoded_whole(form, make_video):
    name, codec, options, reason = WHOLE[form]
    path = str(make_video(name, 20, codec=codec, **options))
    with pytest.raises(seeking.UncertainError, match=reason):
        seeking.unproven_index(path)
    reader = open_seeking(path)
    assert isinstance(reader, PyAVReader)
    assert make_video.numbers_in(reader.frames([19, 3])) == [19, 3]


@pytest.mark.parametrize(
    "name",
    [
        *("basketball_gym.mp4", "flipping_pancake.mkv", "archery_ucf.avi", "basketball_ucf.avi"),
        *("rotate90_3frames.mov", "cake_rotation_tag.mp4", "stream_vp8_hidden.webm"),
        *("nasa_two_video_streams.mp4", "sign_book.mkv", "yoga_vfr.mp4", "abseiling_vp9.webm"),
        *("abseiling.mp4", "arm_wrestling.mp4", "cleaning_pool.mp4", "cleaning_pool_1s.mp4"),
        *("weightlifting_19fps.mp4", "houseplant_1s.mp4", "yoga.mp4"),
        pytest.param("drums_portrait_36s.mp4", marks=pytest.mark.slow),
        pytest.param("people_long_139s.mp4", marks=pytest.mark.slow),
        pytest.param("hugging_1080p_gap.mp4", marks=pytest.mark.slow),
    ],
)
def test_real_clips_are_exact(name, footage, no_whole_decode):
    path = footage / "clips" / name
    check_exact(path, open_seeking(str(path)), rounds=4, singles=4)


@pytest.mark.parametrize(
    "name", ["wave_hmdb.avi", "basketball_damaged.mp4", "arm_wrestling_truncated.mp4"]
)
def test_packed_and_damaged_clips_are_left_to_the_full_decode(name, footage):
    path = str(footage / "clips" / name)
    if name == "wave_hmdb.avi":
        assert isinstance(open_seeking(path), PyAVReader)
        return
    with pytest.raises(DecodeError) as whole:
        PyAVReader(path)
    with pytest.raises(DecodeError) as sought:
        open_seeking(path)
    assert str(sought.value) == str(whole.value)


def test_a_clip_costs_its_own_stretch(make_video, monkeypatch):
    fed = []
    original = seeking.PacketDecoder.decode

    def decode(decoder, packets):
        fed.append(packets)
        return original(decoder, packets)

    monkeypatch.setattr(seeking.PacketDecoder, "decode", decode)
    reader = open_seeking(str(make_video(num_frames=90, g="10", bf="2")))
    assert make_video.numbers_in(reader.frames([42, 44, 46])) == [42, 44, 46]
    [packets] = fed
    assert 35 < packets[0] <= 42
    assert packets[-1] < 50


def remuxed(source, name, change, **options):
    """The same packets, each as ``change`` leaves it."""
    target = source.with_name(name)
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.stream = stream
            if change(number, packet):
                new.mux(packet)
    return target


def test_frames_hidden_by_an_edit_list_are_left_to_the_full_decode(make_video):
    def shift(number, packet):
        packet.pts = packet.dts = packet.pts - int(10 / (25 * packet.time_base))
        return True

    path = remuxed(
        make_video(num_frames=40, bf="0"), "cut.mp4", shift, avoid_negative_ts="disabled"
    )
    assert isinstance(open_seeking(str(path)), PyAVReader)


def test_made_up_times_are_noticed(make_video):
    def forget_order(number, packet):
        packet.pts = packet.dts = packet.dts + int(2 / (25 * packet.time_base))
        return True

    source = make_video(num_frames=40, g="20", **{"x264-params": f"{B}=3"})
    path = remuxed(source, "made_up.mp4", forget_order)
    with pytest.raises(seeking.UncertainError, match="not in the order of its pictures"):
        seeking.unproven_index(str(path))
    assert isinstance(open_seeking(str(path)), PyAVReader)


@pytest.mark.parametrize("lost", [0, 1, 7, 20])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4"])
def test_a_lost_packet_gives_no_other_frame(codec, lost, make_video):
    """Than a full decode, which makes up for the loss in its own way or fails."""
    options = {
        "libx264": {"x264-params": f"{B}=3"},
        "libx265": {"x265-params": f"{QUIET}:keyint=16:{B}=3"},
    }.get(codec, {})
    source = make_video(num_frames=40, codec=codec, g="16", **options)
    path = str(remuxed(source, "lost.mp4", lambda number, packet: number != lost))
    try:
        whole = PyAVReader(path)
    except DecodeError:
        whole = None
    try:
        reader = open_seeking(path)
    except DecodeError:
        assert whole is None
        return
    for frame in range(reader.num_frames):
        try:
            image = reader.frames([frame])
        except DecodeError:
            assert whole is None or whole.num_frames != reader.num_frames
        else:
            assert whole is None or np.array_equal(image, whole.frames([frame]))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
    ],
)
def test_damage_in_the_stretch_is_found_as_a_full_decode_finds_it(name, codec, make_video):
    path = make_video(name, 30, size=(128, 160), codec=codec, g="10")
    sound = PyAVReader(str(path)).frames(range(30))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    told = 0
    for _ in range(15):
        damaged = bytearray(content)
        start = int(rng.integers(200, len(content) - 400))
        damaged[start : start + 100] = rng.bytes(100)
        path.write_bytes(damaged)
        told += check_damaged(path, sound)
    assert told or codec == "libvpx-vp9"  # whose decoder takes noise for a picture


def check_damaged(path, sound):
    """Frames are those of a full decode, or, where that fails, those of the sound file."""
    try:
        whole = PyAVReader(str(path)).frames(range(30))
    except DecodeError:
        whole = None
    try:
        reader = open_seeking(str(path))
    except DecodeError:
        assert whole is None
        return True
    told = False
    for frame in range(reader.num_frames):
        try:
            [image] = reader.frames([frame])
        except DecodeError:
            assert whole is None
            told = True
        else:
            assert np.array_equal(image, (sound if whole is None else whole)[frame]), frame
    return told


@pytest.mark.parametrize("percent", [10, 50, 90])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_cut_file_is_an_error(name, percent, make_video):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = make_video(name, 60, codec=codec, container_options=options, g="15")
    with av.open(str(path)) as container:
        ends = sorted(p.pos + p.size for p in container.demux(video=0) if p.size)
    place = ends[len(ends) * percent // 100]
    for cut in (place, place - 20):
        path.write_bytes(path.read_bytes()[:cut])
        # What a full decode takes for a shorter video is one for both.
        try:
            whole = PyAVReader(str(path))
        except DecodeError:
            with pytest.raises(DecodeError):
                open_seeking(str(path))
        else:
            assert name == "a.avi"
            assert open_seeking(str(path)).num_frames == whole.num_frames


def test_a_file_of_fewer_frames_than_promised_is_an_error(make_video, monkeypatch):
    path = make_video(num_frames=20)
    reader = open_seeking(str(path))
    make_video(num_frames=10)
    with pytest.raises(DecodeError, match=r"gives 10 frames where its packets promise 20.*never"):
        reader.frames([15])


def test_a_doubt_behind_the_last_frame_is_looked_into(make_video, monkeypatch):
    def doubtful(path, index, rising):
        yield from original(path, index, rising)
        raise seeking.UncertainError("behind them")

    path = make_video(num_frames=12)
    reader, original = open_seeking(str(path)), seeking.expected_frames
    monkeypatch.setattr(seeking, "expected_frames", doubtful)
    assert make_video.numbers_in(reader.frames([3, 5])) == [3, 5]
    path.write_bytes(b"")
    with pytest.raises(DecodeError):
        reader.frames([3, 5])


def test_only_videos_without_an_entry_are_sought(make_video):
    path = str(make_video())
    assert isinstance(VideoOpener("pyav", seek=True)(path), SeekingReader)
    assert isinstance(VideoOpener("pyav")(path), PyAVReader)


def test_errors_are_those_of_a_full_decode(tmp_path: Path):
    for content in (b"", b"no video" * 50):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(DecodeError, match=r"Invalid data|End of file"):
            open_seeking(str(path))
    with pytest.raises(DecodeError, match="no such file"):
        open_seeking(str(tmp_path / "none.mp4"))
