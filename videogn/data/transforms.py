"""What happens to a clip between decoding and the network.

Shapes: B clips, C = 3 colours, T frames, H x W pixels. Clips stay uint8 until they are on the
device. Whatever is drawn is drawn once for a whole clip.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from videogn.data.colours import kernels_for, normalized
from videogn.data.rgb import Box


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width at a short side; the longer is rounded down, as in the released code."""
    shorter = min(height, width)
    return short_side * height // shorter, short_side * width // shorter


def center_box(height: int, width: int, size: int) -> Box:
    """The square in the middle of a frame."""
    return Box((height - size) // 2, (width - size) // 2, size, size)


def square_boxes(height: int, width: int, places: tuple[int, ...]) -> tuple[Box, ...]:
    """Squares of the shorter side that begin at the given places along the longer one."""
    size = min(height, width)
    corners = [(place, 0) if height > width else (0, place) for place in places]
    return tuple(Box(top, left, size, size) for top, left in corners)


@dataclass(frozen=True)
class Augmentation:
    """What one training clip goes through (non-local paper, section 4.1).

    Attributes:
        short_side: pixels of the shorter side after scaling.
        top, left: position of the crop as a share of the room it has, in [0, 1).
        flip: whether left and right are exchanged.
    """

    short_side: int
    top: float
    left: float
    flip: bool


def draw_augmentation(
    rng: np.random.Generator, short_side_min: int, short_side_max: int, flip_probability: float
) -> Augmentation:
    """Draw scale, position and mirroring; the scale is uniform on [min, max], both included."""
    return Augmentation(
        short_side=int(rng.integers(short_side_min, short_side_max + 1)),
        top=float(rng.random()),
        left=float(rng.random()),
        flip=bool(rng.random() < flip_probability),
    )


def source_box(draw: Augmentation, height: int, width: int, crop_size: int) -> Box:
    """The part of an upright frame of ``height x width`` that becomes a clip's crop.

    Scaling a frame to a short side and cutting a square of ``crop_size`` out of it uses a square
    of the unscaled frame; only that is converted and scaled. Its side and place are rounded to two
    pixels, which share a sample of colour.
    """
    shorter = min(height, width)
    side = min(max(2 * round(crop_size * shorter / draw.short_side / 2), 2), shorter)
    # A share in [0, 1) of room + 1 positions is a uniform integer on [0, room].
    top = 2 * int(draw.top * ((height - side) // 2 + 1))
    left = 2 * int(draw.left * ((width - side) // 2 + 1))
    return Box(top, left, side, side)


AREA_SHARES = 0.08, 1.0
"""Least and largest share of a frame that a crop of random area takes."""
ASPECTS = 3 / 4, 4 / 3
"""Of its height and width before they are exchanged by chance."""
AREA_TRIES = 10


def draw_area_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """A part of a frame with random area and aspect, as fb.resnet.torch draws it for ImageNet.

    Area and aspect are uniform; of a draw that does not fit in, both are drawn again. After ten
    tries it is the square of the shorter side in the middle.
    """
    for _ in range(AREA_TRIES):
        area = rng.uniform(*AREA_SHARES) * height * width
        aspect = rng.uniform(*ASPECTS)
        # Half up, as round() is there.
        columns, rows = (int(math.sqrt(a) + 0.5) for a in (area * aspect, area / aspect))
        if rng.random() < 0.5:
            rows, columns = columns, rows
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return Box(int(top), int(left), rows, columns)
    return center_box(height, width, min(height, width))


def scale_into(
    target: np.ndarray, image: np.ndarray, *, mirror: bool = False, cubic: bool = False
) -> None:
    """Write an image (H, W, 3) uint8 into ``target`` (h, w, 3), scaled in 8 bits.

    Args:
        mirror: whether left and right are exchanged.
        cubic: bicubic rather than bilinear. Neither looks at more pixels when it makes an image
            smaller.
    """
    if image.shape == target.shape:
        np.copyto(target, image)
    else:
        height, width = target.shape[:2]
        how = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
        cv2.resize(image, (width, height), dst=target, interpolation=how)
    if mirror:
        cv2.flip(target, 1, dst=target)


def normalize(
    clips: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """(B, C, T, H, W) uint8 to floats on the same device: (x / 255 - mean) / std per colour.

    Args:
        dtype: of the result, which is computed in float32.
        out: where the result is written, of the same shape, instead of into a new tensor of this
            memory format and dtype.
    """
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    kernels = kernels_for(clips.device)
    if kernels is not None:
        made = _like(clips, memory_format, dtype) if out is None else out
        if normalized(clips, scale, shift, made, kernels):
            return made
    # Made on the host: a tensor made of numbers on a GPU would wait for all the GPU has to do.
    factors, summands = (
        torch.tensor(values).to(clips.device, non_blocking=True).view(1, 3, 1, 1, 1)
        for values in (scale, shift)
    )
    # Clips arrive with their colours last in memory; most networks take them first.
    floats = clips.to(torch.float32, memory_format=memory_format)
    floats.mul_(factors).add_(summands)
    return floats.to(dtype) if out is None else out.copy_(floats)


def _like(clips: Tensor, memory_format: torch.memory_format, dtype: torch.dtype) -> Tensor:
    return torch.empty(clips.shape, dtype=dtype, device=clips.device, memory_format=memory_format)
