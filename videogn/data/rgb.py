"""Decoded frames as RGB images, or cut out of their planes, whole or only the part that is used.

Shapes: H x W pixels, 3 colours. Boxes are given in upright pixels, as the viewer sees a frame.
"""

from collections.abc import Iterator
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

CHROMA_STEPS = {
    **{"yuv420p": (2, 2), "yuvj420p": (2, 2)},
    **{"yuv422p": (1, 2), "yuvj422p": (1, 2)},
    **{"yuv444p": (1, 1), "yuvj444p": (1, 1)},
}
"""Pixel formats that are cropped before they are converted: luma rows and columns per chroma
sample. Nearly all videos have one of them; others are converted whole and cropped then."""


ALIGNED = 2
"""A cut begins and ends at even rows and columns, where every format has chroma samples."""
UNSAID = 2
"""FFmpeg's number for primaries or a transfer function that a file does not tell."""


class Box(NamedTuple):
    """A part of an upright frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows of a frame."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of a frame."""
        return slice(self.left, self.left + self.width)


class Stored(NamedTuple):
    """How a video's frames are stored, by its first.

    Attributes:
        height, width: pixels.
        quarters: counter-clockwise quarter turns that set a frame upright.
    """

    height: int
    width: int
    quarters: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of an upright frame."""
        return upright_size(*self)

    def locate(self, box: Box | None) -> Box:
        """Where an upright box lies in a stored frame; None stands for the whole."""
        return _as_stored(box or Box(0, 0, *self.upright), *self)


class RgbConverter:
    """Frames as upright RGB images, all of the size and rotation of the video's first.

    Args:
        stored: how frames are stored.
        box: the part that is wanted; None for the whole frame.
        size: height and width to which images are scaled, bilinear in 8 bits, where that can be
            done before they get their colours; the others keep the size of the box.
    """

    def __init__(
        self, stored: Stored, box: Box | None = None, size: tuple[int, int] | None = None
    ) -> None:
        # One scaler for all frames: PyAV would make one per frame, with as many threads as cores.
        self._reformatter = VideoReformatter()
        self._stored = stored
        self._box = stored.locate(box)
        self._part: av.VideoFrame | None = None
        # As it is stored; None where nothing is scaled, or colours would be shared with neighbours.
        self._size: tuple[int, int] | None = None
        if size is not None and self._box == aligned(self._box, stored):
            size = (size[1], size[0]) if stored.quarters % 2 else size
            self._size = None if size == self._box[2:] else size

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame's box as (H, W, 3) uint8; unscaled, a cut out of the whole frame's image."""
        stored, (top, left, rows, columns) = self._stored, self._box
        whole = stored.height, stored.width
        if not can_cut(frame, stored):
            image = self._converted(frame, *whole)
        elif self._size is not None:
            # Half the samples of RGB are scaled.
            top, left, (rows, columns) = 0, 0, self._size
            image = self._converted(self._cut(frame, self._box, rows, columns))
        elif (rows, columns) != whole:
            outer = aligned(self._box, stored)
            top, left = top - outer.top, left - outer.left
            image = self._converted(self._cut(frame, outer, outer.height, outer.width))
        else:
            image = self._converted(frame)
        return np.rot90(image[top : top + rows, left : left + columns], stored.quarters)

    def _cut(self, frame: av.VideoFrame, box: Box, height: int, width: int) -> av.VideoFrame:
        """The samples of an aligned box, at a size, in a frame that is used again.

        Its sides are even, as those of all frames that the scaler converts alike; samples behind
        the given size mean nothing.
        """
        part = self._part
        shape = width + width % 2, height + height % 2, frame.format.name
        if part is None or (part.width, part.height, part.format.name) != shape:
            part = self._part = av.VideoFrame(*shape)
        sizes = plane_sizes(frame.format.name, height, width)
        for source, plane, (rows, columns) in zip(
            plane_parts(frame, box), part.planes, sizes, strict=True
        ):
            target = _samples(plane)[:rows, :columns]
            cv2.resize(source, (columns, rows), dst=target, interpolation=cv2.INTER_LINEAR)
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        return part

    def _converted(self, frame: av.VideoFrame, height: int = 0, width: int = 0) -> np.ndarray:
        converted = self._reformatter.reformat(
            without_light(frame),
            width=width or frame.width,
            height=height or frame.height,
            format="rgb24",
            threads=1,
        )
        plane = converted.planes[0]
        pixels = _samples(plane)[:, : 3 * plane.width]
        return pixels.reshape(plane.height, plane.width, 3)


