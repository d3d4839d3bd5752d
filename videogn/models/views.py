"""3D convolutions as 2D convolutions and matrix products of the same numbers, without copies.

A video with its channels last lies in memory as (N, T, H, W, C). Seen as images (N T, H, W, C) it
takes 1xKxK kernels, as images of T x (H W) positions Kx1x1 kernels, as rows (N T H W, C) 1x1x1
kernels: every convolution of an I3D but the stem. Libraries have better and better tested code
for those than for 3D convolutions. The stem of three colours has forms of its own.

Shapes: N clips, C channels in, O out, T frames or steps, H x W positions, K sizes of a kernel.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.kernels.launch import is_available
from videogn.models.kernels.stack import Stacking, stack
from videogn.models.recompute import Recipe, dropping

LAST = torch.channels_last_3d
FEW_COLOURS = 4
"""Most input channels of what is taken for a stem."""
CHANNEL_STEP = 8
"""Padded stems have a multiple of so many channels: the least that matrix units take in halves."""


class RowsConv3d(nn.Conv3d):
    """1x1x1 kernels as one matrix product over all positions.

    On a CPU as a 2D convolution of one image of them: oneDNN's code for those is up to twice as
    fast as the matrix products of float32, and as fast in bfloat16.
    """

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, O, T', H', W') with its channels last."""
        places, matrix = _last(video), _matrix(self.weight)
        if video.device.type == "cpu":
            image = places.reshape(1, -1, 1, places.shape[-1]).permute(0, 3, 1, 2)
            found = F.conv2d(image, matrix[:, :, None, None], self.bias)
            out = found.permute(0, 2, 3, 1).contiguous()
        else:
            out = F.linear(places.reshape(-1, places.shape[-1]), matrix, self.bias)
        return out.view(*places.shape[:-1], -1).permute(0, 4, 1, 2, 3)


class FramesConv3d(nn.Conv3d):
    """1xKxK kernels as a 2D convolution of every frame; a stride in time takes some frames."""

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, O, T', H', W') with its channels last."""
        frames = _last(video)[:, :: self.stride[0]]
        images = frames.reshape(-1, *frames.shape[2:]).permute(0, 3, 1, 2)
        # The first keeps the strides of a gradient right (see _matrix), as squeezing does else.
        point = self.kernel_size == (1, 1, 1)
        kernel = _matrix(self.weight)[:, :, None, None] if point else self.weight.squeeze(2)
        stride, padding, dilation = map(_space, (self.stride, self.padding, self.dilation))
        out = F.conv2d(images, kernel, self.bias, stride, padding, dilation, self.groups)
        return _video(out, len(video))


class StepsConv3d(nn.Conv3d):
    """Kx1x1 kernels as a 2D convolution over T x (H W) positions."""

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, O, T', H', W') with its channels last."""
        places = _last(video)[:, :, :: self.stride[1], :: self.stride[2]]
        height, width = places.shape[2:4]
        image = places.reshape(*places.shape[:2], height * width, -1).permute(0, 3, 1, 2)
        out = F.conv2d(
            image,
            # Not the last axis: the gradient's strides shall be the parameter's (see _matrix).
            self.weight.squeeze(3),
            self.bias,
            (self.stride[0], 1),
            (int(self.padding[0]), 0),
            (self.dilation[0], 1),
            self.groups,
        )
        steps = out.permute(0, 2, 3, 1).contiguous()
        return steps.view(*steps.shape[:2], height, width, -1).permute(0, 4, 1, 2, 3)


