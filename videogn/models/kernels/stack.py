"""A stem's clips with time steps and places stacked as channels, in one launch.

By torch's operations it is ten copies, whose runs of three colours are far from what a GPU's
memory can do. Shapes: N clips, T frames, H x W pixels, C colours; K steps of a kernel.
"""

from dataclasses import dataclass

from torch import Tensor

from videogn.models.kernels.launch import kernels_for, on_device
from videogn.models.kernels.tiling import power_of_2

_TILE = 4096
"""Values of a program."""
_WARPS = 4


@dataclass(frozen=True)
class Stacking:
    """What becomes the channels of an image's place.

    Attributes:
        steps: K, frames that make one image.
        stride: frames from image to image.
        early: zero frames before the first.
        fold: places side by side, in both directions, that become one.
        top, left: zero rows and columns before the first.
        size: (T', H', W') of the images of a clip.
        channels: of a place, the last of them zeros where there are more than fold² K C.
    """

    steps: int
    stride: int
    early: int
    fold: int
    top: int
    left: int
    size: tuple[int, int, int]
    channels: int


def stack(video: Tensor, how: Stacking) -> Tensor:
    """Images (N T', H', W', channels) of a video (N, T, H, W, C) of any strides; no gradient.

    Their channels are in the order (K, fold, fold, C).
    """
    num_clips, *extent, colours = video.shape
    out_frames, out_height, out_width = how.size
    rows = num_clips * out_frames * out_height
    shape = (num_clips * out_frames, out_height, out_width, how.channels)
    images = video.new_empty(shape)
    if images.numel() == 0:
        return images
    block_c = power_of_2(how.channels)
    block_w = min(power_of_2(out_width), max(1, _TILE // block_c))
    kernels = kernels_for("stack_triton", video.device)
    with on_device(video.device):
        kernels.stack_kernel[(rows, -(-out_width // block_w))](
            video,
            images,
            *extent,
            *how.size,
            *video.stride(),
            how.stride,
            how.early,
            how.top,
            how.left,
            COLOURS=colours,
            FOLD=how.fold,
            STEPS=how.steps,
            CHANNELS=how.channels,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
            num_warps=_WARPS,
        )
    return images
