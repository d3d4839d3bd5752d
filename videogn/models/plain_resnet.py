"""Is it the whole of a plain bottleneck ResNet, under plain names, and which norms has it?"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from videogn.errors import WeightError
from videogn.models.formats import (
    PlainTensors,
    WeightFormat,
)
from videogn.models.norm import EPS
from videogn.models.weights import (
    few,
)

COUNTER = "num_batches_tracked"
"""BN's count of batches, the one integer tensor; many files lack it."""

BATCH, AFFINE, GROUP, NONE = "batch", "affine", "group", "none"

NORM_FAMILIES = {
    BATCH: ("bn", "sync_bn", "frozen_bn"),
    AFFINE: ("frozen_bn",),
    GROUP: ("gn", "ln", "in"),
    NONE: ("none",),
}
"""What norm tensors a file has -> norms they may be of.

``batch`` has running statistics. ``affine`` is a batch norm folded into a scale and a shift per
channel, as Caffe2 deploys it. ``group`` has gamma and beta alone, which do not tell the groups.
"""

NORM_PARTS = {
    BATCH: ("weight", "bias", "running_mean", "running_var"),
    AFFINE: ("weight", "bias"),
    GROUP: ("weight", "bias"),
    NONE: (),
}
"""Norm family -> tensors of each norm layer in a file."""


def without_zero_biases(path: Path, plain: PlainTensors) -> PlainTensors:
    """Caffe's converters give every convolution a bias of zeros, which means nothing."""
    biases = [
        name
        for name in plain.state
        if name.endswith(".bias") and re.search(r"conv\d\.bias$|downsample\.0\.bias$", name)
    ]
    real = [plain.called[name] for name in biases if plain.state[name].count_nonzero()]
    if real:
        raise WeightError(
            f"{path}: has convolutions with biases other than 0: {few(real)}; give a plain ResNet, "
            "whose have none"
        )
    return replace(
        plain,
        state={name: t for name, t in plain.state.items() if name not in biases},
        dropped=(*plain.dropped, *(plain.called[name] for name in biases)),
    )


