"""From the description of a network to the network."""

from collections.abc import Callable
from typing import Any

from torch import nn

from videogn.errors import UserError
from videogn.models.i3d import i3d
from videogn.models.resnet2d import resnet50
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.models.vgg2d import vgg16
from videogn.models.zoo import zoo_network


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


def _norm_and_classes(spec: NetworkSpec) -> dict[str, Any]:
    """Arguments that every builder takes."""
    return {
        "norm": spec.norm,
        "num_groups": spec.num_groups,
        "channels_per_group": spec.channels_per_group,
        "num_classes": spec.num_classes,
        "dropout": spec.dropout,
    }


def _build_i3d(spec: NetworkSpec) -> nn.Module:
    inflation = ARCHITECTURES[spec.arch].inflation or "none"
    return i3d(
        inflation=inflation,
        layout=spec.layout,
        width=spec.width,
        depths=spec.depths,
        **_norm_and_classes(spec),
    )


def _build_resnet2d(spec: NetworkSpec) -> nn.Module:
    return resnet50(width=spec.width, depths=spec.depths, **_norm_and_classes(spec))


def _build_vgg2d(spec: NetworkSpec) -> nn.Module:
    return vgg16(width=spec.width, depths=spec.depths, **_norm_and_classes(spec))


def _build_zoo(spec: NetworkSpec) -> nn.Module:
    own = ARCHITECTURES[spec.arch]
    if (spec.width, spec.depths) != (own.width, own.depths):
        raise UserError(
            f"model.arch={spec.arch} is pytorchvideo's, of width {own.width} and depths "
            f"{','.join(map(str, own.depths))}; leave model.width and model.depths out"
        )
    return zoo_network(spec.arch, **_norm_and_classes(spec))


FAMILIES: dict[str, Callable[[NetworkSpec], nn.Module]] = {
    "i3d": _build_i3d,
    "resnet2d": _build_resnet2d,
    "vgg2d": _build_vgg2d,
    "zoo": _build_zoo,
}
"""Family -> builder."""
