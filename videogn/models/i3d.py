"""The inflated 3D ResNet-50 (non-local paper, section 3 and Table 1, 3x1x1 inflation).

Shapes: B clips, C channels, T frames, H x W pixels, K classes, H' x W' positions of the
classifier. Built from pytorchvideo's parts under pytorchvideo's parameter names, so that its
``i3d_r50`` weights load unchanged.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.norm import NormFactory, make_norm

Extent = tuple[int, int, int]
"""Kernel, stride or padding along (T, H, W)."""

STEM_KERNEL: Extent = (5, 7, 7)
POOL_SIZE = 7
"""Height and width of the final average pool: the feature map of a 224 x 224 crop."""
CLASSIFIER_STD = 0.01


@dataclass(frozen=True)
class Layout:
    """Where the network loses time steps: the stem and the two max pools.

    The kernels of every layer are the same in all layouts, so they share one set of weights.
    """

    conv1_stride: Extent
    pool1_kernel: Extent
    pool1_stride: Extent
    pool1_padding: Extent
    pool2_kernel: Extent
    pool2_stride: Extent
    pool2_padding: Extent


LAYOUTS = {
    # The released 32x2 network of the non-local paper: 32 frames -> 16, 8, 4 and 55 x 55 in res2.
    "nonlocal": Layout(
        conv1_stride=(2, 2, 2),
        pool1_kernel=(2, 3, 3),
        pool1_stride=(2, 2, 2),
        pool1_padding=(0, 0, 0),
        pool2_kernel=(2, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(0, 0, 0),
    ),
    # Table 1 as printed: 56 x 56 in res2. It gives no padding; this one yields its sizes.
    "nonlocal_paper": Layout(
        conv1_stride=(2, 2, 2),
        pool1_kernel=(3, 3, 3),
        pool1_stride=(2, 2, 2),
        pool1_padding=(1, 1, 1),
        pool2_kernel=(3, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(1, 0, 0),
    ),
    # The 8x8 network of pytorchvideo and PySlowFast: 8 frames -> 8, 8, 4.
    "zoo": Layout(
        conv1_stride=(1, 2, 2),
        pool1_kernel=(1, 3, 3),
        pool1_stride=(1, 2, 2),
        pool1_padding=(0, 1, 1),
        pool2_kernel=(2, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(0, 0, 0),
    ),
}


class I3D(nn.Module):
    """A video network: stem, res2, temporal pool, res3 to res5, classifier.

    Attributes:
        blocks: those parts in order.
        min_frames: fewest frames the strides leave anything of.
        min_size: fewest pixels of a side.
    """

    def __init__(self, blocks: Sequence[nn.Module], layout: Layout) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.min_frames, self.min_size = minimum_input(layout)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, T, H, W): the mean over positions.

        Raises:
            UserError: the clips are not of that shape or too small for the strides.
        """
        return self.forward_locations(clips).flatten(2).mean(2)

    def forward_locations(self, clips: Tensor) -> Tensor:
        """Logits (B, K, H', W') at every position of the 7 x 7 pool; 1 x 1 at 224 x 224."""
        logits: Tensor = self.blocks[-1](self.features(clips))
        return logits

    def features(self, clips: Tensor) -> Tensor:
        """Output of the last residual stage, (B, C, T', h, w)."""
        self._check(clips)
        for block in self.blocks[:-1]:
            clips = block(clips)
        return clips

    def _check(self, clips: Tensor) -> None:
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise UserError(f"clips must be (B, 3, T, H, W), got {tuple(clips.shape)}")
        num_frames, height, width = clips.shape[2:]
        if num_frames < self.min_frames or min(height, width) < self.min_size:
            raise UserError(
                f"a clip of {num_frames} frames of {height}x{width} pixels is too small: this "
                f"layout takes at least {self.min_frames} frames of {self.min_size}x"
                f"{self.min_size}; raise clip.num_frames or clip.crop_size"
            )


