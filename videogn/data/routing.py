"""Which files decord and torchcodec read exactly as a full decode does.

Both seek by the times and key frame marks of a file's packets, count packets for frames, and
convert colours by an older FFmpeg. So a form of file is given to them only where the conformance
suite (``benchmarks/conformance.py``) proves them right; every other goes to an exact reader.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from av.stream import Disposition

from videogn.data.evidence import matroska_size
from videogn.data.packet_scan import nal_length_bytes, nal_units
from videogn.data.rgb import CHROMA_STEPS
from videogn.data.video_files import chosen_stream, errors_named, opened

CONTAINERS = {"mov", "matroska"}
"""First of FFmpeg's names of a format: mp4 and its kin, Matroska and WebM."""
PROGRESSIVE = 1
"""Highest of FFmpeg's numbers of the order of fields that means there are none."""
H264_IDR = {5}
HEVC_IDR, HEVC_KEY = {19, 20}, set(range(16, 24))
"""Types of units at which decoding may start (H.264, 7.4.1; HEVC, 7.4.2.2)."""
SEQUENCE_HEADER = {"h264": 7, "hevc": 33}
"""Type of the unit that tells the size of pictures, for one."""


class Proven(NamedTuple):
    """What a backend was proven to read right.

    Attributes:
        codecs: FFmpeg's names of decoders, without what follows a hyphen or a "lib".
        edit_lists: it leaves out the frames that an edit list hides.
        odd_sizes: its colours are right at the edge of frames of an odd size.
        picks_stream: it can be told which video stream to read.
    """

    codecs: frozenset[str]
    edit_lists: bool
    odd_sizes: bool
    picks_stream: bool


PROVEN = {
    "decord": Proven(
        frozenset({"h264", "vp9"}), edit_lists=False, odd_sizes=False, picks_stream=False
    ),
    "torchcodec": Proven(
        frozenset({"h264", "hevc", "vp9", "av1"}),
        edit_lists=True,
        odd_sizes=True,
        picks_stream=True,
    ),
    # Never tried, for want of a GPU: it reads what the user insists on.
    "torchcodec_cuda": Proven(frozenset(), edit_lists=False, odd_sizes=False, picks_stream=True),
}
"""Value of ``data.reader`` -> what it reads right. Readers that are exact are not in it."""


@dataclass(frozen=True)
class Facts:
    """What headers, packets and the first frame tell about a video.

    Attributes:
        container: FFmpeg's first name of the format.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name.
        height, width: pixels of a frame as it is stored.
        num_streams: video streams, without cover pictures.
        num_hidden: packets of the best one that an edit list hides.
        is_interlaced: lines of two moments alternate.
        has_times: every packet has a time of its own.
        starts_clean: every packet marked as a key frame is one, the first packet too.
        starts_apart: none of them is decoded before the one before it is shown.
        is_uniform: no header within H.264 or HEVC video differs from those before it.
        is_whole: nothing says that the file was cut off.
    """

    container: str
    codec: str
    pixel_format: str
    height: int
    width: int
    num_streams: int
    num_hidden: int
    is_interlaced: bool
    has_times: bool
    starts_clean: bool
    starts_apart: bool
    is_uniform: bool
    is_whole: bool


