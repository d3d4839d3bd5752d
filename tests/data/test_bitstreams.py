import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.bitstreams import INSPECTORS, UncertainError, inspector
from videogn.data.bitstreams.bits import Bits, Count
from videogn.data.bitstreams.in_order import vp9_frames
from videogn.data.bitstreams.pictures import PERIOD


@given(st.lists(st.integers(-7, 7), max_size=60), st.integers(4, 6))
def test_order_counts_follow_their_low_bits(steps, bits) -> None:
    count, true = Count(bits), 0
    for period in (1, 2):
        assert count.restart() == period * PERIOD
        true = 0
        for step in steps:
            true += step
            low = true % (1 << bits)
            assert count.of(low, is_anchor=True) == period * PERIOD + true
            # A picture that is no anchor is told from the last one, and moves nothing.
            aside = count.of((low + 2) % (1 << bits), is_anchor=False)
            assert aside == period * PERIOD + true + 2


@pytest.mark.parametrize(("bits", "number"), [("1", 0), ("010", 1), ("00111", 6), ("0001000", 7)])
def test_golomb_numbers(bits, number) -> None:
    """H.264, table 9-2."""
    data = int(bits.ljust(8, "1"), 2).to_bytes(1, "big")
    assert Bits(data).golomb() == number


def test_vp9_superframes_are_split() -> None:
    """VP9, annex B: two frames of 3 and 300 bytes, sizes of two bytes."""
    marker = 0b110_01_001
    index = bytes([marker, 3, 0, 44, 1, marker])
    frames = vp9_frames(b"abc" + b"d" * 300 + index)
    assert frames == [b"abc", b"d" * 300]
    assert vp9_frames(b"abc") == [b"abc"]


def packets_of(path) -> tuple[str, bytes, list[bytes]]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        return context.codec.name, context.extradata or b"", contents


FORMS = [
    ("a.mp4", "libx264", {"g": "8", "x264-params": "bframes=2:b-adapt=0"}, "h264"),
    ("a.mp4", "libx265", {"x265-params": "log-level=none:keyint=8:bframes=2"}, "hevc"),
    ("a.webm", "libvpx", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "8"}, "vp8"),
    ("a.webm", "libvpx-vp9", {"g": "8", "lag-in-frames": "16"}, "vp9"),
    ("a.mp4", "libsvtav1", {"g": "8", "preset": "10"}, "libdav1d"),
    ("a.avi", "mpeg4", {"g": "8"}, "mpeg4"),
]


@pytest.mark.parametrize(("name", "encoder", "options", "codec"), FORMS)
def test_as_many_pictures_are_shown_as_a_decoder_gives(
    name, encoder, options, codec, make_video
) -> None:
    found, extradata, contents = packets_of(make_video(name, 30, codec=encoder, **options))
    assert found == codec
    look = inspector(codec, extradata)
    pictures = [look(content) for content in contents]
    assert sum(picture.shown for picture in pictures) == 30
    assert pictures[0].start
    assert 2 <= sum(picture.start for picture in pictures) < 30
    assert look.keeps_all(0, holds_back=False)


@pytest.mark.parametrize(("name", "encoder", "options", "codec"), FORMS)
def test_damaged_bits_leave_a_doubt_and_nothing_worse(
    name, encoder, options, codec, make_video
) -> None:
    _, extradata, contents = packets_of(make_video(name, 4, codec=encoder, **options))
    for end in range(len(extradata)):
        try:
            inspector(codec, extradata[:end])
        except UncertainError:
            continue
    for content in contents:
        for damaged in (content[:5], content[: len(content) // 2], b"\xff" * 40, bytes(40)):
            try:
                inspector(codec, extradata)(damaged)
            except (UncertainError, ValueError):
                continue


def test_other_codecs_and_start_codes_leave_a_doubt() -> None:
    with pytest.raises(UncertainError, match="mjpeg packets are not looked into"):
        inspector("mjpeg", b"")
    for codec in ("h264", "hevc"):
        with pytest.raises(UncertainError, match="start codes"):
            inspector(codec, b"\0\0\0\1\x67" + bytes(40))
    assert {"h264", "hevc", "vp9"} <= set(INSPECTORS)
