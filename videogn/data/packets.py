"""Reading only the packets a clip needs, by an index made once per video.

A full decode costs all frames of a file for every clip of it. An index tells where each packet
lies in the file, which frame it becomes and where decoding may start, so a clip costs its own
packets, read without a demuxer. Packets that no other frame refers to and nobody wants are left
out. Shapes: F frames in the order they are shown, P packets in the order they are decoded.

The frames are exactly those of :class:`videogn.data.decode.PyAVReader`: an index is checked
against a full decode when it is made, and a file that fails has none and a reason.
"""

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import CodecContext

from videogn.data.decode import (
    MAX_PIXELS,
    DecodingReader,
    Evidence,
    FrameIndices,
    checked_indices,
    chosen_stream,
    errors_named,
    known_seconds,
    nominal_rate,
    opened,
)
from videogn.data.rgb import Stored, stored_as
from videogn.data.times import FrameTimes, frame_times
from videogn.errors import DecodeError
from videogn.files import locate

REFERENCE = 1
"""Flag of a packet that other frames may refer to."""

MAX_HEADER = 64
"""Bytes between a packet's position and its content: Matroska puts a block header there."""


class NotIndexableError(Exception):
    """The file is sound, but a packet index cannot address its frames; the text says why."""


@dataclass(frozen=True)
class PacketIndex:
    """Where the frames of one video lie in its file.

    Attributes:
        codec: FFmpeg's name of the decoder.
        codec_tag: the container's four letters for it, which decoders look at for known bugs.
        extradata: the stream's headers, which are not in any packet.
        width, height: pixels of the first frame as it is stored.
        quarters: counter-clockwise quarter turns that set a frame upright.
        offsets: (P,) int64, first byte of each packet's content, from the video's first.
        sizes: (P,) int32, in bytes.
        flags: (P,) uint8.
        packets: (F,) int32, the packet of each frame.
        starts: (F,) int32, the packet at which decoding has to start for it.
        times: when the frames are shown.
    """

    codec: str
    codec_tag: str
    extradata: bytes
    width: int
    height: int
    quarters: int
    offsets: np.ndarray
    sizes: np.ndarray
    flags: np.ndarray
    packets: np.ndarray
    starts: np.ndarray
    times: FrameTimes

    @property
    def num_frames(self) -> int:
        """Frames of a full decode."""
        return len(self.packets)

    def to_bytes(self) -> bytes:
        """A compact form: differences of neighbours, deflated."""
        head = {
            "codec": self.codec,
            "tag": self.codec_tag,
            "extradata": self.extradata.hex(),
            "shape": [self.width, self.height, self.quarters],
            "counts": [len(self.sizes), len(self.packets), len(self.times.ticks)],
            "tick": self.times.tick.as_integer_ratio(),
        }
        ends = self.offsets[:-1] + self.sizes[:-1]
        arrays = (
            np.diff(self.offsets, prepend=0) - np.concatenate([[0], self.sizes[:-1]])
            if len(ends)
            else self.offsets,
            self.sizes,
            self.flags,
            self.packets - np.arange(len(self.packets)),
            np.diff(self.starts, prepend=0),
            np.diff(self.times.ticks, prepend=0),
        )
        words = json.dumps(head).encode()
        body = b"".join(
            np.asarray(array, dtype=kind).tobytes()
            for array, kind in zip(arrays, _KINDS, strict=True)
        )
        return len(words).to_bytes(4, "little") + words + zlib.compress(body, 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> "PacketIndex":
        """Read what :meth:`to_bytes` gives.

        Raises:
            ValueError: it is something else.
        """
        length = int.from_bytes(data[:4], "little")
        try:
            head = json.loads(data[4 : 4 + length])
            num_packets, num_frames, num_times = head["counts"]
            counts = (*(num_packets,) * 3, *(num_frames,) * 2, num_times)
            body, place, arrays = zlib.decompress(data[4 + length :]), 0, []
            for count, kind in zip(counts, _KINDS, strict=True):
                arrays.append(np.frombuffer(body, kind, count, place))
                place += count * np.dtype(kind).itemsize
            width, height, quarters = head["shape"]
            extradata = bytes.fromhex(head["extradata"])
            codec, tag = str(head["codec"]), str(head["tag"])
            tick = Fraction(*head["tick"])
        except (KeyError, TypeError, ArithmeticError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"no packet index: {error}") from error
        gaps, sizes, flags, shifts, steps, ticks = arrays
        offsets = np.cumsum(gaps + np.concatenate([[0], sizes[:-1].astype(np.int64)]))
        return cls(
            codec=codec,
            codec_tag=tag,
            extradata=extradata,
            width=width,
            height=height,
            quarters=quarters,
            offsets=offsets[:num_packets],
            sizes=sizes,
            flags=flags,
            packets=shifts + np.arange(num_frames, dtype=np.int32),
            starts=np.cumsum(steps, dtype=np.int32),
            times=FrameTimes(np.cumsum(ticks, dtype=np.int64), tick),
        )


_KINDS = ("<i8", "<i4", "u1", "<i4", "<i4", "<i8")


class IndexedReader(DecodingReader):
    """Frames by a packet index: the same as a full decode's, for the cost of their own packets.

    Raises:
        DecodeError: the file is missing, or not the one that was indexed.
    """

    def __init__(self, path: str, index: PacketIndex) -> None:
        self._path = path
        self._index = index
        self.num_frames = index.num_frames
        self.stored = Stored(index.height, index.width, index.quarters)
        self.height, self.width = self.stored.upright

    def decoded(self, indices: FrameIndices) -> Iterator[av.VideoFrame]:
        """Frames of rising indices, as :meth:`FrameSource.decoded` says."""
        rising = checked_indices(self.num_frames, indices)
        return decode_frames(self._path, self._index, rising)

    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""
        return known_seconds(self._path, self._index.times)


def decode_frames(path: str, index: PacketIndex, rising: list[int]) -> Iterator[av.VideoFrame]:
    """Decoded frames of rising indices, in that order.

    Raises:
        DecodeError: the file does not hold what its index says.
    """
    wanted: dict[int | None, int] = {int(index.packets[frame]): frame for frame in rising}
    early: dict[int, av.VideoFrame] = {}
    remaining = iter(rising)
    target = next(remaining)
    with errors_named(path, lambda: f"before frame {target}"):
        for frame in _decode_runs(path, index, rising):
            number = wanted.get(origin(frame))
            if number is not None:
                early[number] = frame
            # Decoders give frames as they are shown, but for files whose times are in disorder.
            while target in early:
                yield early.pop(target)
                target = next(remaining, -1)
    if target >= 0:
        raise DecodeError(path, f"frame {target} is not where its index says; index it again")


def _decode_runs(path: str, index: PacketIndex, rising: list[int]) -> Iterator[av.VideoFrame]:
    with PacketDecoder(path, index) as decoder:
        for stretch in runs(index, rising):
            yield from decoder.decode(fed_packets(index, stretch, rising))


def runs(index: PacketIndex, rising: list[int]) -> list[tuple[int, int]]:
    """First and last packet of each stretch that must be decoded for some frames."""
    stretches: list[list[int]] = []
    for frame in rising:
        start, packet = int(index.starts[frame]), int(index.packets[frame])
        if stretches and start <= stretches[-1][1] + 1:
            stretches[-1][1] = max(stretches[-1][1], packet)
        else:
            stretches.append([start, packet])
    return [(first, last) for first, last in stretches]


def fed_packets(index: PacketIndex, stretch: tuple[int, int], rising: list[int]) -> list[int]:
    """The packets of a stretch without those that no other frame refers to and nobody wants."""
    first, last = stretch
    wanted = set(index.packets[rising].tolist())
    return [
        packet
        for packet in range(first, last + 1)
        if index.flags[packet] & REFERENCE or packet in wanted
    ]


class PacketDecoder:
    """Decodes packets by their number, which :func:`origin` finds in their frames."""

    def __init__(self, path: str, index: PacketIndex) -> None:
        self._index = index
        self._decoder = _decoder(index)
        self._file = ByteReader(path)

    def __enter__(self) -> "PacketDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def decode(self, packets: list[int]) -> Iterator[av.VideoFrame]:
        """Frames of packets that follow a place at which decoding may start."""
        if self._decoder.is_open:
            self._decoder.flush_buffers()
        for place in packets:
            yield from self._decoder.decode(_read_packet(self._file, self._index, place))
        yield from self._decoder.decode(None)


class ByteReader:
    """Reads bytes of a video file by their place, until it is closed."""

    def __init__(self, path: str) -> None:
        part = locate(path)
        self._start = part.start
        self._file = Path(part.file).open("rb", buffering=0)  # noqa: SIM115

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on; fewer at the file's end."""
        return os.pread(self._file.fileno(), size, self._start + offset)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _read_packet(file: ByteReader, index: PacketIndex, place: int) -> Any:
    size = int(index.sizes[place])
    content = file.read(int(index.offsets[place]), size)
    if len(content) != size:
        raise ValueError(f"packet {place} ends behind the file; index it again")
    # A packet made of bytes refers to them, and decoders read beyond its end; one made by size
    # is followed by zeros.
    packet = av.Packet(size)
    packet.update(content)
    packet.pts = packet.dts = place
    _mark(packet, place)
    return packet


def _mark(packet: Any, place: int) -> None:
    # PyAV keeps what is passed along by its identity and forgets it with the first frame that goes:
    # an object of its own for each packet, for small integers are the same one everywhere.
    packet.opaque = [place]


def origin(frame: av.VideoFrame) -> int | None:
    """The place of the packet that a frame came from."""
    mark: Any = frame.opaque
    return None if mark is None else int(mark[0])


def _decoder(index: PacketIndex) -> Any:
    decoder: Any = CodecContext.create(index.codec, "r")
    decoder.codec_tag = index.codec_tag
    if index.extradata:
        decoder.extradata = index.extradata
    decoder.thread_type = "NONE"
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    decoder.copy_opaque = True
    return decoder


def index_video(path: str, stream: int | None = None) -> PacketIndex:
    """Index a video and prove that its frames come out as a full decode gives them.

    Args:
        stream: number among its video streams; None for the one ffmpeg calls best.

    Raises:
        DecodeError: the file cannot be decoded, as :class:`PyAVReader` finds.
        NotIndexableError: it can, but not by single packets.
    """
    scan = _scan(path, stream)
    index = _paired(scan)
    starts = [place for place, is_key in enumerate(scan.keys) if is_key]
    while starts and starts[0] <= min(index.packets):
        index = with_starts(index, starts)
        wrong = _wrong_starts(path, index, scan.sums)
        if not wrong:
            _check_skipping(path, index, scan.sums)
            return index
        starts = [place for place in starts if place not in wrong]
    raise NotIndexableError("decoding cannot start at its key frames")


@dataclass(frozen=True)
class _Scan:
    """What a full decode tells: packets as they come, and frames as they are shown."""

    codec: str
    codec_tag: str
    extradata: bytes
    shape: Stored
    offsets: list[int]
    sizes: list[int]
    flags: list[int]
    keys: list[bool]
    owners: list[int | None]
    sums: list[int]
    times: FrameTimes


def _scan(path: str, number: int | None) -> _Scan:
    about = "", "", b"", Stored(0, 0, 0)
    found = _Scan(*about, [], [], [], [], [], [], frame_times([], None, None))
    shape, misplaced = None, False
    stamps: list[int | None] = []
    with errors_named(path, lambda: f"after {len(found.sums)} frames"), opened(path) as container:
        stream = chosen_stream(path, container, number)
        context = stream.codec_context
        evidence = Evidence(path, container, stream)
        context.copy_opaque = True
        length_bytes = nal_length_bytes(context.codec.name, context.extradata)
        with closing(ByteReader(path)) as file:
            for packet in container.demux(stream):
                evidence.see_packet(packet)
                if packet.size:
                    offset = content_offset(file, packet)
                    misplaced = misplaced or offset is None
                    _mark(packet, len(found.sizes))
                    found.offsets.append(offset or 0)
                    found.sizes.append(packet.size)
                    found.keys.append(packet.is_keyframe)
                    found.flags.append(_flags_of(bytes(packet), context.codec.name, length_bytes))
                for frame in packet.decode():
                    evidence.see_frame(frame)
                    shape = shape or stored_as(frame)
                    found.owners.append(origin(frame))
                    found.sums.append(_fingerprint(frame))
                    stamps.append(frame.pts)
        evidence.judge()
        if misplaced:
            raise NotIndexableError("its packets do not stand in the file as they are decoded")
        return replace(
            found,
            codec=context.codec.name,
            codec_tag=context.codec_tag,
            extradata=context.extradata or b"",
            shape=shape or Stored(0, 0, 0),
            times=frame_times(stamps, stream.time_base, nominal_rate(stream)),
        )


def content_offset(file: ByteReader, packet: Any) -> int | None:
    """First byte of a packet's content in the file; None where it stands nowhere near."""
    if packet.pos is None or packet.pos < 0:
        return None
    content = bytes(packet)
    found = file.read(packet.pos, packet.size + MAX_HEADER).find(content)
    return None if found < 0 else packet.pos + found


def nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each unit of an H.264 or HEVC packet; 0 where there is none."""
    # Where avcC and hvcC, of version 1, have it.
    place = {"h264": 4, "hevc": 21}.get(codec)
    if place is None or not extradata or extradata[0] != 1 or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


def nal_units(content: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of an H.264 or HEVC packet; none where they have no lengths."""
    place = 0
    while length_bytes and place + length_bytes < len(content):
        size = int.from_bytes(content[place : place + length_bytes], "big")
        place += length_bytes
        yield content[place : place + max(size, 1)]
        place += size


def _flags_of(content: bytes, codec: str, length_bytes: int) -> int:
    """Whether other pictures may refer to this one: ``nal_ref_idc`` of its slices (H.264, 7.4.1).

    Packets of other codecs and of another form count as referred to.
    """
    if codec == "h264":
        for unit in nal_units(content, length_bytes):
            if unit[0] & 31 in (1, 2, 5):
                return REFERENCE if unit[0] >> 5 & 3 else 0
    return REFERENCE


def _fingerprint(frame: av.VideoFrame) -> int:
    """A checksum of everything that decides a frame's colours."""
    about = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
    total = zlib.crc32(repr([str(part) for part in about]).encode())
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        used = min(plane.line_size, plane.width * _bytes_per_sample(frame))
        total = zlib.crc32(rows[:, :used].tobytes(), total)
    return total


def _bytes_per_sample(frame: av.VideoFrame) -> int:
    # Of packed formats such as rgb24 a plane's row has several values a pixel.
    bits = max(part.bits for part in frame.format.components)
    values = 1 if len(frame.planes) > 1 else len(frame.format.components)
    return values * ((bits + 7) // 8)


def _paired(scan: _Scan) -> PacketIndex:
    owners = [owner for owner in scan.owners if owner is not None]
    if len(owners) != len(scan.owners) or len(set(owners)) != len(owners):
        raise NotIndexableError("its packets and frames do not pair")
    height, width, quarters = scan.shape
    return PacketIndex(
        codec=scan.codec,
        codec_tag=scan.codec_tag,
        extradata=scan.extradata,
        width=width,
        height=height,
        quarters=quarters,
        offsets=np.array(scan.offsets, dtype=np.int64),
        sizes=np.array(scan.sizes, dtype=np.int32),
        flags=np.array(scan.flags, dtype=np.uint8),
        packets=np.array(owners, dtype=np.int32),
        starts=np.zeros(len(owners), dtype=np.int32),
        times=scan.times,
    )


def with_starts(index: PacketIndex, starts: list[int]) -> PacketIndex:
    """Let each frame start at the last place before its packet that is not shown after it.

    A frame shown before the key frame it is stored behind (an open group of pictures) refers to
    pictures before that key frame.
    """
    shown = {int(packet): frame for frame, packet in enumerate(index.packets)}
    known = np.array(starts)
    chosen = []
    for frame, packet in enumerate(index.packets):
        place = int(np.searchsorted(known, packet, side="right")) - 1
        while place > 0 and shown.get(int(known[place]), -1) > frame:
            place -= 1
        chosen.append(known[max(place, 0)])
    return replace(index, starts=np.array(chosen, dtype=np.int32))


def _wrong_starts(path: str, index: PacketIndex, sums: list[int]) -> set[int]:
    """Starts from which some frame comes out otherwise than in a full decode."""
    wrong = set()
    for start in np.unique(index.starts):
        mine = np.flatnonzero(index.starts == start).tolist()
        if not _come_out(path, index, mine, sums):
            wrong.add(int(start))
    return wrong


def _check_skipping(path: str, index: PacketIndex, sums: list[int]) -> None:
    """Every second frame, both ways, as clips of stride 2 read them."""
    for first in (0, 1):
        mine = list(range(first, index.num_frames, 2))
        if mine and not _come_out(path, index, mine, sums):
            raise NotIndexableError("frames change when others are left out")


def _come_out(path: str, index: PacketIndex, rising: list[int], sums: list[int]) -> bool:
    try:
        found = [_fingerprint(frame) for frame in decode_frames(path, index, rising)]
    except DecodeError:
        return False
    return found == [sums[frame] for frame in rising]
