"""What happens to a clip between decoding and the network.

Shapes: B clips, C = 3 colours, T frames, H x W pixels. Clips stay uint8 until they are on the
device. Whatever is drawn is drawn once for a whole clip.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videogn.data.rgb import Box

GROUP_BYTES = 4 * 2**20
"""Frames are scaled together up to this size."""


def clip_from_frames(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 frames as a clip (3, T, H, W) uint8."""
    # A rotated picture is a view with negative strides, which torch does not know.
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)


def resize_short_side(clip: Tensor, short_side: int) -> Tensor:
    """Scale (C, T, H, W) uint8 so that its shorter side has ``short_side`` pixels.

    Bilinear in 8 bits; the longer side is rounded down, as in the released non-local code.
    """
    height, width = clip.shape[2:]
    shorter = min(height, width)
    size = (short_side * height // shorter, short_side * width // shorter)
    if size == (height, width):
        return clip
    frames = clip.transpose(0, 1)
    return F.interpolate(frames, size=size, mode="bilinear").transpose(0, 1)


def crop(clip: Tensor, top: int, left: int, size: int) -> Tensor:
    """A square of (C, T, H, W)."""
    return clip[:, :, top : top + size, left : left + size]


def center_crop(clip: Tensor, size: int) -> Tensor:
    """The square in the middle of (C, T, H, W)."""
    height, width = clip.shape[2:]
    return crop(clip, (height - size) // 2, (width - size) // 2, size)


def three_crops(clip: Tensor) -> list[Tensor]:
    """Squares of the shorter side at the start, the middle and the end of the longer one."""
    height, width = clip.shape[2:]
    size = min(height, width)
    room = max(height, width) - size
    offsets = (0, room // 2, room)
    if height > width:
        return [crop(clip, offset, 0, size) for offset in offsets]
    return [crop(clip, 0, offset, size) for offset in offsets]


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
    of the unscaled frame; only that is converted and scaled. Its side is rounded to a pixel.
    """
    shorter = min(height, width)
    side = min(max(round(crop_size * shorter / draw.short_side), 1), shorter)
    # A share in [0, 1) of room + 1 positions is a uniform integer on [0, room].
    top = int(draw.top * (height - side + 1))
    left = int(draw.left * (width - side + 1))
    return Box(top, left, side, side)


def scale(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Square images (S, S, 3) uint8 as (size, size, 3) uint8, bilinear in 8 bits.

    A few go through torch at once: one by one its calls cost as much as the scaling.
    """
    group: list[np.ndarray] = []
    for image in images:
        group.append(image)
        if len(group) * image.size > GROUP_BYTES:
            yield from _scaled(group, size)
            group = []
    if group:
        yield from _scaled(group, size)


def _scaled(images: list[np.ndarray], size: int) -> np.ndarray:
    frames = np.stack(images)
    if frames.shape[1:3] == (size, size):
        return frames
    scaled = F.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2), size=(size, size), mode="bilinear"
    )
    return scaled.permute(0, 2, 3, 1).numpy()


def normalize(
    clips: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """(B, C, T, H, W) uint8 to float32 on the same device: (x / 255 - mean) / std per colour."""
    shape = (1, 3, 1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=clips.device).view(shape)
    shift = torch.tensor(
        [-m / s for m, s in zip(mean, std, strict=True)], device=clips.device
    ).view(shape)
    # Clips arrive with their colours last in memory; the networks take them first.
    floats = clips.to(torch.float32, memory_format=torch.contiguous_format)
    return floats.mul_(scale).add_(shift)
