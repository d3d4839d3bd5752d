import random
import shutil

import numpy as np
import pytest

from videogn.data.decode import PyAVReader
from videogn.data.forms import FORMS
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader, PacketIndex, decode_frames, runs
from videogn.errors import DecodeError

NOT_INDEXABLE = {"mpeg-ts", "ts joined late", "mpeg-2 ps", "wmv", "two sizes"}
"""Forms whose packets do not stand in the file in one piece: a full decode reads them."""


def random_frames(total, rng):
    start, stride = rng.randrange(total), rng.choice([1, 2, 3])
    return sorted({(start + stride * k) % total for k in range(rng.randint(1, 16))})


def check_exact(path, index, rounds=12):
    whole = PyAVReader(str(path))
    assert index.num_frames == whole.num_frames
    rng = random.Random(0)
    reader = IndexedReader(str(path), index)
    for _ in range(rounds):
        wanted = random_frames(whole.num_frames, rng)
        assert np.array_equal(reader.frames(wanted), whole.frames(wanted)), wanted
    everything = list(range(whole.num_frames))
    assert np.array_equal(reader.frames(everything), whole.frames(everything))


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_those_of_a_full_decode(tmp_path, form):
    path = FORMS[form](tmp_path)
    if form in NOT_INDEXABLE:
        with pytest.raises(NotIndexableError):
            index_video(str(path))
        return
    check_exact(path, index_video(str(path)))


def test_a_clip_costs_its_own_packets_and_leaves_out_unwanted_ones(make_video):
    path = make_video(num_frames=60, codec="libx264", g="10", bf="2")
    index = index_video(str(path))
    [(first, last)] = runs(index, [42, 44, 46])
    assert 35 < first <= 42  # the key frame before, not the first
    assert last < 50
    assert (index.flags == 0).sum() > 3  # B frames that nothing refers to
    assert len(runs(index, [5, 55])) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("basketball_gym.mp4", "flipping_pancake.mkv", "wave_hmdb.avi", "archery_ucf.avi"),
        *("rotate90_3frames.mov", "cake_rotation_tag.mp4", "stream_vp8_hidden.webm"),
        *("nasa_two_video_streams.mp4", "sign_book.mkv", "yoga_vfr.mp4", "abseiling_vp9.webm"),
        pytest.param("hugging_1080p_gap.mp4", marks=pytest.mark.slow),
    ],
)
def test_real_clips_are_exact(footage, name):
    path = footage / "clips" / name
    check_exact(path, index_video(str(path)), rounds=4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("arm_wrestling_truncated.mp4", "Invalid data"),
        ("basketball_damaged.mp4", "after 130 frames"),
        ("audio_only.mp4", "no video stream"),
        ("nowhere.mp4", "no such file"),
    ],
)
def test_damaged_files_are_found_while_they_are_indexed(footage, name, reason):
    with pytest.raises(DecodeError, match=reason):
        index_video(str(footage / "clips" / name))


def test_a_frame_of_the_clip_before_does_not_disturb_the_next(make_video):
    path = str(make_video(num_frames=30))
    index = index_video(path)
    for last in range(30):
        [held] = decode_frames(path, index, [last])
        wanted = list(range(max(0, last - 4), 30))
        again = decode_frames(path, index, wanted)
        found = [next(again)]
        # It goes while the same packet is on its way through the decoder once more.
        del held
        assert len([*found, *again]) == len(wanted)


def test_index_survives_its_compact_form(make_video):
    index = index_video(str(make_video(num_frames=30, codec="libx264", g="7", bf="2")))
    again = PacketIndex.from_bytes(index.to_bytes())
    for name in ("offsets", "sizes", "flags", "packets", "starts"):
        assert np.array_equal(getattr(again, name), getattr(index, name))
    assert np.array_equal(again.times.ticks, index.times.ticks)
    assert (again.times.tick, len(again.times.ticks)) == (index.times.tick, 30)
    assert (again.codec, again.extradata, again.codec_tag) == ("h264", index.extradata, "avc1")
    assert len(index.to_bytes()) < 30 * 12 + 400


@pytest.mark.parametrize("data", [b"", b"\x05\0\0\0hello", b"\x02\0\0\0{}rest"])
def test_other_bytes_are_no_index(data):
    with pytest.raises(ValueError, match=r"."):
        PacketIndex.from_bytes(data)


def test_a_file_that_changed_is_told(make_video, tmp_path):
    path = make_video(num_frames=30, codec="libx264", g="10")
    index = index_video(str(path))
    cut = tmp_path / "cut.mp4"
    shutil.copy(path, cut)
    with cut.open("r+b") as file:
        file.truncate(int(index.offsets[15]))
    with pytest.raises(DecodeError, match="index it again"):
        IndexedReader(str(cut), index).frames([20, 22])
    with pytest.raises(IndexError):
        IndexedReader(str(path), index).frames([30])
