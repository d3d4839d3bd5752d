"""Video files: frames by index, exactly those that a full decode gives.

Shapes: T frames, H x W pixels, 3 colours (RGB).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Protocol, runtime_checkable

import av
import numpy as np

from videogn.data.evidence import Evidence
from videogn.data.rgb import Box, RgbConverter, Stored, stored_as
from videogn.data.times import FrameTimes, frame_times
from videogn.data.video_files import (
    chosen_stream,
    errors_named,
    exact,
    nominal_rate,
    opened,
)
from videogn.errors import DecodeError

MAX_SECONDS = 1e8
"""No video lasts three years."""
KEPT_BYTES = 256 * 2**20
"""Decoded frames are kept for :meth:`VideoReader.frames` up to this size, about 1900 of 340x256."""

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


def _bytes_of(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
