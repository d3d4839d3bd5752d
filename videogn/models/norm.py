"""The normalisation layers: a table from a name to what builds one layer.

All of them have gamma and beta per channel (paper section 3.1), so a network has the same
parameters under the same names whichever is chosen.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from videogn.errors import UserError

EPS = 1e-5
BN_MOMENTUM = 0.1
"""Share of the newest batch in BN's running statistics."""

NormFactory = Callable[[int], nn.Module]
"""From a number of channels to a norm layer."""


def make_norm(
    name: str, num_groups: int = 32, channels_per_group: int | None = None, *, dims: int = 3
) -> NormFactory:
    """What builds the norm layers of a network.

    Args:
        name: a key of :data:`NORMS`.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        dims: 2 for inputs (B, C, H, W), 3 for inputs (B, C, T, H, W).

    Raises:
        UserError: there is no such norm; the factory raises it for channels that the groups do
            not divide.
    """
    if name not in NORMS:
        raise UserError(f"model.norm={name!r}: no such norm; choose from {', '.join(NORMS)}")
    build = NORMS[name]

    def build_layer(num_channels: int) -> nn.Module:
        groups = _Groups(num_channels, num_groups, channels_per_group)
        return build(num_channels, dims, groups)

    return build_layer


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer of any kind."""
    return isinstance(module, NORM_TYPES)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Gamma and beta of every norm layer: the parameters that may have their own weight decay."""
    for module in model.modules():
        if is_norm(module):
            yield from module.parameters(recurse=False)


@dataclass(frozen=True)
class _Groups:
    """How the channels of one layer are to be grouped, worked out only where a norm asks."""

    num_channels: int
    num_groups: int
    channels_per_group: int | None

    def count(self) -> int:
        """Number of groups of contiguous channels.

        Raises:
            UserError: the channels cannot be shared out evenly.
        """
        channels, size = self.num_channels, self.channels_per_group
        divisor = self.num_groups if size is None else size
        if channels % divisor:
            # Layers are multiples of the stem, which is built first: what fits it fits them all.
            fitting = math.gcd(channels, divisor)
            wish = f"{divisor} groups" if size is None else f"groups of {size} channels"
            remedy = f"model.channels_per_group={fitting if size else math.gcd(channels, 4)}"
            other = f" or model.num_groups={fitting}" if size is None else ""
            raise UserError(
                f"GN cannot share {channels} channels out to {wish}; set {remedy}{other}"
            )
        return self.num_groups if size is None else channels // size


def _batch_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    layer = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return layer(num_channels, eps=EPS, momentum=BN_MOMENTUM)


def _group_norm(num_channels: int, dims: int, groups: _Groups) -> nn.Module:
    # torch's GroupNorm takes its statistics over all axes behind the channels, so over (T, H, W)
    # for video (paper section 4.3).
    return nn.GroupNorm(groups.count(), num_channels, eps=EPS)


NORMS: dict[str, Callable[[int, int, _Groups], nn.Module]] = {
    "bn": _batch_norm,
    "gn": _group_norm,
}
"""Name -> builder of one layer from its channels, its spatial dimensions and its groups."""

NORM_TYPES: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
)
