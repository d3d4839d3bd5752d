"""From the description of a network to the network."""

from collections.abc import Callable

from torch import nn

from videogn.errors import UserError
from videogn.models.i3d import i3d
from videogn.models.resnet2d import resnet50
from videogn.models.spec import ARCHITECTURES, NetworkSpec


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network a spec describes, with random weights.

    Raises:
        UserError: there is no such architecture, norm or layout, or the groups do not divide the
            channels.
    """
    if spec.arch not in ARCHITECTURES:
        raise UserError(
            f"model.arch={spec.arch!r}: no such network; choose from {', '.join(ARCHITECTURES)}"
        )
    return FAMILIES[ARCHITECTURES[spec.arch].family](spec)


def _build_i3d(spec: NetworkSpec) -> nn.Module:
    return i3d(
        inflation=ARCHITECTURES[spec.arch].inflation or "none",
        norm=spec.norm,
        num_groups=spec.num_groups,
        channels_per_group=spec.channels_per_group,
        num_classes=spec.num_classes,
        layout=spec.layout,
        width=spec.width,
        depths=spec.depths,
        dropout=spec.dropout,
    )


def _build_resnet2d(spec: NetworkSpec) -> nn.Module:
    return resnet50(
        norm=spec.norm,
        num_groups=spec.num_groups,
        channels_per_group=spec.channels_per_group,
        num_classes=spec.num_classes,
        width=spec.width,
        depths=spec.depths,
        dropout=spec.dropout,
    )


FAMILIES: dict[str, Callable[[NetworkSpec], nn.Module]] = {
    "i3d": _build_i3d,
    "resnet2d": _build_resnet2d,
}
"""Family -> builder."""
