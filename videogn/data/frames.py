"""Frames on their way from the decoder to the network: their bytes, and how to read them.

Colour, scaling and mirroring are done either where the frames are decoded or where they are used.
Done there, frames travel as the decoder gives them: the luma and chroma samples of the part that
is used, half as many bytes as RGB. Shapes: U frames, C = 3 colours, H x W pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videogn.data.colours import Conversion, finish, kernels_for
from videogn.data.decode import FrameSource, VideoReader, converted
from videogn.data.images import ImageReader
from videogn.data.rgb import (
    CHROMA_STEPS,
    Box,
    RgbConverter,
    Stored,
    aligned,
    can_cut,
    plane_parts,
    plane_sizes,
)
from videogn.data.transforms import scale_into

RGB = "rgb24"
MATRICES = {
    **dict.fromkeys((0, 2, 5, 6), (0.299, 0.114)),  # BT.601, also where nothing is said
    **{1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)},
}
"""Tag of a matrix (ITU-T H.273, table 4) -> the shares of red and blue in luma."""

FULL_RANGE = 2
CHUNK_PIXELS = 2**22
"""Frames are given their colours together up to this many pixels: 12 bytes each in floats."""


class Wanted(NamedTuple):
    """What is made of upright frames.

    Attributes:
        box: the part that is used; None for the whole.
        size: height and width to which it is scaled.
        kept: the part of the scaled image that remains; None for the whole.
        mirror: whether left and right are exchanged.
        cubic: whether it is scaled bicubically, as images always are, not bilinearly.
    """

    box: Box | None
    size: tuple[int, int]
    kept: Box | None = None
    mirror: bool = False
    cubic: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of a finished image."""
        height, width = self.size if self.kept is None else self.kept[2:]
        return height, width, 3


