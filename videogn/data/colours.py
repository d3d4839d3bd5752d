"""Frames to images and images to a network's input, a kernel each, on GPUs that have Triton.

By torch's operations alone they are forty kernels for each clip, whose starting alone can take a
training step's host longer than the network's. Shapes: U frames, H x W pixels; B clips of T frames.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from videogn.trying import works

BLOCK = 512


class Conversion(NamedTuple):
    """What is made of planar frames, in numbers.

    Attributes:
        planes: rows and columns of the luma, and of each chroma plane.
        scaled: the same of the scaled image.
        steps: luma rows and columns per chroma sample.
        kept: top, left, height and width of the part of the scaled image that remains.
        mirror: whether left and right are exchanged.
        luma: what is taken off, and the factor after that.
        gains: factors of red's and blue's difference from 128.
        green: factors by which these make green's difference.
    """

    planes: tuple[tuple[int, int], tuple[int, int]]
    scaled: tuple[tuple[int, int], tuple[int, int]]
    steps: tuple[int, int]
    kept: tuple[int, int, int, int]
    mirror: bool
    luma: tuple[float, float]
    gains: tuple[float, float]
    green: tuple[float, float]


def finish(samples: Tensor, what: Conversion, kernels: ModuleType) -> Tensor:
    """(U, frame_bytes) uint8 samples of planar frames as images (U, H, W, 3) uint8."""
    num_frames, frame_bytes = samples.shape
    (rows, columns), (chroma_rows, chroma_columns) = what.planes
    top, left, height, width = what.kept
    images = samples.new_empty((num_frames, height, width, 3))
    grid = (-(-height * width // BLOCK), num_frames)
    kernels.finish_kernel[grid](
        samples,
        images,
        frame_bytes,
        rows,
        columns,
        chroma_rows,
        chroma_columns,
        height,
        width,
        top,
        left,
        rows / what.scaled[0][0],
        columns / what.scaled[0][1],
        chroma_rows / what.scaled[1][0],
        chroma_columns / what.scaled[1][1],
        *what.luma,
        *what.gains,
        *what.green,
        chroma_rows=what.steps[0],
        chroma_columns=what.steps[1],
        mirror=what.mirror,
        block=BLOCK,
    )
    return images


def strides_of(clips: Tensor) -> tuple[int, int] | None:
    """From colour to colour and from sample to sample of clips (B, 3, T, H, W) without gaps.

    None where their samples do not lie one after the other.
    """
    pixels = clips[0, 0].numel()
    if clips.is_contiguous():
        return pixels, 1
    return (1, 3) if clips.is_contiguous(memory_format=torch.channels_last_3d) else None


def normalized(
    clips: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    out: Tensor,
    kernels: ModuleType,
) -> bool:
    """Write clips (B, 3, T, H, W) uint8 times ``scale`` plus ``shift`` of each colour into ``out``.

    False, with nothing written, where either lies in memory as the kernel does not know.
    """
    source = strides_of(clips) if clips.numel() else None
    target = strides_of(out)
    if source is None or target is None:
        return False
    pixels = clips[0, 0].numel()
    kernels.normalize_kernel[(-(-pixels // BLOCK), len(clips))](
        clips, out, pixels, *source, *target, *scale, *shift, block=BLOCK
    )
    return True


def kernels_for(device: torch.device) -> ModuleType | None:
    """The kernels where they run and are right; None on a CPU, and where they do not or are not."""
    return None if device.type != "cuda" else _tried(device)


@functools.cache
def _tried(device: torch.device) -> ModuleType | None:
    """The kernels where they run on a device and are right; tried once, with a warning if not."""

    def grey_of_grey() -> bool:
        grey = torch.full((1, 6), 128, dtype=torch.uint8, device=device)
        planes = ((2, 2), (1, 1))
        what = Conversion(
            planes, planes, (2, 2), (0, 0, 2, 2), False, (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)
        )
        return bool((finish(grey, what, _kernels()) == 128).all())

    return (
        _kernels()
        if works(grey_of_grey, "colours are worked out by torch's own operations")
        else None
    )


def _kernels() -> ModuleType:
    return importlib.import_module("videogn.data.colours_triton")