def as_float32(
    path: Path, state: Mapping[str, Tensor], called: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors as float32, BN's counts as int64.

    Args:
        called: plain name -> name in the file, for messages.

    Raises:
        WeightError: a tensor is of no number, not finite, or a negative variance.
    """
    weights = {name: t for name, t in state.items() if not name.endswith(COUNTER)}
    wrong = [
        f"{called[name]} ({t.dtype})" for name, t in weights.items() if not t.is_floating_point()
    ]
    if wrong:
        raise WeightError(f"{path}: tensors that are not floating point: {few(wrong)}")
    weights = {name: t.float() for name, t in weights.items()}
    wrong = [called[name] for name, t in weights.items() if not t.isfinite().all()]
    if wrong:
        raise WeightError(
            f"{path}: NaN or infinite values in {few(wrong)}; use weights from before they arose"
        )
    negative = [
        called[name] for name, t in weights.items() if "running_var" in name and (t < 0).any()
    ]
    if negative:
        raise WeightError(f"{path}: negative variances in {few(negative)}; it is damaged")
    counters = {name: t for name, t in state.items() if name not in weights}
    wrong = [called[name] for name, t in counters.items() if t.numel() != 1 or t.is_complex()]
    if wrong:
        raise WeightError(f"{path}: counters that are no whole number: {few(wrong)}")
    return weights | {name: t.reshape(()).long() for name, t in counters.items()}


def check_architecture(
    path: Path, state: Mapping[str, Tensor], plain: PlainTensors
) -> tuple[int, ...]:
    """Depths of the stages.

    Raises:
        WeightError: it is not the plain bottleneck ResNet, saying which other it looks like.
    """
    depths = _depths(state)
    if "conv1.0.weight" in plain.unexpected:
        raise WeightError(
            f"{path}: has a deep stem (conv1.0.weight), as ResNet-D has; "
            "give a plain ResNet whose stem is one 7x7 convolution"
        )
    if "conv1.weight" not in state or not depths:
        found = few(sorted([*plain.called.values(), *plain.unexpected])) or "nothing"
        raise WeightError(
            f"{path}: has no stem and first stage of a ResNet by the names of its kind, but "
            f"{found}; give the weights of such a network, or another kind with --from"
        )
    if "layer1.0.conv3.weight" not in state:
        raise WeightError(
            f"{path}: has basic blocks, as ResNet-18 and -34 have, depths "
            f"{','.join(map(str, depths))}; give a bottleneck network such as ResNet-50"
        )
    _check_widths(path, state, plain.called)
    return depths


def _check_widths(path: Path, state: Mapping[str, Tensor], called: Mapping[str, str]) -> None:
    conv1 = tuple(state["conv1.weight"].shape)
    if len(conv1) not in (4, 5) or (conv1[1], *conv1[-2:]) != (3, 7, 7) or 0 in conv1:
        raise WeightError(
            f"{path}: {called['conv1.weight']} is {conv1}; give a plain ResNet, whose is 7x7 RGB"
        )
    width, plain = conv1[0], "give a plain ResNet"
    inner = tuple(state["layer1.0.conv2.weight"].shape) if "layer1.0.conv2.weight" in state else ()
    if len(inner) in (4, 5) and inner[0] != inner[1]:
        raise WeightError(
            f"{path}: has grouped convolutions, as ResNeXt has "
            f"({called['layer1.0.conv2.weight']} {inner}); {plain}"
        )
    if len(inner) in (4, 5) and inner[0] != width:
        raise WeightError(
            f"{path}: has blocks of {inner[0]} inner channels behind a stem of {width}, as Wide "
            f"ResNet has; {plain}"
        )


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of layer1, layer2 and so on, by the highest index of each."""
    last: dict[int, int] = {}
    for name in state:
        if found := re.match(r"layer([1-9])\.(\d{1,4})\.", name):
            stage, block = int(found[1]), int(found[2])
            last[stage] = max(last.get(stage, 0), block)
    return tuple(last.get(stage, -1) + 1 for stage in range(1, max(last, default=0) + 1))


def _is_of_norm(name: str) -> bool:
    return re.search(r"bn\d\.\w+$|downsample\.1\.\w+$", name) is not None


def find_norm_family(
    path: Path, state: Mapping[str, Tensor], plain: PlainTensors, kind: WeightFormat
) -> str:
    """Key of :data:`NORM_FAMILIES`: from what there is, and from names that tell."""
    parts = {name.rpartition(".")[2] for name in state if _is_of_norm(name)}
    if not parts:
        return NONE
    if {"running_mean", "running_var"} & parts:
        return BATCH
    if kind.names.gn is None or not _named_batch_norm(plain, kind):
        return GROUP
    if kind.folds_norms:
        return AFFINE
    raise WeightError(
        f"{path}: its norms are named as batch norms ({plain.called['bn1.weight']}) and have no "
        "running statistics; save the whole state dict"
    )


def _named_batch_norm(plain: PlainTensors, kind: WeightFormat) -> bool:
    if "bn1.weight" not in plain.called:
        return False
    name = plain.called["bn1.weight"].removesuffix(":0").removeprefix(kind.names.prefix)
    return kind.names.to_file("bn1.weight", batch_norm=True).removeprefix(kind.names.prefix) == name


def statistics_of_affine(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Running statistics that leave y = s x + b as it is: mean 0, variance 1 less epsilon."""
    statistics = {}
    for name in [name for name in state if _is_of_norm(name) and name.endswith(".weight")]:
        layer = name.removesuffix("weight")
        statistics[f"{layer}running_mean"] = torch.zeros_like(state[name])
        statistics[f"{layer}running_var"] = torch.full_like(state[name], 1 - EPS)
    return statistics


def _plain_shapes(
    width: int, depths: tuple[int, ...], family: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the plain ResNet without its classifier; kernels are (O, I, H, W)."""

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in NORM_PARTS[family]:
            yield f"{name}.{part}", (channels,)

    yield "conv1.weight", (width, 3, 7, 7)
    yield from norm("bn1", width)
    entering = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for block in range(depth):
            layer = f"layer{stage + 1}.{block}"
            kernels = ((inner, entering, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1))
            for i, shape in enumerate(kernels, 1):
                yield f"{layer}.conv{i}.weight", shape
                yield from norm(f"{layer}.bn{i}", shape[0])
            if block == 0:
                yield f"{layer}.downsample.0.weight", (4 * inner, entering, 1, 1)
                yield from norm(f"{layer}.downsample.1", 4 * inner)
            entering = 4 * inner


def check_whole(
    path: Path,
    state: dict[str, Tensor],
    plain: PlainTensors,
    depths: tuple[int, ...],
    family: str,
    kind: WeightFormat,
) -> None:
    """Refuse half a network, one with parts of another, and tensors of another shape."""
    shapes = dict(_plain_shapes(state["conv1.weight"].shape[0], depths, family))
    features = shapes[f"layer{len(depths)}.0.conv3.weight"][0]
    if "fc.weight" in state or "fc.bias" in state:
        state |= _flat_classifier(state)
        classes = next(iter(state["fc.weight"].shape), 0) if "fc.weight" in state else 0
        shapes |= {"fc.weight": (classes, features), "fc.bias": (classes,)}
    name_of = _namer(plain, kind, family)
    faults = []
    if missing := [name_of(name) for name in shapes if name not in state]:
        faults.append(f"{len(missing)} missing: {few(missing)}")
    allowed = (COUNTER,) if family == BATCH else ()
    extra = [
        plain.called[name] for name in state if name not in shapes and not name.endswith(allowed)
    ]
    if extra := [*plain.unexpected, *extra]:
        faults.append(f"{len(extra)} unexpected: {few(extra)}")
    if faults:
        raise WeightError(
            f"{path}: its tensors are not those of a plain ResNet; {'; '.join(faults)}; "
            "nothing was loaded"
        )
    dims = state["conv1.weight"].ndim
    for name, wanted in shapes.items():
        found = tuple(state[name].shape)
        flat = found[:2] + found[3:] if dims == 5 and len(found) == 5 else found
        is_kernel = len(wanted) == 4
        if flat != wanted or (is_kernel and len(found) != dims) or 0 in found:
            time = ("t",) if is_kernel and dims == 5 else ()
            shown = ", ".join(map(str, (*wanted[:2], *time, *wanted[2:])))
            raise WeightError(
                f"{path}: {name_of(name)} is {found} and "
                f"({shown}{',' if len(wanted) == 1 else ''}) is wanted; give a plain ResNet"
            )


def _namer(plain: PlainTensors, kind: WeightFormat, family: str) -> Callable[[str], str]:
    """What turns a plain name into the file's, for messages."""

    def name_of(name: str) -> str:
        if name in plain.called:
            return plain.called[name]
        try:
            return kind.names.to_file(name, batch_norm=family in (BATCH, AFFINE))
        except ValueError:
            return name

    return name_of


def _flat_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier saved as a 1x1 convolution, as of a linear layer."""
    weight = state.get("fc.weight")
    if weight is None or set(weight.shape[2:]) != {1}:
        return {}
    return {"fc.weight": weight.flatten(1)}