class Form(NamedTuple):
    """How the bytes of frames are to be read, and what is still to be done.

    Attributes:
        pixels: ``rgb24``, (H, W, 3) and finished, or the planar format of a decoder's frames.
        num_frames: U.
        height, width: pixels of a frame.
        quarters: counter-clockwise quarter turns that set it upright.
        matrix: tag of the colour matrix.
        full_range: whether luma spans 0 to 255 rather than 16 to 235.
        size, kept, mirror: as in :class:`Wanted`.
    """

    pixels: str
    num_frames: int
    height: int
    width: int
    quarters: int
    matrix: int
    full_range: bool
    size: tuple[int, int]
    kept: Box | None
    mirror: bool

    @classmethod
    def finished(cls, num_frames: int, height: int, width: int) -> "Form":
        """Of RGB images to which nothing is to be done."""
        return cls(RGB, num_frames, height, width, 0, 0, True, (height, width), None, False)

    @property
    def is_finished(self) -> bool:
        """Whether the bytes are RGB images."""
        return self.pixels == RGB

    @property
    def plane_shapes(self) -> list[tuple[int, int]]:
        """Rows and bytes of a row of each plane."""
        if self.is_finished:
            return [(self.height, 3 * self.width)]
        return plane_sizes(self.pixels, self.height, self.width)

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return sum(rows * row for rows, row in self.plane_shapes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all frames."""
        return self.num_frames * self.frame_bytes


class Frames(NamedTuple):
    """Frames of one video as bytes.

    Attributes:
        form: how to read them.
        samples: (form.num_bytes,) uint8.
    """

    form: Form
    samples: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Frames":
        """Finished images, (C, U, H, W) uint8."""
        _, num_frames, height, width = images.shape
        form = Form.finished(num_frames, height, width)
        return cls(form, images.permute(1, 2, 3, 0).reshape(-1))

    @classmethod
    def in_memory(cls, form: Form, memory: np.ndarray) -> "Frames":
        """Those at the start of ``memory`` (bytes,) uint8, which is not copied."""
        return cls(form, torch.from_numpy(memory[: form.num_bytes]))

    def to(self, device: torch.device) -> "Frames":
        """The same on a device."""
        return self._replace(samples=self.samples.to(device, non_blocking=True))

    def rgb(self) -> Tensor:
        """The finished frames, (C, U, H, W) uint8, on the samples' device."""
        form = self.form
        if form.is_finished:
            images = self.samples.view(form.num_frames, form.height, form.width, 3)
            return images.permute(3, 0, 1, 2)
        samples = self.samples.view(form.num_frames, form.frame_bytes)
        kernels = None if form.quarters else kernels_for(samples.device)
        if kernels is not None:
            return finish(samples, _conversion(form), kernels).permute(3, 0, 1, 2)
        pixels = max(form.height * form.width, form.size[0] * form.size[1])
        parts = torch.split(samples, max(1, CHUNK_PIXELS // pixels))
        return torch.cat([_finished(part, form) for part in parts]).transpose(0, 1)


def _finished(samples: Tensor, form: Form) -> Tensor:
    """(U, C, H, W) uint8 of (U, frame_bytes) samples of a planar form."""
    size = form.size[1], form.size[0]
    sizes = plane_sizes(form.pixels, *(size if form.quarters % 2 else form.size))
    planes = zip(_planes(samples, form), sizes, strict=True)
    luma, blue, red = (_scaled(plane, shape) for plane, shape in planes)
    images = _colours(luma, blue, red, form)
    images = torch.rot90(images, form.quarters, (2, 3))
    if form.kept is not None:
        images = images[..., form.kept.rows, form.kept.columns]
    if form.mirror:
        images = images.flip(3)
    return images.round_().to(torch.uint8)


def _conversion(form: Form) -> Conversion:
    """What :func:`_finished` does, in numbers, of frames that are not turned."""
    share_red, share_blue = MATRICES[form.matrix]
    share_green = 1 - share_red - share_blue
    luma_step, chroma_step = (1.0, 1.0) if form.full_range else (255 / 219, 255 / 224)
    planes = plane_sizes(form.pixels, form.height, form.width)
    scaled = plane_sizes(form.pixels, *form.size)
    return Conversion(
        planes=(planes[0], planes[1]),
        scaled=(scaled[0], scaled[1]),
        steps=CHROMA_STEPS[form.pixels],
        kept=form.kept or Box(0, 0, *form.size),
        mirror=form.mirror,
        luma=(0.0 if form.full_range else 16.0, luma_step),
        gains=(chroma_step * 2 * (1 - share_red), chroma_step * 2 * (1 - share_blue)),
        green=(-share_red / share_green, -share_blue / share_green),
    )


def _planes(samples: Tensor, form: Form) -> Iterator[Tensor]:
    """Each plane, (U, 1, rows, columns) uint8."""
    start = 0
    for rows, columns in form.plane_shapes:
        yield samples[:, start : start + rows * columns].view(-1, 1, rows, columns)
        start += rows * columns


def _scaled(plane: Tensor, size: tuple[int, int]) -> Tensor:
    values = plane.float()
    return values if plane.shape[2:] == size else F.interpolate(values, size, mode="bilinear")


def _colours(luma: Tensor, blue: Tensor, red: Tensor, form: Form) -> Tensor:
    """(U, C, H, W) float32 in [0, 255]: the matrix of ITU-T H.273, equation 8.3."""
    share_red, share_blue = MATRICES[form.matrix]
    share_green = 1 - share_red - share_blue
    luma_step, chroma_step = (1.0, 1.0) if form.full_range else (255 / 219, 255 / 224)
    luma = (luma - (0 if form.full_range else 16)) * luma_step
    blue = (blue - 128) * (chroma_step * 2 * (1 - share_blue))
    red = (red - 128) * (chroma_step * 2 * (1 - share_red))
    green = (blue * share_blue + red * share_red) / -share_green
    # Every luma sample takes the chroma sample it shares, as the converter of the CPU does.
    rows, columns = CHROMA_STEPS[form.pixels]
    spread = torch.cat([red, green, blue], 1)
    spread = spread.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    return (spread[..., : luma.shape[2], : luma.shape[3]] + luma).clamp_(0, 255)


def write_frames(
    memory: np.ndarray,
    video: VideoReader,
    path: str,
    indices: Sequence[int] | np.ndarray,
    wanted: Wanted,
    *,
    planar: bool,
) -> Form:
    """Decode frames into ``memory`` (bytes,) uint8, which must hold them when they are finished.

    Args:
        path: the video's, for errors.
        indices: which frames, rising strictly.
        planar: whether they may be left as the decoder gives them, where memory suffices and
            their form allows; the others are finished.

    Raises:
        DecodeError: they cannot be decoded.
    """
    if isinstance(video, ImageReader):
        wanted = wanted._replace(cubic=True)
    if not isinstance(video, FrameSource):
        return _write_finished(memory, video.images(indices, wanted.box), len(indices), wanted)
    frames = video.decoded(indices)
    box = video.stored.locate(wanted.box)
    if planar and not wanted.cubic and box == aligned(box, video.stored):
        first = next(frames)
        frames = chain([first], frames)
        form = _form_of(first, video.stored, box, len(indices), wanted)
        if form is not None and form.num_bytes <= len(memory):
            if _write_planes(memory, frames, video.stored, box, form):
                return form
            # Frames of another form follow the first: rare enough to be decoded again.
            frames = video.decoded(indices)
    convert = RgbConverter(video.stored, wanted.box, None if wanted.cubic else wanted.size)
    return _write_finished(memory, converted(path, frames, convert), len(indices), wanted)


def _write_finished(
    memory: np.ndarray, images: Iterator[np.ndarray], num_frames: int, wanted: Wanted
) -> Form:
    form = Form.finished(num_frames, *wanted.shape[:2])
    targets = memory[: form.num_bytes].reshape(num_frames, *wanted.shape)
    whole = np.empty((*wanted.size, 3), np.uint8) if wanted.kept else None
    for target, image in zip(targets, images, strict=True):
        if whole is not None and wanted.kept is not None:
            scale_into(whole, image, cubic=wanted.cubic)
            image = whole[wanted.kept.rows, wanted.kept.columns]
        scale_into(target, image, mirror=wanted.mirror, cubic=wanted.cubic)
    return form


def _form_of(
    frame: av.VideoFrame, stored: Stored, box: Box, num_frames: int, wanted: Wanted
) -> Form | None:
    """The form in which an aligned box of such frames travels; None where it has to be finished."""
    if not can_cut(frame, stored) or int(frame.colorspace) not in MATRICES:
        return None
    return Form(
        pixels=frame.format.name,
        num_frames=num_frames,
        height=box.height,
        width=box.width,
        quarters=stored.quarters,
        matrix=int(frame.colorspace),
        full_range=_is_full(frame),
        size=wanted.size,
        kept=wanted.kept,
        mirror=wanted.mirror,
    )


def _is_full(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL_RANGE


def _write_planes(
    memory: np.ndarray, frames: Iterator[av.VideoFrame], stored: Stored, box: Box, form: Form
) -> bool:
    """Write the samples of an aligned box; False where a frame is of another form."""
    place = 0
    for frame in frames:
        about = frame.format.name, int(frame.colorspace), _is_full(frame)
        if about != (form.pixels, form.matrix, form.full_range) or not can_cut(frame, stored):
            return False
        for part in plane_parts(frame, box):
            memory[place : place + part.size].reshape(part.shape)[:] = part
            place += part.size
    return True
