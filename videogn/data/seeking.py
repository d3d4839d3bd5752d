"""Frames of a file that has no index, by decoding only around them.

The file's packets are read once, without decoding, and each is asked what becomes of it
(:mod:`videogn.data.bitstreams`). Where every packet gives one frame and their times tell the
order, that is an index as :mod:`videogn.data.packets` makes it, but unproven: so whatever comes
out of the decoder is compared with what was expected, and at the first difference the whole file
is decoded instead. Damage in stretches that are not decoded is not noticed.
"""

from bisect import bisect, insort
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import av
import numpy as np

from videogn.data.bitstreams import Picture, UncertainError, inspector
from videogn.data.decode import (
    DecodingReader,
    FrameIndices,
    PyAVReader,
    VideoReader,
    checked_indices,
    known_seconds,
)
from videogn.data.evidence import matroska_size
from videogn.data.packet_scan import content_offset, with_starts
from videogn.data.packets import (
    REFERENCE,
    ByteReader,
    PacketDecoder,
    PacketIndex,
    fed_packets,
    origin,
    runs,
)
from videogn.data.rgb import Stored, quarter_turns
from videogn.data.times import frame_times
from videogn.data.video_files import BAD_FILE_ERRORS, chosen_stream, nominal_rate, opened
from videogn.errors import DecodeError
from videogn.files import state_of

FORMATS = ("mov", "matroska", "avi")
"""Parts of FFmpeg's names of the containers whose packets are read so."""

MAX_REORDERED = 16
"""No decoder holds back more frames."""


def open_seeking(path: str, stream: int | None = None) -> VideoReader:
    """A video, by seeking where its packets tell which frames they give, else by a full decode.

    Args:
        stream: number among its video streams; None for the one ffmpeg calls best.

    Raises:
        DecodeError: it cannot be read.
    """
    try:
        return SeekingReader(path, unproven_index(path, stream), stream)
    except (UncertainError, DecodeError, *BAD_FILE_ERRORS):
        # What is wrong with a file is for the full decode to say.
        return PyAVReader(path, stream)


class SeekingReader(DecodingReader):
    """Frames by an index that nobody has compared with a full decode.

    Raises:
        DecodeError: a stretch that is needed cannot be decoded.
    """

    def __init__(self, path: str, index: PacketIndex, stream: int | None = None) -> None:
        self._path = path
        self._stream = stream
        self._index = index
        self.num_frames = index.num_frames
        self.stored = Stored(index.height, index.width, index.quarters)
        self.height, self.width = self.stored.upright

    def decoded(self, indices: FrameIndices) -> Iterator[av.VideoFrame]:
        """Frames of rising indices, as :meth:`FrameSource.decoded` says."""
        return self._decoded(checked_indices(self.num_frames, indices))

    def _decoded(self, rising: list[int]) -> Iterator[av.VideoFrame]:
        given = 0
        try:
            for frame in expected_frames(self._path, self._index, rising):
                yield frame
                given += 1
        except (UncertainError, DecodeError, *BAD_FILE_ERRORS):
            whole = self._whole()
            if given < len(rising):
                yield from whole.decoded(rising[given:])

    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""
        return known_seconds(self._path, self._index.times)

    def _whole(self) -> PyAVReader:
        whole = PyAVReader(self._path, self._stream)
        if whole.num_frames != self.num_frames:
            raise DecodeError(
                self._path,
                f"gives {whole.num_frames} frames where its packets promise {self.num_frames}; "
                "data.index=never decodes it whole",
            )
        return whole


def expected_frames(path: str, index: PacketIndex, rising: list[int]) -> Iterator[av.VideoFrame]:
    """Decoded frames of rising indices, each checked to be the one it is taken for.

    Raises:
        UncertainError: something else came out of the decoder.
    """
    shown: dict[int | None, int] = {int(p): frame for frame, p in enumerate(index.packets)}
    wanted = set(rising)
    with PacketDecoder(path, index) as decoder:
        for stretch in runs(index, rising):
            fed = fed_packets(index, stretch, rising)
            # What is shown before the first packet of a stretch may not come out of it.
            begin = shown.get(fed[0], 0)
            due = iter(sorted(shown[packet] for packet in fed if shown.get(packet, -1) >= begin))
            for frame in decoder.decode(fed):
                number = shown.get(origin(frame), -1)
                if frame.is_corrupt:
                    raise UncertainError(f"a damaged frame instead of frame {number}")
                if 0 <= number < begin:
                    continue
                if number != next(due, None):
                    raise UncertainError(f"frame {number} comes out of order")
                if number in wanted:
                    yield frame
            if next(due, None) is not None:
                raise UncertainError("a frame is missing")


