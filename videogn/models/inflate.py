"""Inflation of 2D weights into the video network (paper section 4.3; non-local paper, section 4).

A kernel (O, I, H, W) becomes (O, I, t, H, W). Everything else is copied as it is: gamma, beta and
running statistics are per channel in 2D and 3D alike.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.initialise import CLASSIFIER_STD
from videogn.models.sources import COUNTER, Source2D
from videogn.models.spec import NetworkSpec
from videogn.models.weights import few

CLASSIFIER_SEED = 0
"""Seed of a fresh classifier: the same command writes the same file."""


@dataclass(frozen=True)
class InflationReport:
    """What became of every tensor.

    Attributes:
        loaded: parameters of the video network copied as they are.
        inflated: kernels that gained more than one time step.
        skipped: tensors of the source left out on purpose: a classifier of other classes.
        fresh: parameters of the video network the source has no values for, by right.
        missing: parameters of the video network the source lacks; always empty in a report that
            is returned.
        unexpected: tensors of the source without a place; always empty likewise.
    """

    loaded: tuple[str, ...]
    inflated: tuple[str, ...]
    skipped: tuple[str, ...]
    fresh: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def fresh_classifier(self) -> bool:
        """Whether the classifier starts at random."""
        return any(source_name(name) == "fc.weight" for name in self.fresh)


def inflate_state_dict(
    source: Source2D,
    spec: NetworkSpec,
    temporal_init: str,
    class_names: tuple[str, ...] | None = None,
) -> tuple[dict[str, Tensor], InflationReport]:
    """State dict of the video network ``spec`` from a 2D network's.

    Args:
        temporal_init: a key of :data:`TEMPORAL_INITS`.
        class_names: names of the wanted classes. The classifier is kept where the number of
            classes is the same and no names are known to differ.

    Raises:
        WeightError: the source is of another network, or a tensor is missing, left over or of
            the wrong shape: never half of the weights.
    """
    if temporal_init not in TEMPORAL_INITS:
        raise WeightError(
            f"temporal init {temporal_init!r} is unknown; choose from {', '.join(TEMPORAL_INITS)}"
        )
    _refuse_other_network(source, spec)
    with torch.device("meta"):
        wanted = build_network(spec).state_dict()
    fresh = _fresh_values(source, wanted, keeps_classifier(source, spec, class_names))
    pairs = {name: source_name(name) for name in wanted if name not in fresh}
    report = _report(source, wanted, fresh, pairs)
    _refuse_half_a_load(source, report)
    inflate = TEMPORAL_INITS[temporal_init]
    state = dict(fresh)
    for name, name_2d in pairs.items():
        state[name] = _fit(source, name_2d, wanted[name], inflate)
    return {name: state[name] for name in wanted}, report


def keeps_classifier(
    source: Source2D, spec: NetworkSpec, class_names: tuple[str, ...] | None
) -> bool:
    """Whether the source's classifier is one of the wanted classes, as far as is known."""
    renamed = None not in (class_names, source.class_names) and class_names != source.class_names
    return source.num_classes == spec.num_classes and not renamed


def source_name(name: str) -> str:
    """Torchvision's name of a parameter of the video network.

    >>> source_name("blocks.4.res_blocks.2.branch2.norm_b.weight")
    'layer3.2.bn2.weight'
    """
    for pattern, replace in NAMES:
        if found := re.fullmatch(pattern, name):
            return replace(found)
    raise ValueError(f"no 2D name for {name!r}")


def _layer(block: str) -> str:
    """``layer1`` to ``layer4`` are blocks 1, 3, 4, 5; block 2 is the temporal pool."""
    return f"layer{1 if block == '1' else int(block) - 1}"


NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"blocks\.0\.conv\.(\w+)", lambda m: f"conv1.{m[1]}"),
    (r"blocks\.0\.norm\.(\w+)", lambda m: f"bn1.{m[1]}"),
    (
        r"blocks\.(\d)\.res_blocks\.(\d+)\.branch2\.(conv|norm)_([abc])\.(\w+)",
        lambda m: (
            f"{_layer(m[1])}.{m[2]}.{'conv' if m[3] == 'conv' else 'bn'}"
            f"{'abc'.index(m[4]) + 1}.{m[5]}"
        ),
    ),
    (
        r"blocks\.(\d)\.res_blocks\.(\d+)\.branch1_(conv|norm)\.(\w+)",
        lambda m: f"{_layer(m[1])}.{m[2]}.downsample.{0 if m[3] == 'conv' else 1}.{m[4]}",
    ),
    (r"blocks\.\d\.proj\.(\w+)", lambda m: f"fc.{m[1]}"),
)
"""Pattern of a name in the video network -> torchvision's name."""


def inflate_mean(kernel: Tensor, num_steps: int) -> Tensor:
    """(O, I, H, W) to (O, I, t, H, W): w / t at every time step (non-local paper, section 4)."""
    return (kernel / num_steps).unsqueeze(2).repeat(1, 1, num_steps, 1, 1)


