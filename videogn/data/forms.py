"""One small video in each form that readers are known to get wrong.

Frames carry their numbers in black and white blocks, so what was read can be told exactly.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

NUMBER_BITS = 10
BLOCK = 16
RATE = 25
NUM_FRAMES = 41
COLOURS = {"bt601": (5, 6), "bt709": (1, 1), "bt2020": (9, 9)}
"""Name -> FFmpeg's numbers of its matrix and primaries."""
LIMITED, FULL = 1, 2
"""FFmpeg's numbers of the two ranges."""


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with ``number`` in the top rows: one bit per black or white block."""
    # Noise makes packets of real size, beside which the headers of containers are small.
    frame = np.full((height, width, 3), 128, np.uint8)
    corner = frame[:160, :160]
    corner[:] = np.random.default_rng(number).integers(256, size=corner.shape)
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, width // BLOCK)
        block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
        frame[block] = 235 if number >> bit & 1 else 20
    return frame


def numbers_in(frames: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """The numbers that decoded (T, H, W, 3) frames carry."""
    numbers = []
    for frame in frames:
        number = 0
        for bit in range(NUMBER_BITS):
            row, column = (BLOCK * part for part in divmod(bit, frame.shape[1] // BLOCK))
            middle = frame[row + 6 : row + 10, column + 6 : column + 10]
            number |= int(middle.mean() > 128) << bit
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class Coding:
    """How a video is encoded.

    Attributes:
        codec: FFmpeg's name of the encoder.
        options, container_options: of the encoder and of the container.
        size: height and width.
        colours: a key of :data:`COLOURS`; None leaves the file without one.
        color_range: :data:`LIMITED` or :data:`FULL`; None leaves it unsaid.
        frames: makes the pictures, (H, W, 3) uint8, by number and size.
    """

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    num_frames: int = NUM_FRAMES
    size: tuple[int, int] = (64, 96)
    pixel_format: str = "yuv420p"
    colours: str | None = None
    color_range: int | None = None
    frames: Callable[[int, int, int], np.ndarray] = numbered_frame


def encode(path: Path, coding: Coding) -> Path:
    """Write a video of numbered frames."""
    with av.open(str(path), "w", options=coding.container_options) as container:
        stream = _add_stream(container, coding)
        for number in range(coding.num_frames):
            container.mux(stream.encode(_picture(number, coding)))
        container.mux(stream.encode(None))
    return path


def _add_stream(container: Any, coding: Coding) -> Any:
    stream = container.add_stream(coding.codec, rate=Fraction(RATE))
    stream.height, stream.width = coding.size
    stream.pix_fmt = coding.pixel_format
    if coding.colours is not None:
        matrix, primaries = COLOURS[coding.colours]
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_primaries = primaries
        stream.codec_context.color_trc = primaries
    if coding.color_range is not None:
        stream.codec_context.color_range = coding.color_range
    stream.options = {"threads": "1", **coding.options}
    return stream


def _picture(number: int, coding: Coding) -> av.VideoFrame:
    image = coding.frames(number, *coding.size)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    if coding.colours is None and coding.color_range is None:
        return frame
    return frame.reformat(
        format=coding.pixel_format,
        dst_colorspace=COLOURS[coding.colours or "bt601"][0],
        dst_color_range=coding.color_range or LIMITED,
    )


def rewrite_times(
    source: Path, target: Path, new_time: Callable[[int], int], **options: str
) -> Path:
    """Copy a video's packets with other times."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts = new_time(packet.pts), new_time(packet.dts)
                packet.stream = stream
                new.mux(packet)
    return target


