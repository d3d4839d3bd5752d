"""Does the inflated network do on a still clip what the 2D network does on the image?

Centre inflation must: every time step sees the middle plane alone, or zeros. Mean inflation need
not, for the first and last time step lose a third of a 3-tap kernel to the zero padding.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.i3d import I3D, LAYOUTS
from videogn.models.inflate import TEMPORAL_INITS, inflate_state_dict, keeps_classifier
from videogn.models.resnet2d import ResNet2d
from videogn.models.sources import Source, as_2d
from videogn.models.spec import NetworkSpec

CENTER_TOLERANCE = 1e-3
"""Relative error of float32 sums in another order is about 1e-6; a misplaced tensor gives 1."""


@dataclass(frozen=True)
class StillClipError:
    """How far an inflated network is from a 2D network on one repeated image.

    Attributes:
        temporal_init: how it was inflated.
        reference: which 2D network: ``as published`` or ``unpadded stem pool``.
        same_function: whether centre inflation must reproduce that network.
        per_step: relative error |a - b| / |b| of the res5 features at each time step.
        pooled: the same after averaging over time and space.
        logits: the same of the logits, by the source's classifier; None where it has none.
    """

    temporal_init: str
    reference: str
    same_function: bool
    per_step: tuple[float, ...]
    pooled: float
    logits: float | None


@torch.no_grad()
def verify_inflation(
    source: Source,
    spec: NetworkSpec,
    *,
    class_names: tuple[str, ...] | None = None,
    num_frames: int = 32,
    size: int = 224,
) -> tuple[StillClipError, ...]:
    """Compare both temporal inits with the 2D network on a still clip of random values.

    Args:
        size: pixels of a side, a multiple of 8.

    Raises:
        WeightError: centre inflation does not reproduce the 2D network, so the tensors are in
            the wrong places.
    """
    source = as_2d(source)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    clip = image.unsqueeze(2).expand(-1, -1, num_frames, -1, -1)
    kept = keeps_classifier(source, spec, class_names)
    rows = []
    for temporal_init in TEMPORAL_INITS:
        network = _inflated(source, spec, temporal_init, class_names)
        features = network.features(clip)
        for name, same_function, padding in _references(spec.layout):
            reference = _network_2d(source, spec, padding)
            if kept:
                logits = network.blocks[-1](features).flatten(2).mean(2)
            else:
                logits = reference.fc(features.mean((2, 3, 4)))
            rows.append(
                StillClipError(
                    temporal_init,
                    name,
                    same_function,
                    *_errors(features, reference.features(image)),
                    _relative(logits, reference(image)) if source.num_classes else None,
                )
            )
    _refuse_wrong_center(source, rows)
    return tuple(rows)


def describe_verification(rows: tuple[StillClipError, ...]) -> str:
    """The errors as an aligned table, and what to expect of them."""
    lines = ["relative errors on a still clip against the 2D network on the image"]
    lines += [f"{'inflation':12}{'2D network':22}{'per time step':>22}{'pooled':>10}{'logits':>10}"]
    for row in rows:
        steps = f"{min(row.per_step):.1e} to {max(row.per_step):.1e}"
        logits = "-" if row.logits is None else f"{row.logits:.1e}"
        lines.append(
            f"{row.temporal_init:12}{row.reference:22}{steps:>22}{row.pooled:>10.1e}{logits:>10}"
        )
    if any(row.temporal_init == "mean" and row.pooled > CENTER_TOLERANCE for row in rows):
        lines.append(
            "mean differs by design: zero padding takes part of each temporal kernel at the "
            "clip's ends"
        )
    if not all(row.same_function for row in rows):
        lines.append(
            "as published the 2D network pads its stem pool; this layout, as released, does not"
        )
    return "\n".join(lines)


def _references(layout: str) -> tuple[tuple[str, bool, int], ...]:
    """Name, whether it is the layout's own function, and stem pool padding of each 2D network."""
    padding = LAYOUTS[layout].pool1_padding[1]
    published = ("as published", padding == 1, 1)
    return (published,) if padding == 1 else (published, ("unpadded stem pool", True, padding))


def _inflated(
    source: Source,
    spec: NetworkSpec,
    temporal_init: str,
    class_names: tuple[str, ...] | None,
) -> I3D:
    state, _ = inflate_state_dict(source, spec, temporal_init, class_names)
    return cast(I3D, _with_weights(spec, state))


def _network_2d(source: Source, spec: NetworkSpec, stem_pool_padding: int) -> ResNet2d:
    state = dict(source.state)
    features = 4 * spec.width * 2 ** (len(spec.depths) - 1)
    state.setdefault("fc.weight", torch.zeros(spec.num_classes, features))
    state.setdefault("fc.bias", torch.zeros(spec.num_classes))
    spec = replace(
        spec, arch="resnet50", num_classes=source.num_classes or spec.num_classes, dropout=0.0
    )
    network = cast(ResNet2d, _with_weights(spec, state))
    network.maxpool.padding = stem_pool_padding
    return network


def _with_weights(spec: NetworkSpec, state: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        network = build_network(spec)
    for name in network.state_dict():
        # Older files lack BN's counters, which evaluation does not read.
        state.setdefault(name, torch.zeros((), dtype=torch.int64))
    network.load_state_dict(state, assign=True)
    return network.eval()


def _errors(features: Tensor, reference: Tensor) -> tuple[tuple[float, ...], float]:
    """Relative errors of (1, C, T, h, w) against (1, C, h, w): at each time step, and pooled."""
    steps = tuple(_relative(step, reference) for step in features.unbind(2))
    return steps, _relative(features.mean((2, 3, 4)), reference.mean((2, 3)))


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def _refuse_wrong_center(source: Source, rows: list[StillClipError]) -> None:
    worst = max(
        max(row.per_step) for row in rows if row.temporal_init == "center" and row.same_function
    )
    if not worst <= CENTER_TOLERANCE:
        raise WeightError(
            f"{source.path}: verification failed: with centre inflation the features differ from "
            f"the 2D network's by {worst:.1e} (relative), above {CENTER_TOLERANCE:.0e}; nothing "
            "was written"
        )