class ClassifierHead(nn.Module):
    """Average over all of T and 7 x 7 positions, dropout, and the classifier at each place."""

    def __init__(self, num_features: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K, H', W') of features (B, C, T, h, w)."""
        height, width = features.shape[3:]
        window = (min(POOL_SIZE, height), min(POOL_SIZE, width))
        # Time first, then space: bfloat16 has no 3D average pool on the CPU.
        pooled = F.avg_pool2d(features.mean(2), window, stride=1)
        logits: Tensor = self.proj(self.dropout(pooled.movedim(1, -1)))
        return logits.movedim(-1, 1)


def i3d_r50(
    *,
    norm: str = "gn",
    num_groups: int = 32,
    channels_per_group: int | None = None,
    num_classes: int = 400,
    layout: str = "nonlocal",
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    dropout: float = 0.5,
) -> I3D:
    """ResNet-50 I3D with random weights.

    Args:
        norm: a key of :data:`videogn.models.norm.NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        layout: a key of :data:`LAYOUTS`.
        width: channels of the stem.
        depths: residual blocks of each stage.

    Raises:
        UserError: there is no such norm or layout, or the groups do not divide the channels.
    """
    if layout not in LAYOUTS:
        raise UserError(
            f"model.layout={layout!r}: no such layout; choose from {', '.join(LAYOUTS)}"
        )
    table = LAYOUTS[layout]
    norm_layer = _with_pytorchvideo_arguments(make_norm(norm, num_groups, channels_per_group))
    blocks: list[nn.Module] = [_stem(table, width, norm_layer)]
    for stage, depth in enumerate(depths):
        blocks.append(_stage(stage, depth, width, norm_layer))
        if stage == 0:
            blocks.append(nn.MaxPool3d(table.pool2_kernel, table.pool2_stride, table.pool2_padding))
    num_features = 4 * width * 2 ** (len(depths) - 1)
    blocks.append(ClassifierHead(num_features, num_classes, dropout))
    network = I3D(blocks, table)
    _plain_strides(network)
    _initialise(network)
    return network


def temporal_kernels(stage: int, depth: int) -> list[int]:
    """Temporal size of the first kernel of each block: one of two inflated, in res2 all.

    >>> [temporal_kernels(stage, depth) for stage, depth in enumerate((3, 4, 6, 3))]
    [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    """
    pattern = ([3], [3, 1], [3, 1], [1, 3])[stage]
    return [pattern[block % len(pattern)] for block in range(depth)]


def minimum_input(layout: Layout) -> tuple[int, int]:
    """Fewest frames and pixels of a side that every stride leaves something of."""
    smallest = [
        next(size for size in range(1, 64) if _size_after_pools(layout, size, axis) > 0)
        for axis in (0, 1)
    ]
    return smallest[0], smallest[1]


def _size_after_pools(layout: Layout, size: int, axis: int) -> int:
    """Size along one axis of (T, H, W) behind the second pool, 0 or less where nothing is left.

    The residual stages behind it are padded and never end at nothing.
    """
    stem_padding = STEM_KERNEL[axis] // 2
    for kernel, stride, padding in (
        (STEM_KERNEL[axis], layout.conv1_stride[axis], stem_padding),
        (layout.pool1_kernel[axis], layout.pool1_stride[axis], layout.pool1_padding[axis]),
        (layout.pool2_kernel[axis], layout.pool2_stride[axis], layout.pool2_padding[axis]),
    ):
        size = (size + 2 * padding - kernel) // stride + 1
        if size <= 0:
            return 0
    return size


def _pytorchvideo() -> Any:
    """pytorchvideo's builders, which take seconds to import: a wrong config is told before that."""
    with warnings.catch_warnings():
        # fvcore, which pytorchvideo imports, scripts a function that nothing here uses.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        from pytorchvideo.models import resnet
    return resnet


PytorchvideoNorm = Callable[..., nn.Module]


def _with_pytorchvideo_arguments(factory: NormFactory) -> PytorchvideoNorm:
    """A factory that may be called as pytorchvideo calls BatchNorm3d."""

    def norm(num_features: int, eps: float, momentum: float) -> nn.Module:
        # eps and momentum are pytorchvideo's defaults, which our own norms have in any case.
        return factory(num_features)

    return norm


def _stem(layout: Layout, width: int, norm: PytorchvideoNorm) -> nn.Module:
    stem: nn.Module = _pytorchvideo().create_res_basic_stem(
        in_channels=3,
        out_channels=width,
        conv_kernel_size=STEM_KERNEL,
        conv_stride=layout.conv1_stride,
        conv_padding=tuple(size // 2 for size in STEM_KERNEL),
        pool_kernel_size=layout.pool1_kernel,
        pool_stride=layout.pool1_stride,
        pool_padding=layout.pool1_padding,
        norm=norm,
    )
    return stem


def _stage(stage: int, depth: int, width: int, norm: PytorchvideoNorm) -> nn.Module:
    """Residual blocks of one resolution; the 1x3x3 kernel of the first has the stride."""
    dim_inner = width * 2**stage
    kernels = temporal_kernels(stage, depth)
    spatial_stride = 1 if stage == 0 else 2
    builders = _pytorchvideo()
    blocks: nn.Module = builders.create_res_stage(
        depth=depth,
        dim_in=width if stage == 0 else 2 * dim_inner,
        dim_inner=dim_inner,
        dim_out=4 * dim_inner,
        bottleneck=builders.create_bottleneck_block,
        conv_a_kernel_size=[(size, 1, 1) for size in kernels],
        conv_a_stride=(1, 1, 1),
        conv_a_padding=[(size // 2, 0, 0) for size in kernels],
        conv_b_stride=(1, spatial_stride, spatial_stride),
        norm=norm,
    )
    return blocks


def _plain_strides(network: nn.Module) -> None:
    """Replace the numpy integers in pytorchvideo's shortcuts, which break full-graph compiling."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = tuple(int(step) for step in module.stride)


def _initialise(network: nn.Module) -> None:
    """Draw all weights as the released code does (non-local paper, section 4.1).

    Convolutions: normal, variance 2 / fan-out. Classifier: normal, std 0.01, bias 0. Norms:
    gamma 1, beta 0, but gamma 0 in the last norm of each block, whichever norm it is, so that
    every block starts as the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(module.bias)
        elif isinstance(module, _pytorchvideo().ResBlock):
            nn.init.zeros_(module.branch2.norm_c.weight)
