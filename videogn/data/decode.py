"""Video files: frames by index, exactly those that a full decode gives.

Shapes: T frames, H x W pixels, 3 colours (RGB). Files are opened under an allow-list of formats
and protocols, so that none can make the decoder open another file or a network address.
"""

import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import av
import numpy as np
from av.stream import Disposition

from videogn.data.rgb import Box, RgbConverter, Stored, stored_as
from videogn.data.tar_members import check_member
from videogn.data.times import FrameTimes, frame_times
from videogn.errors import DecodeError
from videogn.files import locate, state_of

MAX_PIXELS = 1 << 25
"""Largest frame that is decoded: a crafted header may ask for gigabytes."""
MAX_SIDE = 16384
OPEN_OPTIONS = {
    # Neither list protects without the other: playlists are a format, http is a protocol.
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg",
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}
OPEN_SECONDS = READ_SECONDS = 10.0
# Titles and other tags may be in any encoding. PyAV 19 reads every one and takes no such argument;
# before, one that is not UTF-8 makes opening fail without it.
TAG_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
MAX_SECONDS = 1e8
"""No video lasts three years."""
KEPT_BYTES = 256 * 2**20
"""Decoded frames are kept for :meth:`VideoReader.frames` up to this size, about 1900 of 340x256."""

BAD_FILE_ERRORS = (
    *(av.error.FFmpegError, OSError, LookupError),
    *(ValueError, ArithmeticError, RuntimeError),
)
"""What PyAV raises over damaged files; a TypeError, say, is a fault of this package."""

FrameIndices = Sequence[int] | np.ndarray


class VideoReader(Protocol):
    """One video, its frames addressed by index.

    Attributes:
        num_frames: frames of a full decode; what headers claim is not asked.
        height, width: pixels of the first frame, upright.
    """

    num_frames: int
    height: int
    width: int

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, upright, (T, H, W, 3) uint8 RGB; an index may come more than once.

        Raises:
            DecodeError: the file cannot be decoded.
            IndexError: an index is outside [0, num_frames).
        """
        ...

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of strictly rising indices one by one, (H, W, 3) uint8 RGB, in one decode.

        A caller that scales each at once never holds the large ones together.

        Args:
            box: the part of every frame that is wanted; None for the whole.

        Raises:
            DecodeError: the file cannot be decoded.
            IndexError: an index is outside [0, num_frames).
        """
        ...

    def times(self) -> np.ndarray:
        """When each frame is shown, (num_frames,) float64 seconds since the first, never falling.

        Raises:
            DecodeError: the file tells neither times nor a frame rate.
        """
        ...


@runtime_checkable
class FrameSource(Protocol):
    """A reader that can give frames as the decoder does.

    Attributes:
        stored: how the frames are stored.
    """

    stored: Stored

    def decoded(self, indices: FrameIndices) -> Iterator[av.VideoFrame]:
        """Frames of strictly rising indices, in one decode; each is valid until the next.

        Raises:
            DecodeError: the file cannot be decoded.
            IndexError: an index is outside [0, num_frames).
        """
        ...


class DecodingReader(ABC):
    """What readers have in common that give frames as the decoder does."""

    _path: str
    num_frames: int
    height: int
    width: int
    stored: Stored

    @abstractmethod
    def decoded(self, indices: FrameIndices) -> Iterator[av.VideoFrame]:
        """Frames of rising indices, as :meth:`FrameSource.decoded` says."""

    @abstractmethod
    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, as :meth:`VideoReader.frames` says."""
        return gather(self, indices)

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of rising indices one by one, as :meth:`VideoReader.images` says."""
        return converted(self._path, self.decoded(indices), RgbConverter(self.stored, box))


