"""Decoded frames as RGB images, or cut out of their planes, whole or only the part that is used.

Shapes: H x W pixels, 3 colours. Boxes are given in upright pixels, as the viewer sees a frame.
"""

from collections.abc import Iterator
from typing import NamedTuple

import av
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
    """

    def __init__(self, stored: Stored, box: Box | None = None) -> None:
        # One scaler for all frames: PyAV would make one per frame, with as many threads as cores.
        self._reformatter = VideoReformatter()
        self._stored = stored
        self._box = stored.locate(box)
        self._part: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame's box as (H, W, 3) uint8, the same values as a cut out of the whole frame."""
        height, width, quarters = self._stored
        top, left, rows, columns = self._box
        if (rows, columns) != (height, width) and can_cut(frame, self._stored):
            outer = aligned(self._box, self._stored)
            image = self._converted(self._cut(frame, outer), outer.height, outer.width)
            top, left = top - outer.top, left - outer.left
        else:
            image = self._converted(frame, height, width)
        return np.rot90(image[top : top + rows, left : left + columns], quarters)

    def _cut(self, frame: av.VideoFrame, box: Box) -> av.VideoFrame:
        """The samples of an aligned box, in a frame that is used again."""
        part = self._part
        shape = box.width, box.height, frame.format.name
        if part is None or (part.width, part.height, part.format.name) != shape:
            part = self._part = av.VideoFrame(*shape)
        for source, target in zip(plane_parts(frame, box), part.planes, strict=True):
            height, width = source.shape
            _samples(target)[:height, :width] = source
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        return part

    def _converted(self, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        converted = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", threads=1
        )
        plane = converted.planes[0]
        pixels = _samples(plane)[:, : 3 * plane.width]
        return pixels.reshape(plane.height, plane.width, 3)


def stored_as(frame: av.VideoFrame) -> Stored:
    """How a video is stored whose first frame this is."""
    return Stored(frame.height, frame.width, quarter_turns(frame))


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that set a frame upright, by its rotation tag."""
    return round(frame.rotation / 90) % 4


def can_cut(frame: av.VideoFrame, stored: Stored) -> bool:
    """Whether a cut out of a frame's planes is the same as one out of the converted frame."""
    same_size = (frame.height, frame.width) == (stored.height, stored.width)
    # The scaler rounds otherwise in frames of an odd size.
    even = frame.height % 2 == 0 and frame.width % 2 == 0
    return same_size and even and frame.format.name in CHROMA_STEPS and not _fields(frame)


def plane_parts(frame: av.VideoFrame, box: Box) -> Iterator[np.ndarray]:
    """The samples of an aligned box in each plane, (rows, columns) uint8, the frame's memory."""
    steps = CHROMA_STEPS[frame.format.name]
    for number, plane in enumerate(frame.planes):
        rows, columns = steps if number else (1, 1)
        top, left = box.top // rows, box.left // columns
        height, width = -(-box.height // rows), -(-box.width // columns)
        yield _samples(plane)[top : top + height, left : left + width]


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