def stored_as(frame: av.VideoFrame) -> Stored:
    """How a video is stored whose first frame this is."""
    return Stored(frame.height, frame.width, quarter_turns(frame))


def without_light(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame itself, its primaries and transfer function forgotten, for the scaler.

    No scaling here converts them. PyAV 17 passes them on all the same, and FFmpeg refuses frames
    with some, which films carry; from 18 on PyAV withholds them.
    """
    frame.color_primaries = frame.color_trc = UNSAID
    return frame


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that set a frame upright, by its rotation tag."""
    return round(frame.rotation / 90) % 4


def can_cut(frame: av.VideoFrame, stored: Stored) -> bool:
    """Whether a cut out of a frame's planes is the same as one out of the converted frame."""
    same_size = (frame.height, frame.width) == (stored.height, stored.width)
    # The scaler rounds otherwise in frames of an odd size.
    even = frame.height % 2 == 0 and frame.width % 2 == 0
    return same_size and even and frame.format.name in CHROMA_STEPS and not _fields(frame)


def plane_sizes(pixels: str, height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of each plane of a frame in one of :data:`CHROMA_STEPS`."""
    rows, columns = CHROMA_STEPS[pixels]
    chroma = -(-height // rows), -(-width // columns)
    return [(height, width), chroma, chroma]


def plane_parts(frame: av.VideoFrame, box: Box) -> Iterator[np.ndarray]:
    """The samples of an aligned box in each plane, (rows, columns) uint8, the frame's memory."""
    places = plane_sizes(frame.format.name, box.top, box.left)
    sizes = plane_sizes(frame.format.name, box.height, box.width)
    for plane, (top, left), (rows, columns) in zip(frame.planes, places, sizes, strict=True):
        yield _samples(plane)[top : top + rows, left : left + columns]


def aligned(box: Box, stored: Stored) -> Box:
    """The box extended to even places, or to the frame's end."""
    top, left = box.top - box.top % ALIGNED, box.left - box.left % ALIGNED
    bottom = min(stored.height, -(-(box.top + box.height) // ALIGNED) * ALIGNED)
    right = min(stored.width, -(-(box.left + box.width) // ALIGNED) * ALIGNED)
    return Box(top, left, bottom - top, right - left)


def _samples(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """(rows, bytes of a line) uint8, the plane's own memory; lines end in padding."""
    return np.ndarray((plane.height, plane.line_size), np.uint8, buffer=memoryview(plane))


def _fields(frame: av.VideoFrame) -> bool:
    # Lines of two moments alternate: the scaler may take the chroma of each by itself.
    return bool(frame.interlaced_frame)


def upright_size(height: int, width: int, quarters: int) -> tuple[int, int]:
    """Height and width of a stored frame when it is turned upright."""
    return (width, height) if quarters % 2 else (height, width)


def _as_stored(box: Box, height: int, width: int, quarters: int) -> Box:
    """Where an upright box lies in a stored frame of ``height x width`` that is turned so."""
    top, left, rows, columns = box
    if quarters == 1:
        return Box(left, width - top - rows, columns, rows)
    if quarters == 2:
        return Box(height - top - rows, width - left - columns, rows, columns)
    if quarters == 3:
        return Box(height - left - columns, top, columns, rows)
    return box