class PyAVReader(DecodingReader):
    """Exact on every file: the whole stream is decoded once, in order, when the reader is made.

    Only wanted frames are converted to RGB. Frames of a video too large to keep are decoded a
    second time when they are asked for.

    Args:
        stream: number among the file's video streams; None for the one ffmpeg calls best.

    Raises:
        DecodeError: the file is missing, unreadable, damaged or cut off.
    """

    def __init__(self, path: str, stream: int | None = None) -> None:
        self._path = path
        self._stream = stream
        self._kept: list[av.VideoFrame] | None = []
        self._stamps: list[int | None] = []
        self._tick: Fraction | None = None
        self.num_frames = self.height = self.width = 0
        kept_bytes = 0
        for frame in decode_whole(path, stream):
            if self.num_frames == 0:
                self._tick = exact(frame.time_base)
                self.stored = stored_as(frame)
                self.height, self.width = self.stored.upright
            self.num_frames += 1
            self._stamps.append(frame.pts)
            kept_bytes += _bytes_of(frame)
            if kept_bytes > KEPT_BYTES:
                self._kept = None
            if self._kept is not None:
                self._kept.append(frame)

    def decoded(self, indices: FrameIndices) -> Iterator[av.VideoFrame]:
        """Frames of rising indices, as :meth:`FrameSource.decoded` says."""
        return self._pick(checked_indices(self.num_frames, indices))

    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""
        path = self._path
        with errors_named(path, lambda: "in the headers"), opened(path) as container:
            rate = nominal_rate(chosen_stream(path, container, self._stream))
        return known_seconds(path, frame_times(self._stamps, self._tick, rate))

    def _pick(self, rising: list[int]) -> Iterator[av.VideoFrame]:
        if self._kept is not None:
            yield from (self._kept[index] for index in rising)
            return
        remaining = iter(rising)
        target = next(remaining)
        for index, frame in enumerate(decode_whole(self._path, self._stream)):
            if index == target:
                yield frame
                target = next(remaining, -1)
                if target < 0:
                    return
        raise DecodeError(self._path, f"changed while it was read: frame {target} is gone")


def gather(video: VideoReader, indices: FrameIndices) -> np.ndarray:
    """Frames in any order and as often as asked, each read once."""
    unique, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    images = video.images(unique)
    first = next(images)
    frames = np.empty((len(unique), *first.shape), dtype=np.uint8)
    frames[0] = first
    for place, image in enumerate(images, start=1):
        frames[place] = image
    return frames[places]


def converted(
    path: str, frames: Iterable[av.VideoFrame], convert: RgbConverter
) -> Iterator[np.ndarray]:
    """Frames as images.

    Raises:
        DecodeError: their form has no RGB.
    """
    for frame in frames:
        with errors_named(path, lambda: "while converting a frame"):
            image = convert(frame)
        yield image


def checked_indices(num_frames: int, indices: FrameIndices) -> list[int]:
    """Indices as a list.

    Raises:
        IndexError: they do not rise strictly, or leave the video.
    """
    rising = [int(index) for index in indices]
    inside = bool(rising) and rising[0] >= 0 and rising[-1] < num_frames
    if not inside or any(a >= b for a, b in pairwise(rising)):
        raise IndexError(f"frames {rising} are not rising indices below {num_frames}")
    return rising


def known_seconds(path: str, times: FrameTimes) -> np.ndarray:
    """The times of a reader's frames, as :meth:`VideoReader.times` says.

    Raises:
        DecodeError: there are none.
    """
    seconds = times.seconds()
    if len(seconds) == 0:
        raise DecodeError(path, "tells neither the times of its frames nor a rate", "timestamps")
    if not 0 <= seconds[-1] < MAX_SECONDS:
        raise DecodeError(path, f"its last frame is shown after {seconds[-1]:g} s", "timestamps")
    return seconds


def packet_seconds(path: str, num_frames: int, number: int | None = None) -> np.ndarray:
    """The times of a stream's frames by its packets, for readers that do not tell them.

    Where packets and frames are not as many, frames follow each other at the rate of the headers.

    Raises:
        DecodeError: the file tells neither.
    """
    with errors_named(path, lambda: "while its times were read"), opened(path) as container:
        stream = chosen_stream(path, container, number)
        stamps: list[int | None] = sorted(
            packet.pts
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None and not packet.is_discard
        )
        if len(stamps) != num_frames:
            stamps = [None] * num_frames
        times = frame_times(stamps, stream.time_base, nominal_rate(stream))
    return known_seconds(path, times)


