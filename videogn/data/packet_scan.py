"""Making a packet index: a full decode tells what there is, and reading by it must give the same.

A file whose frames come out otherwise has no index, and a reason.
"""

import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np

from videogn.data.evidence import Evidence
from videogn.data.packets import (
    REFERENCE,
    ByteReader,
    PacketIndex,
    decode_frames,
    mark,
    origin,
)
from videogn.data.rgb import Stored, stored_as
from videogn.data.times import FrameTimes, frame_times
from videogn.data.video_files import chosen_stream, errors_named, nominal_rate, opened
from videogn.errors import DecodeError

MAX_HEADER = 64
"""Bytes between a packet's position and its content: Matroska puts a block header there."""


class NotIndexableError(Exception):
    """The file is sound, but a packet index cannot address its frames; the text says why."""


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
                    mark(packet, len(found.sizes))
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