class StemConv3d(nn.Conv3d):
    """A stem whose K time steps, and with ``fold`` whose 2x2 places, are stacked as channels.

    Three channels leave matrix units and vector registers idle: 5 steps of them are 15, and 60
    with the places of the stride. What is computed is the same sum in another order.

    Attributes:
        fold: whether places are stacked too, for a stride of 2 in height and width.
        pad: whether zero channels fill up a multiple of :data:`CHANNEL_STEP`.
        at_once: whether a kernel of our own stacks them where there is one.
    """

    fold = False
    pad = False
    at_once = False

    def forward(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) in any order -> (N, O, T', H', W') with its channels last."""
        kind = video.device.type
        # torch has no autocast for the meta device, and refuses to be asked.
        if kind != "meta" and torch.is_autocast_enabled(kind):
            # Before it is stacked: the fewest bytes are moved.
            video = video.to(torch.get_autocast_dtype(kind))
        images = self._images(video)
        if _is_traced(video):
            return self._convolved(images, len(video))
        # Stacked anew for the gradient of the weights: images are many times the size of clips.
        with dropping(images, Recipe(lambda: self._images(video))):
            return self._convolved(images, len(video))

    def _images(self, video: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N T', H'', W'', C''), stacked."""
        frames = video.permute(0, 2, 3, 4, 1)
        fold = 4 if self.fold else 1
        num_channels = fold * self.kernel_size[0] * self.in_channels
        missing = -num_channels % CHANNEL_STEP if self.pad else 0
        if self.at_once and not _is_traced(video) and is_available(video.device):
            return stack(frames, _stacking(self, frames, num_channels + missing))
        images = stacked_places(self, frames) if self.fold else stacked_steps(self, frames)
        return F.pad(images, (0, missing)) if missing else images

    def _convolved(self, images: Tensor, num_clips: int) -> Tensor:
        kernel = _kernel_of_places(self) if self.fold else _kernel_of_steps(self)
        missing = images.shape[-1] - kernel.shape[1]
        if missing:
            kernel = F.pad(kernel, (0, 0, 0, 0, 0, missing))
        stride, padding = _space(self.stride), _space(self.padding)
        if self.fold:
            stride, padding = (1, 1), (0, 0)
        out = F.conv2d(images.permute(0, 3, 1, 2), kernel, self.bias, stride, padding)
        return _video(out, num_clips)


def _is_traced(video: Tensor) -> bool:
    """Whether a gradient or a compiler goes through what is done with a video."""
    return video.requires_grad or torch.compiler.is_compiling()


def _kernel_of_steps(convolution: nn.Conv3d) -> Tensor:
    """(O, C, K, h, w) -> (O, K C, h, w)."""
    kernel = convolution.weight
    # A single step is squeezed for the strides of the gradient, as in _matrix.
    return kernel.squeeze(2) if len(kernel[0, 0]) == 1 else kernel.transpose(1, 2).flatten(1, 2)


def stacked_steps(convolution: nn.Conv3d, video: Tensor) -> Tensor:
    """The steps that a kernel meets, as channels in the order (K, C).

    Args:
        video: (N, T, H, W, C).
    """
    return _beside(convolution, video).flatten(0, 1)


def _kernel_of_places(convolution: nn.Conv3d) -> Tensor:
    """(O, C, K, h, w) -> (O, 4 K C, h / 2, w / 2).

    The kernel gets a row and a column of zeros where its first place is not the first of a 2x2
    block, or its size is odd.
    """
    (above, below), (before, after) = _kernel_margins(convolution)
    kernel = F.pad(convolution.weight, (before, after, above, below))
    num_out, colours, steps, height, width = kernel.shape
    kernel = kernel.reshape(num_out, colours, steps, height // 2, 2, width // 2, 2)
    # (O, C, K, h, 2, w, 2) -> (O, K, 2, 2, C, h, w)
    return kernel.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 4)


def _kernel_margins(convolution: nn.Conv3d) -> list[tuple[int, int]]:
    """Rows of zeros above and below a kernel, and columns before and after it."""
    sizes, paddings = convolution.weight.shape[3:], _space(convolution.padding)
    return [(pad % 2, (size + pad % 2) % 2) for size, pad in zip(sizes, paddings, strict=True)]


def _video_margins(convolution: nn.Conv3d, video: Tensor) -> list[tuple[int, int]]:
    """Rows of zeros above and below a video (N, T, H, W, C), and columns before and after it.

    Those after it may be negative: what no kernel meets is cut off.
    """
    margins = []
    for axis, (before, after) in enumerate(_kernel_margins(convolution)):
        padding, length = _space(convolution.padding)[axis], video.shape[2 + axis]
        size = convolution.weight.shape[3 + axis]
        num_out = (length + 2 * padding - size) // 2 + 1
        needed = 2 * (num_out - 1) + size + before + after
        margins.append((padding + before, needed - length - padding - before))
    return margins


def stacked_places(convolution: nn.Conv3d, video: Tensor) -> Tensor:
    """Steps and 2x2 places as channels in the order (K, 2, 2, C), for a stride of 2.

    Args:
        video: (N, T, H, W, C).
    """
    rows, columns = _video_margins(convolution, video)
    padded = F.pad(video, (0, 0, *columns, *rows))
    height, width = padded.shape[2:4]
    blocks = padded.reshape(*padded.shape[:2], height // 2, 2, width // 2, 2, -1)
    # (N, T, h, 2, w, 2, C) -> (N, T, h, w, 4 C)
    blocks = blocks.transpose(3, 4).flatten(4)
    return _beside(convolution, blocks).flatten(0, 1)


def _stacking(convolution: "StemConv3d", video: Tensor, channels: int) -> Stacking:
    """What :func:`stacked_places` or :func:`stacked_steps` do, in numbers."""
    steps, stride = convolution.kernel_size[0], convolution.stride[0]
    early = int(convolution.padding[0])
    out_frames = (video.shape[1] + 2 * early - steps) // stride + 1
    fold = 2 if convolution.fold else 1
    rows, columns = _video_margins(convolution, video) if convolution.fold else ((0, 0), (0, 0))
    height, width = video.shape[2] + sum(rows), video.shape[3] + sum(columns)
    size = (out_frames, height // fold, width // fold)
    return Stacking(steps, stride, early, fold, rows[0], columns[0], size, channels)


def _beside(convolution: nn.Conv3d, video: Tensor) -> Tensor:
    """(N, T, H, W, C) -> (N, T', H, W, K C): the steps that each output step is made of."""
    steps, stride = convolution.kernel_size[0], convolution.stride[0]
    padding = int(convolution.padding[0])
    if padding:
        video = F.pad(video, (0, 0, 0, 0, 0, 0, padding, padding))
    span = video.shape[1] - steps + 1
    return torch.cat([video[:, step : step + span : stride] for step in range(steps)], -1)


def _last(video: Tensor) -> Tensor:
    """(N, C, T, H, W) -> (N, T, H, W, C), which copies a video whose channels are not last.

    Copying costs less than going on: the convolutions behind this one then find them last.
    """
    return video.contiguous(memory_format=LAST).permute(0, 2, 3, 4, 1)


def _space(values: Sequence[int | str]) -> tuple[int, int]:
    """What is of H and W in a triple (T, H, W)."""
    return int(values[1]), int(values[2])


def _video(images: Tensor, num_clips: int) -> Tensor:
    """Images (N T, O, H, W) -> (N, O, T, H, W) with its channels last."""
    # Some code for CPUs gives its channels first, whatever it was given.
    frames = images.permute(0, 2, 3, 1).contiguous()
    return frames.view(num_clips, -1, *frames.shape[1:]).permute(0, 4, 1, 2, 3)


def _matrix(kernel: Tensor) -> Tensor:
    """(O, C, 1, 1, 1) -> (O, C).

    By the operation whose gradient gets the strides of the kernel: those of axes of size 1 tell
    nothing, yet the data-parallel wrapper warns where they differ and copies.
    """
    if kernel.stride(2) == 1:
        return kernel.flatten(1)
    return kernel.permute(0, 2, 3, 4, 1).squeeze(1).squeeze(1).squeeze(1)


STEMS = ("native", "time", "time_padded", "space", "space_padded")
"""Forms of a stem: as it is, or with its steps stacked as channels (15 of I3D's, or 16), or its
2x2 places too (60, or 64)."""


def use_views(
    network: nn.Module, stem: str = "native", *, steps: bool = True, kernels: bool = False
) -> int:
    """Replace the convolutions that have a form as 2D convolution or matrix product, in place.

    Parameters and their names stay. Those without such a form (3x3x3, a string as padding) stay
    3D convolutions. Hooks on a replaced module are lost: register them later.

    Args:
        network: on any device, also the meta device; its weights and clips should have their
            channels last.
        stem: a key of :data:`STEMS`, for convolutions of at most :data:`FEW_COLOURS` channels.
        steps: whether those over time alone (Kx1x1) are replaced too.
        kernels: whether Triton kernels may be used, of which the stem has one.

    Returns:
        How many were replaced.

    Raises:
        UserError: there is no such stem.
    """
    if stem not in STEMS:
        raise UserError(
            f"stem={stem!r}: there is none of that name; choose from {', '.join(STEMS)}"
        )
    found = [name for name, module in network.named_modules() if type(module) is nn.Conv3d]
    count = 0
    for name in found:
        convolution = network.get_submodule(name)
        assert isinstance(convolution, nn.Conv3d)
        form = _form(convolution, stem)
        if form is None or (form is StepsConv3d and not steps):
            continue
        parent, _, last = name.rpartition(".")
        made = _sharing(convolution, form, stem)
        if isinstance(made, StemConv3d):
            made.at_once = kernels
        setattr(network.get_submodule(parent), last, made)
        count += 1
    return count


def _form(convolution: nn.Conv3d, stem: str) -> Callable[..., nn.Conv3d] | None:
    """The class for a convolution; None where it stays as it is."""
    if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros":
        return None
    steps, *space = convolution.kernel_size
    step_padding, *space_padding = convolution.padding
    if stem != "native" and _takes_stem(convolution, stem):
        return StemConv3d
    if steps == 1 and step_padding == 0:
        plain = convolution.stride == (1, 1, 1) and convolution.groups == 1
        return RowsConv3d if plain and space == [1, 1] and not any(space_padding) else FramesConv3d
    if space == [1, 1] and not any(space_padding):
        return StepsConv3d
    return None


def _takes_stem(convolution: nn.Conv3d, stem: str) -> bool:
    if convolution.in_channels > FEW_COLOURS or convolution.groups > 1:
        return False
    if convolution.dilation != (1, 1, 1) or convolution.kernel_size[1:] == (1, 1):
        return False
    return stem.startswith("time") or convolution.stride[1:] == (2, 2)


def _sharing(convolution: nn.Conv3d, form: Callable[..., nn.Conv3d], stem: str) -> nn.Conv3d:
    """A convolution of another class with the parameters of this one."""
    made = form(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        bias=False,
        device="meta",
    )
    made.weight, made.bias = convolution.weight, convolution.bias
    made.train(convolution.training)
    if isinstance(made, StemConv3d):
        made.fold, made.pad = stem.startswith("space"), stem.endswith("padded")
    return made
