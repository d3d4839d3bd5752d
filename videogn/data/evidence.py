"""Signs that a video file was cut off or overwritten."""

from pathlib import Path
from typing import Any, NoReturn

import av

from videogn.errors import DecodeError
from videogn.files import locate, state_of

SEGMENT_ID = bytes.fromhex("18538067")


class Evidence:
    """Signs that a file was cut off or overwritten, gathered while it is decoded.

    Found on real files cut at many places: a Matroska or WebM file is shorter than its segment
    says; every other format gives a packet or frame marked corrupt where the cut goes through
    one, and an mp4 cut between frames ends early against its header.
    Not found: other formats cut between packets, a cut that takes nothing of the video but its
    index, overwritten bytes that happen to parse as another picture, and pictures missing because
    the video was cut out of a longer one between key frames.
    """

    def __init__(self, path: str, container: Any, stream: Any) -> None:
        self._path = path
        self._format = container.format.name
        self._stream = stream
        self._packets = self._frames = 0
        self._start = self._end = 0.0
        self._sum = 0.0  # seconds that the packets claim to be shown

    def see_packet(self, packet: Any) -> None:
        """Count a packet; the last, empty one flushes the decoder."""
        self._packets += packet.size > 0
        if packet.duration and not packet.is_discard:
            self._sum += float(packet.duration * packet.time_base)
        if packet.is_corrupt:
            reason = f"truncated or damaged after {self._frames} frames"
            raise DecodeError(self._path, reason, "truncated")

    def see_frame(self, frame: av.VideoFrame) -> None:
        """Count a frame and the time it is shown until."""
        if frame.is_corrupt:
            raise DecodeError(self._path, f"damaged at frame {self._frames}")
        if frame.time is not None:
            self._start = frame.time if self._frames == 0 else self._start
            shown = frame.duration * float(frame.time_base or 0) if frame.duration else 0.0
            self._end = max(self._end, frame.time + shown)
        self._frames += 1

    def judge(self) -> None:
        """Compare what came with what the headers claim."""
        if self._frames == 0:
            self._judge_nothing()
        if "matroska" in self._format:
            self._judge_size()
            return
        claimed = self._stream.frames
        short = self._packets < claimed - max(2, 0.01 * claimed)
        # A count alone proves nothing: an edit list hides frames that mp4 counts, and avi counts
        # the pauses of a video too. Both know how long it lasts.
        if short and self._ends_early():
            reason = f"truncated: holds {self._packets} of {claimed} frames"
            raise DecodeError(self._path, reason, "truncated")

    def _judge_nothing(self) -> NoReturn:
        claimed, size = self._stream.frames, state_of(self._path)[0]
        # A table of so many frames finds no memory, and FFmpeg goes on without it.
        if claimed > size:
            raise DecodeError(self._path, f"claims {claimed} frames in {size} bytes", "huge")
        raise DecodeError(self._path, "no frames", "zero_frames")

    def _ends_early(self) -> bool:
        if self._stream.duration is None:
            return True
        duration = float(self._stream.duration * self._stream.time_base)
        # The last frame of a cut mp4 may be a late one, decoded before those between; avi has no
        # such order, but its pauses belong to no packet.
        lasted = self._sum if "mov" in self._format else self._end - self._start
        return lasted < 0.99 * duration - 0.1

    def _judge_size(self) -> None:
        expected, size = matroska_size(self._path), state_of(self._path)[0]
        if expected is not None and size < expected:
            reason = f"truncated: holds {size} of {expected} bytes"
            raise DecodeError(self._path, reason, "truncated")


def matroska_size(path: str) -> int | None:
    """Bytes a Matroska or WebM file must have by its own header; None where it does not say."""
    part = locate(path)
    with Path(part.file).open("rb") as file:
        file.seek(part.start)
        head = file.read(256)
    length, width = _ebml_number(head, 4)  # behind the EBML header's identifier
    segment = 4 + width + (length or 0)
    if length is None or head[segment : segment + 4] != SEGMENT_ID:
        return None
    size, width = _ebml_number(head, segment + 4)
    return None if size is None else segment + 4 + width + size


def _ebml_number(data: bytes, start: int) -> tuple[int | None, int]:
    """An EBML number and its width in bytes; all ones stand for "unknown"."""
    if start >= len(data) or data[start] == 0:
        return None, 0
    width = 9 - data[start].bit_length()
    value = int.from_bytes(data[start : start + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width