def _frame_ticks(path: Path) -> int:
    """Duration of a frame in the stream's unit of time."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        return int(1 / (RATE * stream.time_base))


def edit_list(folder: Path, hidden: int = 10, b_frames: int = 0) -> Path:
    """An mp4 whose edit list hides its first frames."""
    options = {"bf": str(b_frames), "g": "100"}
    source = encode(folder / "unedited.mp4", Coding(options=options))
    shift = hidden * _frame_ticks(source)
    return rewrite_times(
        source, folder / "edited.mp4", lambda pts: pts - shift, avoid_negative_ts="disabled"
    )


def variable_rate(folder: Path) -> Path:
    """An mp4 whose frames last from one to four frame times."""
    source = encode(folder / "constant.mp4", Coding(options={"bf": "2", "g": "12"}))
    step = _frame_ticks(source)
    # A sum of growing steps: the order of frames stays, their distances do not.
    return rewrite_times(
        source,
        folder / "variable.mp4",
        lambda pts: pts + step * (pts // step // 4) ** 2 // 3,
    )


def negative_times(folder: Path) -> Path:
    """An mp4 without edit list whose first frames are shown before time 0, and none is hidden."""
    options = {"use_editlist": "0", "avoid_negative_ts": "make_zero"}
    coding = Coding(options={"bf": "2", "g": "12"}, container_options=options)
    path = encode(folder / "negative.mp4", coding)
    shift = 8 * _frame_ticks(path)
    data = bytearray(path.read_bytes())
    # The table of how much later than decoded each frame is shown; version 1 has signs.
    table = data.index(b"ctts") + 4
    (count,) = struct.unpack_from(">I", data, table + 4)
    data[table] = 1
    for place in range(table + 12, table + 8 + 8 * count, 8):
        struct.pack_into(">i", data, place, struct.unpack_from(">i", data, place)[0] - shift)
    path.write_bytes(data)
    return path


def paused(folder: Path) -> Path:
    """An avi that counts its pauses as frames."""
    source = encode(folder / "even.avi", Coding(codec="mpeg4"))
    return rewrite_times(source, folder / "paused.avi", lambda pts: pts * 3)


def rotated(folder: Path, degrees: int) -> Path:
    """An mp4 with a rotation tag."""
    path = folder / f"rotated{degrees}.mp4"
    size = (96, 64) if degrees % 180 else (64, 96)
    coding = Coding(
        options={"bf": "2", "g": "12"},
        size=size,
        frames=lambda number, *_: np.ascontiguousarray(
            np.rot90(numbered_frame(number, 64, 96), -degrees // 90)
        ),
    )
    with av.open(str(path), "w") as container:
        stream = _add_stream(container, coding)
        stream.set_display_rotation(degrees)
        for number in range(coding.num_frames):
            container.mux(stream.encode(_picture(number, coding)))
        container.mux(stream.encode(None))
    return path


def two_streams(folder: Path) -> Path:
    """An mp4 whose second video stream is the one ffmpeg calls best."""
    path = folder / "two.mp4"
    small = Coding(num_frames=20, size=(48, 64), options={"g": "12"})
    large = Coding(size=(64, 96), options={"g": "12"})
    with av.open(str(path), "w") as container:
        streams = [(_add_stream(container, coding), coding) for coding in (small, large)]
        streams[1][0].disposition = Disposition.default
        for number in range(large.num_frames):
            for stream, coding in streams:
                if number < coding.num_frames:
                    container.mux(stream.encode(_picture(number, coding)))
        for stream, _ in streams:
            container.mux(stream.encode(None))
    return path


def two_sizes(folder: Path, sizes: Sequence[tuple[int, int]] = ((64, 96), (96, 128))) -> Path:
    """A transport stream of ten frames of the first size and five of the second."""
    # Elementary streams one after the other are one stream, whose second header changes the size.
    parts = [
        encode(folder / f"{size[0]}.h264", Coding(size=size, num_frames=n, options={"bf": "0"}))
        for n, size in zip((10, 5), sizes, strict=True)
    ]
    both = folder / "both.h264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    target = folder / "both.ts"
    with av.open(str(both)) as old, av.open(str(target), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, RATE), stream
                new.mux(packet)
    return target


def two_sizes_mp4(folder: Path) -> Path:
    """The same in an mp4, which tells the first size alone."""
    return rewrite_times(two_sizes(folder), folder / "both.mp4", lambda pts: pts)


DIVX_PACKED = b"\0\0\1\xb2DivX503b1393p"
SHOWN = 1 << 4
"""Bit of a VP8 frame's first byte (RFC 6386, 9.1)."""
VOP = b"\0\0\1\xb6"


def packed_b_frames(folder: Path) -> Path:
    """An avi as DivX wrote it: a B frame travels in the packet of the frame shown after it, and
    an empty packet stands in its place."""
    source = encode(folder / "unpacked.avi", Coding(codec="mpeg4", options={"bf": "1", "g": "12"}))
    target = folder / "packed.avi"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        contents = [bytes(packet) for packet in old.demux(video=0) if packet.size]
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for place, content in enumerate(_packed(contents)):
            packet = av.Packet(content)
            packet.pts = packet.dts = place
            packet.time_base, packet.stream = Fraction(1, RATE), stream
            packet.is_keyframe = _vop_type(content) == 0
            new.mux(packet)
    return target


def _packed(contents: list[bytes]) -> list[bytes]:
    packed: list[bytes] = []
    for content in contents:
        if _vop_type(content) == 2 and packed:
            packed[-1] += content
            packed.append(_empty_vop())
        else:
            packed.append(content)
    first = packed[0].index(VOP)
    return [packed[0][:first] + DIVX_PACKED + packed[0][first:], *packed[1:]]


def _vop_type(content: bytes) -> int:
    """0 for a key frame, 1 for one that refers back, 2 for a B frame (MPEG-4 part 2, 6.2.5)."""
    return content[content.index(VOP) + 4] >> 6


def _empty_vop() -> bytes:
    # Type 1; no second passed, marker; five bits of time; marker; "not coded".
    return VOP + bytes([0b01_0_1_0000, 0b0_1_0_11111])


