"""The inflated 3D ResNets I3D and the 2D-kernel C2D (non-local paper, section 3 and Table 1).

Shapes: B clips, C channels, T frames, H x W pixels, K classes, H' x W' positions of the
classifier. Built from pytorchvideo's parts under pytorchvideo's parameter names, so that its
``i3d_r50`` weights load unchanged.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.initialise import initialise, start_as_identity
from videogn.models.norm import NormFactory, make_norm

Extent = tuple[int, int, int]
"""Kernel, stride or padding along (T, H, W)."""

STEM_SIZE = 7
"""Height and width of conv1's kernel."""
POOL_SIZE = 7
"""Height and width of the final average pool: the feature map of a 224 x 224 crop."""


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
    pool5_size: int | None = POOL_SIZE
    """Height and width of the last average pool, in positions; the whole map where None."""


@dataclass(frozen=True)
class Inflation:
    """Which 2D kernels have gained time steps: temporal sizes in the stem and in each stage.

    Attributes:
        stem: of conv1.
        first: of the first (1x1) kernel of the blocks of each stage, repeated along the stage.
        middle: of the second (3x3) kernel, likewise.
    """

    stem: int
    first: tuple[tuple[int, ...], ...]
    middle: tuple[tuple[int, ...], ...]


FLAT = ((1,), (1,), (1,), (1,))
HALF = ((3,), (3, 1), (3, 1), (1, 3))
"""One kernel of two blocks, all of res2 (non-local paper, section 4; its released code)."""

