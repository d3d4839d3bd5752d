"""Inflation of 2D weights into the video network (paper section 4.3; non-local paper, section 4).

A kernel (O, I, H, W) becomes (O, I, t, H, W). Everything else is copied as it is: gamma, beta and
running statistics are per channel in 2D and 3D alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.initialise import CLASSIFIER_STD
from videogn.models.names import PYTORCHVIDEO
from videogn.models.plain_resnet import AFFINE, BATCH, COUNTER, GROUP, NONE
from videogn.models.sources import Source, as_2d
from videogn.models.spec import ARCHITECTURES, NetworkSpec
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
    source: Source,
    spec: NetworkSpec,
    temporal_init: str,
    class_names: tuple[str, ...] | None = None,
) -> tuple[dict[str, Tensor], InflationReport]:
    """State dict of the video network ``spec`` from a 2D network's.

    Args:
        source: 2D weights, or 3D ones whose kernels all have one time step.
        temporal_init: a key of :data:`TEMPORAL_INITS`.
        class_names: names of the wanted classes. The classifier is kept where the number of
            classes is the same and no names are known to differ.

    Raises:
        WeightError: the source is of another network, or a tensor is missing or left over:
            never half of the weights.
    """
    if temporal_init not in TEMPORAL_INITS:
        raise WeightError(
            f"temporal init {temporal_init!r} is unknown; choose from {', '.join(TEMPORAL_INITS)}"
        )
    source = as_2d(source)
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
        tensor, steps = source.state[name_2d], wanted[name].shape[2:3]
        state[name] = inflate(tensor, *steps) if steps else tensor.clone()
    return {name: state[name] for name in wanted}, report


def keeps_classifier(
    source: Source, spec: NetworkSpec, class_names: tuple[str, ...] | None
) -> bool:
    """Whether the source's classifier is one of the wanted classes, as far as is known."""
    renamed = None not in (class_names, source.class_names) and class_names != source.class_names
    return source.num_classes == spec.num_classes and not renamed


def source_name(name: str) -> str:
    """Plain name of a parameter of the video network.

    >>> source_name("blocks.4.res_blocks.2.branch2.norm_b.weight")
    'layer3.2.bn2.weight'

    Raises:
        ValueError: the video network has none of that name.
    """
    plain = PYTORCHVIDEO.to_plain(name)
    if plain is None:
        raise ValueError(f"no 2D name for {name!r}")
    return plain


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


NORM_REASONS = {
    BATCH: "the weights have BN's running statistics: ImageNet BN weights cannot be reused for a "
    "net of norm {wanted}, which normalises otherwise",
    AFFINE: "its batch norms are folded into a scale and a shift per channel, with nothing left "
    "to train as {wanted}",
    GROUP: "the weights have gamma and beta but no running statistics, which {wanted} needs",
    NONE: "the weights have no norm layers, and {wanted} has",
}
"""Norm family of a source -> why it is of no other norms."""


def _refuse_other_network(source: Source, spec: NetworkSpec) -> None:
    if spec.family != "i3d":
        videos = [name for name, each in ARCHITECTURES.items() if each.family == "i3d"]
        raise WeightError(
            f"--arch {spec.arch}: 2D weights are not inflated into it; choose from "
            f"{', '.join(videos)}"
        )
    _refuse_other_norm(source, spec)
    if source.depths != spec.depths:
        found, wanted = (_numbers(depths) for depths in (source.depths, spec.depths))
        raise WeightError(
            f"{source.path}: has depths {found} and {wanted} is wanted; "
            f"give {_arch_of(spec, source.depths)}--depths {found}"
        )
    if source.width != spec.width:
        raise WeightError(
            f"{source.path}: has width {source.width} and {spec.width} is wanted; "
            f"give --width {source.width}"
        )
    if source.spec is not None:
        _refuse_other_groups(source, source.spec, spec)


def _refuse_other_norm(source: Source, spec: NetworkSpec) -> None:
    norms = (source.spec.norm,) if source.spec else source.norms
    if source.norm_family in (BATCH, AFFINE):
        norms = source.norms  # one set of weights, however it is trained
    if spec.norm in norms:
        return
    reason = NORM_REASONS[source.norm_family].format(wanted=spec.norm)
    if source.spec and spec.norm in source.norms:
        reason = "it was trained so"
    elif source.norm_family == GROUP and spec.norm == "none":
        reason = "the weights have gamma and beta, for which a net without norms has no place"
    fitting = " or ".join(norms)
    raise WeightError(
        f"{source.path}: has weights of {fitting} and --norm {spec.norm} is wanted; {reason}. "
        f"Give --norm {fitting}, or 2D weights trained with {spec.norm}"
    )


def _arch_of(spec: NetworkSpec, depths: tuple[int, ...]) -> str:
    """The flag of the architecture like ``spec``'s that has other depths, where there is one."""
    inflation = ARCHITECTURES[spec.arch].inflation
    for name, each in ARCHITECTURES.items():
        if (each.family, each.inflation, each.depths) == (spec.family, inflation, depths):
            return f"--arch {name} or "
    return ""


def _numbers(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _refuse_other_groups(source: Source, described: NetworkSpec, spec: NetworkSpec) -> None:
    differences = described.differences(spec)
    for key in ("num_groups", "channels_per_group"):
        if key in differences:
            found, wanted = differences[key]
            flag = f"--{key.replace('_', '-')}"
            remedy = f"give {flag} {found}" if found is not None else f"leave {flag} out"
            raise WeightError(
                f"{source.path}: was trained with {key} {found} and {wanted} is wanted; {remedy}"
            )


def _fresh_values(
    source: Source, wanted: Mapping[str, Tensor], keep_classifier: bool
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
    source: Source,
    wanted: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    pairs: Mapping[str, str],
) -> InflationReport:
    present = [name for name, name_2d in pairs.items() if name_2d in source.state]
    inflated = [name for name in present if wanted[name].ndim == 5 and wanted[name].shape[2] > 1]
    unused = [name for name in source.state if name not in pairs.values()]
    replaced = {source_name(other) for other in fresh}
    # Frozen norms count no batches.
    skipped = [name for name in unused if name in replaced or name.endswith(COUNTER)]
    return InflationReport(
        loaded=tuple(name for name in present if name not in inflated),
        inflated=tuple(inflated),
        skipped=tuple(skipped),
        fresh=tuple(fresh),
        missing=tuple(f"{pairs[name]}" for name in pairs if name not in present),
        unexpected=tuple(name for name in unused if name not in skipped),
    )


def _refuse_half_a_load(source: Source, report: InflationReport) -> None:
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