def look(path: str, number: int | None = None) -> Facts:
    """The facts about a video's stream; reads all its packets.

    Args:
        number: of the stream among the file's video streams; None for the one ffmpeg calls best.

    Raises:
        DecodeError: the file cannot be opened, or holds no video.
    """
    with errors_named(path, lambda: "in the packets"), opened(path) as container:
        stream = chosen_stream(path, container, number)
        context = stream.codec_context
        seen, first = _Packets(context), None
        for packet in container.demux(stream):
            if packet.size:
                seen.add(packet)
            if seen.is_corrupt:
                break  # a header may claim millions more
            if first is None:
                first = next(iter(packet.decode()), None)
        return Facts(
            container=container.format.name.split(",")[0],
            codec=context.codec.canonical_name,
            pixel_format=context.format.name if context.format else "",
            height=context.height,
            width=context.width,
            num_streams=sum(not _is_cover(other) for other in container.streams.video),
            num_hidden=seen.num_hidden,
            # HEVC tells in its pictures alone, H.264 before, of fields that make up a picture;
            # PyAV before 18 does not pass on what it tells before.
            is_interlaced=getattr(context, "field_order", PROGRESSIVE) > PROGRESSIVE
            or (first is not None and first.interlaced_frame),
            has_times=None not in seen.times and len(seen.times) == seen.count,
            starts_clean=seen.starts_clean,
            starts_apart=seen.starts_apart,
            is_uniform=seen.is_uniform,
            is_whole=(
                not seen.is_corrupt
                and seen.count >= stream.frames
                and Path(path).stat().st_size >= (matroska_size(path) or 0)
            ),
        )


class _Packets:
    """What packets tell, one after the other."""

    def __init__(self, context: Any) -> None:
        self.count = self.num_hidden = 0
        self.times: set[int | None] = set()
        self.is_corrupt = False
        self.starts_clean = self.starts_apart = True
        self._start: int | None = None  # when the latest key frame is shown
        self.is_uniform = True
        self._codec = context.codec.canonical_name
        self._headers = context.extradata or b""
        self._length_bytes = nal_length_bytes(self._codec, self._headers)

    def add(self, packet: Any) -> None:
        """See the next packet."""
        is_first = self.count == 0
        self.count += 1
        self.num_hidden += packet.is_discard
        self.times.add(packet.pts)
        self.is_corrupt = self.is_corrupt or packet.is_corrupt
        if packet.is_keyframe:
            self._see_units(bytes(packet), is_first)
            # A search for a key frame by the time it is shown goes by the times of decoding.
            if None not in (packet.dts, self._start) and packet.dts <= self._start:
                self.starts_apart = False
            self._start = packet.pts
        elif is_first:
            self.starts_clean = False

    def _see_units(self, content: bytes, is_first: bool) -> None:
        """See whether decoding may start at a packet that is marked so, and with what headers.

        H.264 with intra refresh marks packets from which pictures become whole only by and by.
        Of HEVC, pictures shown before a first key frame that is no IDR are not shown at all.
        """
        if self._codec not in ("h264", "hevc"):
            return
        types = set()
        for unit in nal_units(content, self._length_bytes):
            kind = unit[0] & 31 if self._codec == "h264" else unit[0] >> 1 & 63
            types.add(kind)
            if kind == SEQUENCE_HEADER[self._codec] and unit not in self._headers:
                self.is_uniform = False
        starts = H264_IDR if self._codec == "h264" else HEVC_IDR if is_first else HEVC_KEY
        self.starts_clean = self.starts_clean and not types.isdisjoint(starts)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def why_exact(reader: str, facts: Facts) -> str | None:
    """Why a file is not for a backend; None where that is proven to read it right."""
    return next(_reasons(PROVEN[reader], facts), None)


def _reasons(proven: Proven, facts: Facts) -> Iterator[str]:
    if facts.container not in CONTAINERS:
        yield f"container {facts.container}"
    if facts.codec not in proven.codecs:
        yield f"codec {facts.codec}"
    if facts.pixel_format not in CHROMA_STEPS:
        yield f"pixel format {facts.pixel_format or 'unknown'}"
    if facts.is_interlaced:
        yield "interlaced"
    if not proven.odd_sizes and (facts.height % 2 or facts.width % 2):
        yield "odd size"
    if not proven.picks_stream and facts.num_streams > 1:
        yield "several video streams"
    if not proven.edit_lists and facts.num_hidden:
        yield "edit list"
    if not facts.has_times:
        yield "packets without times of their own"
    if not facts.starts_clean:
        yield "key frames without an IDR picture"
    if not facts.starts_apart:
        yield "key frames too close"
    if not facts.is_uniform:
        yield "headers that change"
    if not facts.is_whole:
        yield "cut off"
