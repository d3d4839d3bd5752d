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
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import CodecContext

from videogn.data.decode import DecodingReader, FrameIndices, checked_indices, known_seconds
from videogn.data.rgb import Stored
from videogn.data.times import FrameTimes
from videogn.data.video_files import MAX_PIXELS, errors_named
from videogn.errors import DecodeError
from videogn.files import locate

REFERENCE = 1
"""Flag of a packet that other frames may refer to."""


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
    mark(packet, place)
    return packet


def mark(packet: Any, place: int) -> None:
    """Let the frame of a packet tell its place, see :func:`origin`."""
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