INFLATIONS = {
    "none": Inflation(stem=1, first=FLAT, middle=FLAT),
    "3x1x1": Inflation(stem=5, first=HALF, middle=FLAT),
    "3x3x3": Inflation(stem=5, first=FLAT, middle=HALF),
    # mmaction2's "heavy" network: every block.
    "3x1x1_all": Inflation(stem=5, first=((3,), (3,), (3,), (3,)), middle=FLAT),
}
"""Name -> inflation. ``none`` is C2D, which sees time in its strides and pools alone."""

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
    # The released 8x8 network of the non-local paper: 8 frames -> 8, 8, 4 and 55 x 55 in res2.
    "nonlocal_8x8": Layout(
        conv1_stride=(1, 2, 2),
        pool1_kernel=(1, 3, 3),
        pool1_stride=(1, 2, 2),
        pool1_padding=(0, 0, 0),
        pool2_kernel=(2, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(0, 0, 0),
    ),
    # mmaction2's and gluon-cv's 32x2 network: its first pool drops every other time step.
    "mmaction2": Layout(
        conv1_stride=(2, 2, 2),
        pool1_kernel=(1, 3, 3),
        pool1_stride=(2, 2, 2),
        pool1_padding=(0, 1, 1),
        pool2_kernel=(2, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(0, 0, 0),
        pool5_size=None,
    ),
    # mmaction2's heavy network, which keeps all time steps up to the second pool.
    "mmaction2_heavy": Layout(
        conv1_stride=(1, 2, 2),
        pool1_kernel=(1, 3, 3),
        pool1_stride=(1, 2, 2),
        pool1_padding=(0, 1, 1),
        pool2_kernel=(2, 1, 1),
        pool2_stride=(2, 1, 1),
        pool2_padding=(0, 0, 0),
        pool5_size=None,
    ),
}
"""Name -> layout."""


class I3D(nn.Module):
    """A video network: stem, res2, temporal pool, res3 to res5, classifier.

    Attributes:
        blocks: those parts in order.
        min_frames: fewest frames the strides leave anything of.
        min_size: fewest pixels of a side.
    """

    def __init__(self, blocks: Sequence[nn.Module], layout: Layout, stem_steps: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.min_frames, self.min_size = minimum_input(layout, stem_steps)

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
    """Average over all of T and a window of positions, dropout, and the classifier at each place.

    The window is ``pool_size`` x ``pool_size`` positions, the whole map where None.
    """

    def __init__(
        self, num_features: int, num_classes: int, dropout: float, pool_size: int | None = POOL_SIZE
    ) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K, H', W') of features (B, C, T, h, w)."""
        height, width = features.shape[3:]
        size = max(height, width) if self.pool_size is None else self.pool_size
        window = (min(size, height), min(size, width))
        # Time first, then space: bfloat16 has no 3D average pool on the CPU.
        pooled = F.avg_pool2d(features.mean(2), window, stride=1)
        logits: Tensor = self.proj(self.dropout(pooled.movedim(1, -1)))
        return logits.movedim(-1, 1)


def i3d(
    *,
    inflation: str = "3x1x1",
    norm: str = "gn",
    num_groups: int = 32,
    channels_per_group: int | None = None,
    num_classes: int = 400,
    layout: str = "nonlocal",
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    dropout: float = 0.5,
) -> I3D:
    """ResNet I3D or C2D with random weights; ResNet-50 unless ``depths`` says otherwise.

    Args:
        inflation: a key of :data:`INFLATIONS`.
        norm: a key of :data:`videogn.models.norm.NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        layout: a key of :data:`LAYOUTS`.
        width: channels of the stem.
        depths: residual blocks of each stage.

    Raises:
        UserError: there is no such inflation, norm or layout, the groups do not divide the
            channels, or there are more than four stages.
    """
    if len(depths) > 4:
        raise UserError(f"model.depths={list(depths)}: I3D and C2D have at most 4 stages")
    if inflation not in INFLATIONS:
        raise UserError(
            f"inflation {inflation!r}: there is none of that name; "
            f"choose from {', '.join(INFLATIONS)}"
        )
    if layout not in LAYOUTS:
        raise UserError(
            f"model.layout={layout!r}: no such layout; choose from {', '.join(LAYOUTS)}"
        )
    table, kernels = LAYOUTS[layout], INFLATIONS[inflation]
    norm_layer = with_pytorchvideo_arguments(make_norm(norm, num_groups, channels_per_group))
    blocks: list[nn.Module] = [_stem(table, kernels.stem, width, norm_layer)]
    for stage, depth in enumerate(depths):
        blocks.append(_stage(stage, temporal_kernels(kernels, stage, depth), width, norm_layer))
        if stage == 0:
            blocks.append(nn.MaxPool3d(table.pool2_kernel, table.pool2_stride, table.pool2_padding))
    num_features = 4 * width * 2 ** (len(depths) - 1)
    blocks.append(ClassifierHead(num_features, num_classes, dropout, table.pool5_size))
    network = I3D(blocks, table, kernels.stem)
    plain_strides(network)
    initialise(network)
    for module in network.modules():
        if isinstance(module, _pytorchvideo().ResBlock):
            start_as_identity(module.branch2.conv_c, module.branch2.norm_c)
    return network


def temporal_kernels(inflation: Inflation, stage: int, depth: int) -> list[tuple[int, int]]:
    """Temporal sizes of the first and the second kernel of each block of a stage.

    >>> [kernels[0] for kernels in temporal_kernels(INFLATIONS["3x1x1"], 1, 4)]
    [3, 1, 3, 1]
    """
    first, middle = inflation.first[stage], inflation.middle[stage]
    return [(first[block % len(first)], middle[block % len(middle)]) for block in range(depth)]


def minimum_input(layout: Layout, stem_steps: int = 5) -> tuple[int, int]:
    """Fewest frames and pixels of a side that every stride leaves something of."""
    smallest = [
        next(size for size in range(1, 64) if _size_after_pools(layout, size, axis, kernel) > 0)
        for axis, kernel in ((0, stem_steps), (1, STEM_SIZE))
    ]
    return smallest[0], smallest[1]


def _size_after_pools(layout: Layout, size: int, axis: int, stem_kernel: int) -> int:
    """Size along one axis of (T, H, W) behind the second pool, 0 or less where nothing is left.

    The residual stages behind it are padded and never end at nothing.
    """
    for kernel, stride, padding in (
        (stem_kernel, layout.conv1_stride[axis], stem_kernel // 2),
        (layout.pool1_kernel[axis], layout.pool1_stride[axis], layout.pool1_padding[axis]),
        (layout.pool2_kernel[axis], layout.pool2_stride[axis], layout.pool2_padding[axis]),
    ):
        size = (size + 2 * padding - kernel) // stride + 1
        if size <= 0:
            return 0
    return size


def _pytorchvideo() -> Any:
    """pytorchvideo's builders, which take seconds to import: a wrong config is told before that."""
    with without_scripting_warning():
        from pytorchvideo.models import resnet
    return resnet


@contextmanager
def without_scripting_warning() -> Iterator[None]:
    """Imports of pytorchvideo: fvcore, which it imports, scripts a function nothing here uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        yield


PytorchvideoNorm = Callable[..., nn.Module]


def with_pytorchvideo_arguments(factory: NormFactory) -> PytorchvideoNorm:
    """A factory that may be called as pytorchvideo calls BatchNorm3d."""

    def norm(num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
        # eps and momentum are pytorchvideo's defaults, which our own norms have in any case.
        return factory(num_features)

    return norm


def _stem(layout: Layout, steps: int, width: int, norm: PytorchvideoNorm) -> nn.Module:
    kernel = (steps, STEM_SIZE, STEM_SIZE)
    stem: nn.Module = _pytorchvideo().create_res_basic_stem(
        in_channels=3,
        out_channels=width,
        conv_kernel_size=kernel,
        conv_stride=layout.conv1_stride,
        conv_padding=tuple(size // 2 for size in kernel),
        pool_kernel_size=layout.pool1_kernel,
        pool_stride=layout.pool1_stride,
        pool_padding=layout.pool1_padding,
        norm=norm,
    )
    return stem


def _stage(
    stage: int, kernels: Sequence[tuple[int, int]], width: int, norm: PytorchvideoNorm
) -> nn.Module:
    """Residual blocks of one resolution; the 3x3 kernel of the first has the spatial stride.

    Block by block, for pytorchvideo's stage has one size of the 3x3 kernel for all its blocks.
    """
    builders = _pytorchvideo()
    dim_inner = width * 2**stage
    blocks = []
    for block, (first, middle) in enumerate(kernels):
        stride = 2 if stage > 0 and block == 0 else 1
        blocks.append(
            builders.create_res_block(
                dim_in=_channels_before(stage, block, width),
                dim_inner=dim_inner,
                dim_out=4 * dim_inner,
                bottleneck=builders.create_bottleneck_block,
                conv_a_kernel_size=(first, 1, 1),
                conv_a_stride=(1, 1, 1),
                conv_a_padding=(first // 2, 0, 0),
                conv_b_kernel_size=(middle, 3, 3),
                conv_b_stride=(1, stride, stride),
                conv_b_padding=(middle // 2, 1, 1),
                norm=norm,
            )
        )
    whole: nn.Module = builders.ResStage(res_blocks=nn.ModuleList(blocks))
    return whole


def _channels_before(stage: int, block: int, width: int) -> int:
    """Channels that enter a block."""
    if stage == 0 and block == 0:
        return width
    return 4 * width << (stage if block > 0 else stage - 1)


def plain_strides(network: nn.Module) -> None:
    """Replace the numpy integers in pytorchvideo's shortcuts, which break full-graph compiling."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = tuple(int(step) for step in module.stride)
