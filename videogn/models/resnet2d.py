"""The 2D ResNet-50 that video networks are inflated from, under torchvision's parameter names.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.initialise import initialise, start_as_identity
from videogn.models.norm import NormFactory, make_norm


class ResNet2d(nn.Module):
    """An image network that also takes clips of one frame, so that one trainer serves both."""

    def __init__(
        self,
        norm_layer: NormFactory,
        num_classes: int,
        width: int,
        depths: Sequence[int],
        dropout: float,
        stem_pool_padding: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=stem_pool_padding)
        self.num_stages = len(depths)
        for stage, depth in enumerate(depths):
            self.add_module(f"layer{stage + 1}", _stage(stage, depth, width, norm_layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * width * 2 ** (len(depths) - 1), num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, 1, H, W) or images (B, 3, H, W).

        Raises:
            UserError: the input is neither.
        """
        pooled = self.avgpool(self.features(clips)).flatten(1)
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits

    def forward_locations(self, clips: Tensor) -> Tensor:
        """Logits (B, K, 1, 1): as in torchvision, one average over the whole image."""
        return self.forward(clips)[:, :, None, None]

    def features(self, clips: Tensor) -> Tensor:
        """Output of the last residual stage, (B, C, h, w)."""
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images_of(clips)))))
        for stage in range(self.num_stages):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        return features


def resnet50(
    *,
    norm: str = "gn",
    num_groups: int = 32,
    channels_per_group: int | None = None,
    num_classes: int = 1000,
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    dropout: float = 0.0,
    stem_pool_padding: int = 1,
) -> ResNet2d:
    """2D ResNet-50 with random weights, torchvision's in every part.

    Args:
        norm: a key of :data:`videogn.models.norm.NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        width: channels of the stem.
        depths: residual blocks of each stage.
        stem_pool_padding: pixels; 0 is the unpadded pool of the released video network.

    Raises:
        UserError: there is no such norm, or the groups do not divide the channels.
    """
    norm_layer = make_norm(norm, num_groups, channels_per_group, dims=2)
    network = ResNet2d(norm_layer, num_classes, width, depths, dropout, stem_pool_padding)
    initialise(network)
    for module in network.modules():
        if isinstance(module, _bottleneck()):
            start_as_identity(module.conv3, module.bn3)
    return network


def images_of(clips: Tensor) -> Tensor:
    """Images (B, 3, H, W) of clips (B, 3, 1, H, W), or the images given.

    Raises:
        UserError: the input is neither.
    """
    if clips.ndim == 5 and clips.shape[2] == 1:
        clips = clips.squeeze(2)
    if clips.ndim != 4 or clips.shape[1] != 3:
        raise UserError(
            f"a 2D network takes (B, 3, 1, H, W) or (B, 3, H, W), got {tuple(clips.shape)}; "
            "set clip.num_frames=1"
        )
    return clips


def _bottleneck() -> Any:
    """torchvision's block, which takes seconds to import: a wrong config is told before that."""
    from torchvision.models.resnet import Bottleneck

    return Bottleneck


def _stage(stage: int, depth: int, width: int, norm_layer: NormFactory) -> nn.Sequential:
    """Residual blocks of one resolution; the 3x3 kernel of the first has the stride."""
    dim_inner = width * 2**stage
    dim_out = 4 * dim_inner
    dim_in = width if stage == 0 else dim_out // 2
    stride = 1 if stage == 0 else 2
    shortcut = nn.Sequential(
        nn.Conv2d(dim_in, dim_out, kernel_size=1, stride=stride, bias=False), norm_layer(dim_out)
    )
    block = _bottleneck()
    first = block(dim_in, dim_inner, stride, shortcut, norm_layer=norm_layer)
    rest = (block(dim_out, dim_inner, norm_layer=norm_layer) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)
