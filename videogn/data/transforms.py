"""What happens to a clip between decoding and the network.

Shapes: B clips, C = 3 colours, T frames, H x W pixels. Clips stay uint8 until they are on the
device. Whatever is drawn is drawn once for a whole clip.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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


def augment(clip: Tensor, draw: Augmentation, crop_size: int) -> Tensor:
    """Scale, crop and mirror (C, T, H, W) uint8 to (C, T, crop_size, crop_size) uint8."""
    clip = resize_short_side(clip, draw.short_side)
    height, width = clip.shape[2:]
    # A share in [0, 1) of room + 1 positions is a uniform integer on [0, room].
    top = int(draw.top * (height - crop_size + 1))
    left = int(draw.left * (width - crop_size + 1))
    clip = crop(clip, top, left, crop_size)
    return clip.flip(3) if draw.flip else clip


def normalize(
    clips: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """(B, C, T, H, W) uint8 to float32 on the same device: (x / 255 - mean) / std per colour."""
    shape = (1, 3, 1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=clips.device).view(shape)
    shift = torch.tensor(
        [-m / s for m, s in zip(mean, std, strict=True)], device=clips.device
    ).view(shape)
    return clips.float().mul_(scale).add_(shift)