class _Packet(NamedTuple):
    offset: int
    size: int
    time: int
    picture: Picture


def unproven_index(path: str, number: int | None = None) -> PacketIndex:
    """An index by what the packets of a stream say.

    Raises:
        UncertainError: they do not say which frames come out of them.
        DecodeError: the file cannot be opened; what PyAV raises over others passes through.
    """
    with opened(path) as container, closing(ByteReader(path)) as file:
        if not any(name in container.format.name for name in FORMATS):
            raise UncertainError(f"{container.format.name} files are not read so")
        stream = chosen_stream(path, container, number)
        context = stream.codec_context
        look = inspector(context.codec.name, context.extradata or b"")
        found, first = [], None
        for packet in container.demux(stream):
            if packet.size:
                picture = look(bytes(packet))
                found.append(_checked(file, packet, picture))
                first = first or _first_frame(context, packet)
            elif packet.dts is not None:
                raise UncertainError("it has empty packets")
        if first is None:
            raise UncertainError("it has no packets")
        _check_end(path, container, stream, len(found))
        if not look.keeps_all(_reordered(found), holds_back=context.has_b_frames):
            raise UncertainError("frames may be lost while they are brought into order")
        order = _order(found)
        stamps = [found[place].time for place in order]
        index = PacketIndex(
            codec=context.codec.name,
            codec_tag=context.codec_tag,
            extradata=context.extradata or b"",
            width=first.width,
            height=first.height,
            quarters=quarter_turns(first),
            offsets=np.array([packet.offset for packet in found], dtype=np.int64),
            sizes=np.array([packet.size for packet in found], dtype=np.int32),
            flags=np.array([REFERENCE * p.picture.reference for p in found], dtype=np.uint8),
            packets=order,
            starts=np.zeros(0, dtype=np.int32),
            times=frame_times(stamps, stream.time_base, nominal_rate(stream)),
        )
        return with_starts(index, _starts(found))


def _checked(file: ByteReader, packet: Any, picture: Picture) -> _Packet:
    if packet.is_corrupt or packet.is_discard or any(packet.iter_sidedata()):
        raise UncertainError("it has packets that are cut, hidden or change the stream")
    if packet.pts is None:
        raise UncertainError("it has packets without a time")
    offset = content_offset(file, packet)
    if offset is None:
        raise UncertainError("its packets do not stand in the file as they are decoded")
    return _Packet(offset, packet.size, packet.pts, picture)


def _first_frame(context: Any, packet: Any) -> av.VideoFrame:
    """The frame of the first packet, which tells size and rotation."""
    frames: list[av.VideoFrame] = [*packet.decode(), *context.decode(None)]
    if len(frames) != 1 or frames[0].is_corrupt:
        raise UncertainError("its first packet gives no frame")
    return frames[0]


def _check_end(path: str, container: Any, stream: Any, num_packets: int) -> None:
    """Doubt every file that may have been cut off; which were, the full decode tells."""
    if num_packets < stream.frames:
        raise UncertainError("its header counts more frames")
    if "matroska" in container.format.name:
        expected = matroska_size(path)
        if expected is not None and state_of(path)[0] < expected:
            raise UncertainError("its header counts more bytes")


def _order(found: list[_Packet]) -> np.ndarray:
    """(F,) int32, the packets of the frames in the order they are shown."""
    shown = sorted((p.time, place) for place, p in enumerate(found) if p.picture.shown)
    places, times = {packet.offset for packet in found}, {time for time, _ in shown}
    if len(places) != len(found) or len(times) != len(shown):
        raise UncertainError("several packets have the same time or place")
    orders = [found[place].picture.order for _, place in shown]
    if orders != sorted(orders):
        raise UncertainError("its times are not in the order of its pictures")
    if shown[0][1] != 0:
        raise UncertainError("its first packet is not its first frame")
    return np.array([place for _, place in shown], dtype=np.int32)


def _reordered(found: list[_Packet]) -> int:
    """Frames that are decoded before another and shown after it, at most."""
    earlier: list[int] = []
    most = 0
    for packet in found:
        if packet.picture.shown:
            most = max(most, len(earlier) - bisect(earlier, packet.time))
            if most > MAX_REORDERED:
                raise UncertainError("its frames are reordered farther than any codec does")
            insort(earlier, packet.time)
    return most


def _starts(found: list[_Packet]) -> list[int]:
    starts = [place for place, packet in enumerate(found) if packet.picture.start]
    if not starts or starts[0] != 0:
        raise UncertainError("it does not begin with a key frame")
    second = starts[1] if len(starts) > 1 else len(found)
    if any(packet.picture.after_start for packet in found[:second]):
        raise UncertainError("it begins in the middle of a group of pictures")
    return starts