def inflate_center(kernel: Tensor, num_steps: int) -> Tensor:
    """(O, I, H, W) to (O, I, t, H, W): w at the middle time step, 0 at the others."""
    inflated = kernel.new_zeros(*kernel.shape[:2], num_steps, *kernel.shape[2:])
    inflated[:, :, num_steps // 2] = kernel
    return inflated


TEMPORAL_INITS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": inflate_mean,
    "center": inflate_center,
}
"""Name -> how a 2D kernel becomes one of t time steps."""


def _refuse_other_network(source: Source2D, spec: NetworkSpec) -> None:
    if spec.arch != "i3d_r50":
        raise WeightError(f"model.arch={spec.arch!r} is not inflated; choose i3d_r50")
    if source.norm != spec.norm:
        reason = {
            "bn": "the weights have BN's running statistics: ImageNet BN weights cannot be reused "
            "for a GN net, whose layers normalise otherwise",
            "gn": "the weights have no running statistics, which a BN net needs",
        }[source.norm]
        raise WeightError(
            f"{source.path}: is a {source.norm.upper()} network and --norm {spec.norm} is wanted; "
            f"{reason}. Give --norm {source.norm}, or 2D weights trained with {spec.norm.upper()}"
        )
    if source.depths != spec.depths:
        found, wanted = (",".join(map(str, depths)) for depths in (source.depths, spec.depths))
        raise WeightError(
            f"{source.path}: has depths {found} and {wanted} is wanted; give --depths {found}"
        )
    if source.width != spec.width:
        raise WeightError(
            f"{source.path}: has width {source.width} and {spec.width} is wanted; "
            f"give --width {source.width}"
        )
    if source.spec is not None:
        _refuse_other_groups(source, source.spec, spec)


def _refuse_other_groups(source: Source2D, described: NetworkSpec, spec: NetworkSpec) -> None:
    differences = described.differences(spec)
    for key in ("num_groups", "channels_per_group"):
        if key in differences:
            found, wanted = differences[key]
            raise WeightError(
                f"{source.path}: was trained with {key} {found} and {wanted} is wanted; "
                f"give the same --{key.replace('_', '-')}"
            )


def _fresh_values(
    source: Source2D, wanted: Mapping[str, Tensor], keep_classifier: bool
) -> dict[str, Tensor]:
    """Values that do not come from the source: a new classifier, and counters it never had."""
    fresh = {
        name: torch.zeros((), dtype=tensor.dtype)
        for name, tensor in wanted.items()
        if name.endswith(COUNTER) and source_name(name) not in source.state
    }
    if not keep_classifier:
        generator = torch.Generator().manual_seed(CLASSIFIER_SEED)
        for name, tensor in wanted.items():
            if source_name(name) == "fc.weight":
                fresh[name] = torch.randn(tensor.shape, generator=generator) * CLASSIFIER_STD
            elif source_name(name) == "fc.bias":
                fresh[name] = torch.zeros(tensor.shape)
    return fresh


def _report(
    source: Source2D,
    wanted: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    pairs: Mapping[str, str],
) -> InflationReport:
    present = [name for name, name_2d in pairs.items() if name_2d in source.state]
    inflated = [name for name in present if wanted[name].ndim == 5 and wanted[name].shape[2] > 1]
    unused = [name for name in source.state if name not in pairs.values()]
    skipped = [name for name in unused if name in {source_name(other) for other in fresh}]
    return InflationReport(
        loaded=tuple(name for name in present if name not in inflated),
        inflated=tuple(inflated),
        skipped=tuple(skipped),
        fresh=tuple(fresh),
        missing=tuple(f"{pairs[name]}" for name in pairs if name not in present),
        unexpected=tuple(name for name in unused if name not in skipped),
    )


def _refuse_half_a_load(source: Source2D, report: InflationReport) -> None:
    faults = []
    if report.missing:
        faults.append(f"{len(report.missing)} missing: {few(report.missing)}")
    if report.unexpected:
        faults.append(f"{len(report.unexpected)} unexpected: {few(report.unexpected)}")
    if faults:
        raise WeightError(
            f"{source.path}: its tensors are not those of a plain ResNet; {'; '.join(faults)}; "
            "nothing was loaded"
        )


def _fit(
    source: Source2D, name_2d: str, wanted: Tensor, inflate: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """One tensor of the source in the shape the video network wants."""
    tensor = source.state[name_2d]
    shape = wanted.shape if wanted.ndim != 5 else wanted.shape[:2] + wanted.shape[3:]
    if tensor.shape != shape:
        raise WeightError(
            f"{source.path}: {name_2d} is {tuple(tensor.shape)} and {tuple(shape)} is wanted; "
            "give a plain ResNet"
        )
    return inflate(tensor, wanted.shape[2]) if wanted.ndim == 5 else tensor.clone()