def hidden_frames(folder: Path) -> Path:
    """A webm of VP8 of whose frames every eighth is decoded and not shown."""
    source = encode(folder / "shown.webm", Coding(codec="libvpx", options={"g": "20"}))
    target = folder / "hidden.webm"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(old.demux(video=0)):
            if packet.size:
                content = bytearray(bytes(packet))
                if place % 8 == 3:
                    content[0] &= ~SHOWN
                packet.update(bytes(content))
                packet.stream = stream
                new.mux(packet)
    return target


def joined_late(folder: Path) -> Path:
    """A transport stream that begins between key frames."""
    options = {"g": "20", "bf": "0"}
    source = encode(folder / "whole.ts", Coding(options=options))
    target = folder / "late.ts"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(old.demux(video=0)):
            if packet.size and place >= 7:
                packet.stream = stream
                new.mux(packet)
    return target


def _coded(name: str, **changes: Any) -> Callable[[Path], Path]:
    return lambda folder: encode(folder / name, Coding(**changes))


def _x264(name: str, options: dict[str, str], **container: str) -> Callable[[Path], Path]:
    return _coded(name, options=options, container_options=container)


FORMS: dict[str, Callable[[Path], Path]] = {
    "plain mp4": _x264("v.mp4", {"g": "10", "bf": "2"}),
    "b-pyramid": _x264("v.mp4", {"bf": "3", "g": "24", "x264-params": "b-pyramid=normal"}),
    "open gop": _x264("v.mp4", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
    "one key frame": _x264("v.mp4", {"g": "999", "bf": "0"}),
    "intra refresh": _x264("v.mp4", {"g": "12", "x264-params": "intra-refresh=1"}),
    "interlaced": _x264("v.mp4", {"g": "12", "flags": "+ildct+ilme", "x264-params": "tff=1"}),
    "fragmented mp4": _x264("v.mp4", {"g": "10"}, movflags="frag_keyframe+empty_moov"),
    "edit list": edit_list,
    "edit list, B frames": lambda folder: edit_list(folder, 9, 2),
    "negative pts": negative_times,
    "variable rate": variable_rate,
    "matroska": _x264("v.mkv", {"g": "10", "bf": "2"}),
    "mpeg-ts": _x264("v.ts", {"g": "10", "bf": "2"}),
    "ts joined late": joined_late,
    "flv": _x264("v.flv", {"g": "10", "bf": "2"}),
    "mpeg-2 ps": _coded("v.mpg", codec="mpeg2video", options={"g": "10", "bf": "2"}),
    "avi": _coded("v.avi", codec="mpeg4", options={"g": "10", "bf": "2"}),
    "packed B frames": packed_b_frames,
    "avi with pauses": paused,
    "wmv": _coded("v.wmv", codec="wmv2", options={"g": "10"}),
    "vp8 hidden frames": hidden_frames,
    "vp9": _coded("v.webm", codec="libvpx-vp9", options={"g": "20", "lag-in-frames": "10"}),
    "hevc": _coded("v.mp4", codec="libx265", options={"g": "12", "x265-params": "log-level=none"}),
    "av1": _coded(
        "v.mp4",
        codec="libsvtav1",
        options={"g": "20", "preset": "12", "svtav1-params": "lp=1"},
    ),
    "hevc matroska": _coded(
        "v.mkv", codec="libx265", options={"g": "12", "x265-params": "log-level=none"}
    ),
    "av1 webm": _coded(
        "v.webm",
        codec="libsvtav1",
        options={"g": "20", "preset": "12", "svtav1-params": "lp=1"},
    ),
    "hevc interlaced": _coded(
        "v.mp4",
        codec="libx265",
        options={"g": "12", "x265-params": "log-level=none:interlace=tff"},
    ),
    "key frames too close": _x264("v.mp4", {"g": "2", "bf": "1"}, use_editlist="0"),
    "one frame": _coded("v.mp4", num_frames=1),
    "odd size": _coded("v.webm", codec="libvpx-vp9", size=(65, 97), options={"g": "10"}),
    "rotated 90": lambda folder: rotated(folder, 90),
    "rotated 180": lambda folder: rotated(folder, 180),
    "rotated 270": lambda folder: rotated(folder, 270),
    "two streams": two_streams,
    "two sizes": two_sizes,
    "two sizes, mp4": two_sizes_mp4,
    "4:4:4": _coded("v.mp4", pixel_format="yuv444p", options={"g": "10"}),
    "10 bit": _coded("v.mp4", pixel_format="yuv420p10le", options={"g": "10"}),
    "full range": _coded("v.mp4", colours="bt601", color_range=FULL, options={"g": "10"}),
    "BT.709": _coded("v.mp4", colours="bt709", color_range=LIMITED, options={"g": "10"}),
    "BT.709 full": _coded("v.mp4", colours="bt709", color_range=FULL, options={"g": "10"}),
}
"""Form -> what writes such a video into an empty folder."""
