"""VGG-16 with a norm behind every convolution (paper section 4.1), under torchvision's names.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from videogn.errors import UserError
from videogn.models.initialise import initialise
from videogn.models.norm import NormFactory, make_norm
from videogn.models.resnet2d import images_of

GROWTH = (1, 2, 4, 8, 8)
"""Channels of the stages in multiples of the first one's."""
POOLED = 7
"""Height and width of the map that the first linear layer sees."""


class VGG2d(nn.Module):
    """VGG: five stages of 3x3 convolutions, each ending in a max pool, and three linear layers.

    With a norm the names are those of torchvision's ``vgg16_bn``; so they are without one, where
    torchvision's ``vgg16`` counts otherwise.
    """

    def __init__(
        self,
        norm_layer: NormFactory,
        num_classes: int,
        width: int,
        depths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*_features(norm_layer, width, depths))
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(width * GROWTH[len(depths) - 1] * POOLED**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, 1, H, W) or images (B, 3, H, W).

        Raises:
            UserError: the input is neither, or too small for the pools.
        """
        images = images_of(clips)
        smallest = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.features)
        if min(images.shape[2:]) < smallest:
            raise UserError(
                f"images of {images.shape[2]}x{images.shape[3]} pixels are too small: VGG takes at "
                f"least {smallest}x{smallest}; raise clip.crop_size"
            )
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits

    def forward_locations(self, clips: Tensor) -> Tensor:
        """Logits (B, K, 1, 1): as in torchvision, one view of the whole image."""
        return self.forward(clips)[:, :, None, None]


def vgg16(
    *,
    norm: str = "gn",
    num_groups: int = 32,
    channels_per_group: int | None = None,
    num_classes: int = 1000,
    width: int = 64,
    depths: Sequence[int] = (2, 2, 3, 3, 3),
    dropout: float = 0.5,
) -> VGG2d:
    """VGG-16 with random weights (paper section 4.1, Figure 6).

    Args:
        norm: a key of :data:`videogn.models.norm.NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        width: channels of the first stage.
        depths: convolutions of each stage.

    Raises:
        UserError: there is no such norm, or the groups do not divide the channels.
    """
    norm_layer = make_norm(norm, num_groups, channels_per_group, dims=2)
    network = VGG2d(norm_layer, num_classes, width, depths, dropout)
    initialise(network)
    return network


def _features(norm_layer: NormFactory, width: int, depths: Sequence[int]) -> Iterator[nn.Module]:
    channels = 3
    for growth, depth in zip(GROWTH, depths, strict=False):
        for _ in range(depth):
            yield nn.Conv2d(channels, width * growth, kernel_size=3, padding=1)
            channels = width * growth
            yield norm_layer(channels)
            yield nn.ReLU(inplace=True)
        yield nn.MaxPool2d(kernel_size=2, stride=2)