def decode_whole(path: str, number: int | None = None) -> Iterator[av.VideoFrame]:
    """Every frame of a video stream, in the order a player shows them.

    Args:
        number: of the stream, as :func:`chosen_stream` counts; None for the best one.

    Raises:
        DecodeError: anything is wrong with the file, also when only its end is missing.
    """
    count = 0
    with errors_named(path, lambda: f"after {count} frames"), opened(path) as container:
        stream = chosen_stream(path, container, number)
        evidence = Evidence(path, container, stream)
        for packet in container.demux(stream):
            evidence.see_packet(packet)
            for frame in packet.decode():
                evidence.see_frame(frame)
                count += 1
                yield frame
        evidence.judge()


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The container, opened under the rules at the top of this file.

    Raises:
        DecodeError: there is no regular file; what PyAV raises over others passes through.
    """
    check_regular_file(path)
    address, options = _address(path)
    with av.open(
        address,
        options=options,
        timeout=(OPEN_SECONDS, READ_SECONDS),
        **TAG_OPTIONS,
    ) as container:
        yield container


def _address(path: str) -> tuple[str, dict[str, str]]:
    """What FFmpeg opens, and its options; the bytes of a tar shard's member are a file to it."""
    part = locate(path)
    # An absolute path cannot be taken for a "scheme:", nor anything in it for an option.
    file = str(Path(part.file).absolute())
    if part.size is None:
        return file, OPEN_OPTIONS
    address = f"subfile,,start,{part.start},end,{part.start + part.size},,:{file}"
    return address, OPEN_OPTIONS | {"protocol_whitelist": "subfile,file"}


def check_regular_file(path: str) -> None:
    """Refuse what is no file.

    Raises:
        DecodeError: it is missing, a folder, a pipe or a device, or no path at all.
    """
    # Before anything opens it: a named pipe would block, whatever the timeout.
    if "\0" in path:
        raise DecodeError(path.replace("\0", "\\0"), "the path holds a NUL character")
    try:
        mode = Path(locate(path).file).stat().st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise DecodeError(path, "no such file", "missing") from error
        raise DecodeError(path, str(error.strerror)) from error
    if not stat.S_ISREG(mode):
        raise DecodeError(path, "a folder" if stat.S_ISDIR(mode) else "not a regular file")
    check_member(path)


def best_stream(path: str, container: Any) -> Any:
    """The video stream that ffmpeg calls best, as :func:`chosen_stream` gives it."""
    return chosen_stream(path, container, None)


def chosen_stream(path: str, container: Any, number: int | None) -> Any:
    """A video stream, ready to decode in one thread.

    Args:
        number: among the video streams, from 0 on (ffmpeg's ``v:0``); None for the one that
            ffmpeg calls best.

    Raises:
        DecodeError: there is none, or its pictures are too large.
    """
    videos = container.streams.video
    if number is not None and number >= len(videos):
        reason = f"no video stream {number}: it has {len(videos)}, counted from 0"
        raise DecodeError(path, reason, "no_video_stream")
    stream = container.streams.best("video") if number is None else videos[number]
    # The cover picture of a song counts as a stream of one frame.
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise DecodeError(path, "no video stream", "no_video_stream")
    context = stream.codec_context
    if context is None:
        raise DecodeError(path, "no decoder knows its video stream")
    width, height = context.width, context.height
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(path, f"frames of {width}x{height} pixels are too large", "huge")
    # The option given on opening bounds probing only, this one decoding.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    # Frame threads swallow errors at the end of cut files; loader workers give the parallelism.
    context.thread_type = "NONE"
    return stream


def nominal_rate(stream: Any) -> Fraction | None:
    """Frames per second that the headers claim; None where they do not."""
    return exact(stream.average_rate) or exact(stream.guessed_rate)


def exact(number: Any) -> Fraction | None:
    """A time base or rate as PyAV gives it; None where it is not set."""
    # Fractions or None before PyAV 19. It has a type of its own, which rounds to 32 bits and is
    # false, never None, where it is not set.
    return Fraction(number.numerator, number.denominator) if number else None


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


SEGMENT_ID = bytes.fromhex("18538067")


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


def _bytes_of(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


@contextmanager
def errors_named(path: str, where: Callable[[], str]) -> Iterator[None]:
    """Turn whatever a bad file makes PyAV raise into one error with the path."""
    try:
        yield
    except DecodeError:
        raise
    except MemoryError as error:
        reason = f"needs more memory than a worker may use ({where()})"
        raise DecodeError(path, reason, "huge") from error
    except BAD_FILE_ERRORS as error:
        raise DecodeError(path, f"decode error {where()}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The error's own words, without the path that FFmpeg appends to them."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
