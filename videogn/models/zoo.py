"""Other networks of pytorchvideo, with any norm that their builders take.

Their parameters keep pytorchvideo's names. Shapes: B clips, C channels, T frames, H x W pixels,
K classes, H' x W' positions of the classifier.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.i3d import (
    PytorchvideoNorm,
    plain_strides,
    with_pytorchvideo_arguments,
    without_scripting_warning,
)
from videogn.models.initialise import initialise, start_as_identity
from videogn.models.norm import make_norm

PROJECTION = r"blocks\.\d\.proj\.weight"


class ZooNetwork(nn.Module):
    """Stem, stages and head of a pytorchvideo network, the head without activation."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        head: Any = blocks[-1]
        # Its average over positions is ours to take: the test wants them one by one.
        head.output_pool = None

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, T, H, W): the mean over positions.

        Raises:
            UserError: the clips are not of that shape or too small for the network.
        """
        return self.forward_locations(clips).mean((2, 3))

    def forward_locations(self, clips: Tensor) -> Tensor:
        """Logits (B, K, H', W') at every position of the head's pool, the mean over time."""
        features = self.features(clips)
        self._check_pool(clips, features)
        logits: Tensor = self.blocks[-1](features)
        return logits.mean(2)

    def features(self, clips: Tensor) -> Tensor:
        """Output of the last residual stage, (B, C, T', h, w)."""
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise UserError(f"clips must be (B, 3, T, H, W), got {tuple(clips.shape)}")
        for block in self.blocks[:-1]:
            clips = block(clips)
        return clips

    def _check_pool(self, clips: Tensor, features: Tensor) -> None:
        head: Any = self.blocks[-1]
        pool = getattr(head.pool, "pool", head.pool)  # X3D has convolutions around it
        window, found = tuple(pool.kernel_size), tuple(features.shape[2:])
        if any(have < need for have, need in zip(found, window, strict=True)):
            raise UserError(
                f"a clip of {clips.shape[2]} frames of {clips.shape[3]}x{clips.shape[4]} pixels "
                f"gives a map of {found} (T, H, W) and the network's last pool takes {window}; "
                "raise clip.num_frames or clip.crop_size"
            )


def zoo_network(
    arch: str,
    *,
    norm: str = "bn",
    num_groups: int = 32,
    channels_per_group: int | None = None,
    num_classes: int = 400,
    dropout: float = 0.5,
) -> ZooNetwork:
    """One of pytorchvideo's networks with random weights.

    Args:
        arch: a key of :data:`BUILDERS`.
        norm: a key of :data:`videogn.models.norm.NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.

    Raises:
        UserError: there is no such norm, or the groups do not divide the channels.
    """
    divisor = channels_per_group or num_groups
    if norm == "gn" and arch in CHANNEL_DIVISORS and divisor not in CHANNEL_DIVISORS[arch]:
        fitting = ", ".join(map(str, CHANNEL_DIVISORS[arch]))
        raise UserError(
            f"GN cannot share the channels of {arch} out to "
            f"{'groups of ' if channels_per_group else ''}{divisor}"
            f"{'' if channels_per_group else ' groups'}; set model.num_groups or "
            f"model.channels_per_group to one of {fitting}"
        )
    factory = with_pytorchvideo_arguments(make_norm(norm, num_groups, channels_per_group))
    with without_scripting_warning():
        network = BUILDERS[arch](factory, num_classes, dropout)
    built = ZooNetwork(network.blocks)
    plain_strides(built)
    initialise(built)
    for module in built.modules():
        block: Any = module
        if hasattr(block, "conv_c") and hasattr(block, "norm_c"):
            start_as_identity(block.conv_c, block.norm_c)
    return built


def match_network(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The key of :data:`BUILDERS` whose tensors have these names and shapes; None where none has.

    BN's statistics do not count, so that weights of any norm with parameters are found.
    """
    classes = [shape[0] for name, shape in shapes.items() if re.fullmatch(PROJECTION, name)]
    if len(classes) != 1:
        return None
    wanted = {name: shape for name, shape in shapes.items() if not _is_statistic(name)}
    for arch in BUILDERS:
        with torch.device("meta"):
            state = zoo_network(arch, num_classes=classes[0]).state_dict()
        found = {name: tuple(t.shape) for name, t in state.items() if not _is_statistic(name)}
        if found == wanted:
            return arch
    return None


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _slow_r50(norm: PytorchvideoNorm, num_classes: int, dropout: float) -> Any:
    from pytorchvideo.models.hub.resnet import slow_r50

    return slow_r50(norm=norm, model_num_class=num_classes, dropout_rate=dropout)


def _r2plus1d_r50(norm: PytorchvideoNorm, num_classes: int, dropout: float) -> Any:
    from pytorchvideo.models.r2plus1d import create_r2plus1d

    # The hub's builder sets the dropout itself.
    return create_r2plus1d(norm=norm, model_num_class=num_classes, dropout_rate=dropout)


def _csn_r101(norm: PytorchvideoNorm, num_classes: int, dropout: float) -> Any:
    from pytorchvideo.models.hub.csn import csn_r101

    return csn_r101(norm=norm, model_num_class=num_classes, dropout_rate=dropout)


def _x3d(size: str) -> Callable[[PytorchvideoNorm, int, float], Any]:
    def build(norm: PytorchvideoNorm, num_classes: int, dropout: float) -> Any:
        from pytorchvideo.models.hub import x3d

        builder = getattr(x3d, f"x3d_{size}")
        return builder(
            norm=norm, model_num_class=num_classes, dropout_rate=dropout, head_activation=None
        )

    return build


BUILDERS: dict[str, Callable[[PytorchvideoNorm, int, float], Any]] = {
    "slow_r50": _slow_r50,
    "r2plus1d_r50": _r2plus1d_r50,
    "csn_r101": _csn_r101,
    "x3d_xs": _x3d("xs"),
    "x3d_s": _x3d("s"),
    "x3d_m": _x3d("m"),
    "x3d_l": _x3d("l"),
}
"""Name -> pytorchvideo's builder, called with a norm, the classes and the dropout."""

CHANNEL_DIVISORS = {f"x3d_{size}": (6, 3, 2, 1) for size in ("xs", "s", "m", "l")}
"""X3D's layers have 24, 54, 108, … channels: what divides all of them. Others are multiples of 64,
or, in R(2+1)D, of 32."""
