"""Reading the weights of a bottleneck ResNet, 2D or video, whatever program saved them.

The kind of a file is found from its content. Reading never runs code that a file holds.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from videogn.errors import WeightError
from videogn.files import sha256_of
from videogn.models.containers import (
    Content,
    parse_description,
    read_content,
    read_description,
)
from videogn.models.formats import (
    FORMATS,
    IMAGENET_STD,
    InputScale,
    PlainTensors,
    Triple,
    WeightFormat,
    detect_format,
    to_plain,
)
from videogn.models.i3d import INFLATIONS, temporal_kernels
from videogn.models.names import PLAIN, PYTORCHVIDEO
from videogn.models.norm import EPS
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo
from videogn.models.weights import (
    FORMAT_VERSION,
    few,
    is_safetensors,
    read_weights,
    refuse_unreadable,
)

COUNTER = "num_batches_tracked"
"""BN's count of batches, the one integer tensor; many files lack it."""

OWN = "videogn"
"""The format of files that describe themselves."""

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


@dataclass(frozen=True)
class Source:
    """Checked weights of a bottleneck ResNet, 2D or video, whatever wrote them.

    Every plain tensor of such a network is there in its shape, and nothing else; BN's counters
    and the classifier may be absent.

    Attributes:
        path: the file.
        sha256: its hash.
        format: a key of :data:`videogn.models.formats.FORMATS`.
        state: float32 tensors under plain names (torchvision's). Kernels are (O, I, H, W) where
            ``dims`` is 2, (O, I, t, H, W) where it is 3. ``conv1.weight`` takes RGB in [0, 1]
            less ``mean`` over ``std``: what had to be changed for it is in ``notes``.
        dims: 2 or 3.
        norm_family: a key of :data:`NORM_FAMILIES`.
        depths: residual blocks of each stage.
        width: channels of the stem.
        num_classes: classes of ``fc``; None without a classifier.
        class_names: in label order, where the file knows them.
        mean: RGB mean of the input in [0, 1].
        std: RGB standard deviation of the input in [0, 1].
        layout: of video weights, a key of ``LAYOUTS``: the file's own, else its format's usual.
        info: what the file says about its weights, where this program wrote it.
        dropped: the file's tensors that are none of the network's, as an optimizer's.
        notes: what was done to the weights, and what they do not tell.
    """

    path: Path
    sha256: str
    format: str
    state: dict[str, Tensor]
    dims: int
    norm_family: str
    depths: tuple[int, ...]
    width: int
    num_classes: int | None
    class_names: tuple[str, ...] | None
    mean: Triple
    std: Triple
    layout: str | None
    info: WeightInfo | None
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def spec(self) -> NetworkSpec | None:
        """The network, where the file describes it."""
        return self.info.spec if self.info else None

    @property
    def norms(self) -> tuple[str, ...]:
        """Keys of ``NORMS`` that these weights may be of."""
        return NORM_FAMILIES[self.norm_family]

    @property
    def stride_on_1x1(self) -> bool:
        """Whether blocks halve their maps in the first kernel, unlike all networks here."""
        return FORMATS[self.format].stride_on_1x1

    @property
    def temporal_sizes(self) -> dict[str, int]:
        """Time steps of each kernel by plain name, 1 for 2D kernels."""
        return _temporal_sizes(self.state)

    @property
    def inflation(self) -> str | None:
        """First key of ``INFLATIONS`` with these temporal sizes; None where there is none."""
        return _inflation(self.temporal_sizes, self.depths)


def read_source(
    path: str | Path, *, source_format: str | None = None, std: Triple | None = None
) -> Source:
    """Read the weights of a 2D or video ResNet from a file of any known kind.

    Args:
        source_format: a key of ``FORMATS``; where None, found from the names.
        std: RGB in [0, 1] that the input is to have, where the file's kernels take 0 to 255
            undivided; where None, ImageNet's. Files with a std of their own keep it.

    Raises:
        WeightError: it is no such file, or not of a plain bottleneck ResNet; the message says
            what was found.
    """
    path = Path(path)
    if source_format is not None and source_format not in FORMATS:
        raise WeightError(f"format {source_format!r} is unknown; choose from {', '.join(FORMATS)}")
    refuse_unreadable(path)
    if is_safetensors(path) and read_description(path) is not None:
        return _read_own(path, source_format)
    content = read_content(path)
    name = source_format or _detect(path, content)
    kind = FORMATS[name]
    plain = to_plain(content.where, content.tensors, kind)
    info = None
    if content.description is not None:
        info = _read_info(path, content.description)
    return _source(path, sha256_of(path), name, plain, info, content.class_names, std)


def as_2d(source: Source) -> Source:
    """The same weights with kernels (O, I, H, W).

    Raises:
        WeightError: some kernel has several time steps.
    """
    if source.dims == 2:
        return source
    longer = [name for name, steps in source.temporal_sizes.items() if steps > 1]
    if longer:
        what = f"of {source.spec.arch}, " if source.spec else ""
        own = source.format == OWN and source.spec is not None
        remedy = "give it to model.weights= as it is" if own else "use `videogn convert`"
        raise WeightError(
            f"{source.path}: is {what}a video network already ({len(longer)} kernels of several "
            f"time steps: {few(longer, 2)}); {remedy}"
        )
    state = {name: t.squeeze(2) if t.ndim == 5 else t for name, t in source.state.items()}
    return replace(source, state=state, dims=2)


def _detect(path: Path, content: Content) -> str:
    name = detect_format(str(path), content.tensors, content.author)
    if FORMATS[name].stride_on_1x1:
        raise WeightError(
            f"{path}: is of {FORMATS[name].title}: its blocks have their stride on the first 1x1 "
            "kernel and all networks here on the 3x3 one, as the paper's; loaded so, such weights "
            "lose a fifth of their accuracy (60 % instead of 76 % were seen). Give weights whose "
            f"stride is on the 3x3 kernel. If these are, give --from detectron; to load them all "
            f"the same, --from {name}"
        )
    return name


def _read_own(path: Path, source_format: str | None) -> Source:
    """A file of this program, whose hash of its content is checked too."""
    if source_format not in (None, OWN):
        raise WeightError(
            f"{path}: was written by this program and says what it is; leave out --from "
            f"{source_format}"
        )
    file = read_weights(path)
    if file.info.spec.family not in ("i3d", "resnet2d"):
        raise WeightError(f"{path}: is of {file.info.spec.arch}, which is no bottleneck ResNet")
    names = PYTORCHVIDEO if file.info.spec.family == "i3d" else PLAIN
    plain = to_plain(str(path), file.state, replace(FORMATS[OWN], names=names))
    return _source(path, file.sha256, OWN, plain, file.info, None, None)


def _read_info(path: Path, text: str) -> WeightInfo:
    """What this program put beside tensors under another program's names."""
    tree = parse_description(str(path), text)
    version = tree.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise WeightError(
            f"{path}: has format version {version!r}, this program reads {FORMAT_VERSION}; "
            "use the program that wrote it"
        )
    for key in ("training", "content_sha256"):
        tree.pop(key, None)
    return WeightInfo.from_json(tree, str(path))


def _source(
    path: Path,
    sha256: str,
    name: str,
    plain: PlainTensors,
    info: WeightInfo | None,
    class_names: tuple[str, ...] | None,
    std: Triple | None,
) -> Source:
    """Check the tensors of a file and bring them into their common form."""
    kind = FORMATS[name]
    plain = _without_zero_biases(path, plain)
    state = _as_float32(path, plain.state, plain.called)
    depths = _check_architecture(path, state, plain)
    family = _norm_family(path, state, plain, kind)
    _check_whole(path, state, plain, depths, family, kind)
    notes = [kind.note] if kind.note else []
    if family == AFFINE:
        state |= _statistics_of_affine(state)
        notes.append("norms: scale and shift of folded batch norms, as frozen_bn")
    if kind.stride_on_1x1:
        notes.append(
            "warning: trained with the stride on the 1x1 kernels, to be used on the 3x3 ones: "
            "the function is another one"
        )
    scale = InputScale(info.mean, info.std) if info else kind.scale
    state["conv1.weight"], scale, note = _rgb_in_unit_range(state["conv1.weight"], scale, std)
    notes += note
    source = Source(
        path=path,
        sha256=sha256,
        format=name,
        state=state,
        dims=state["conv1.weight"].ndim - 2,
        norm_family=family,
        depths=depths,
        width=state["conv1.weight"].shape[0],
        num_classes=state["fc.weight"].shape[0] if "fc.weight" in state else None,
        class_names=info.class_names if info else class_names,
        mean=scale.mean,
        std=scale.std,
        layout=_layout(state, depths, kind, info),
        info=info,
        dropped=plain.dropped,
        notes=tuple(notes),
    )
    _check_class_names(source)
    if info is not None:
        _check_description(source, info.spec)
    return source


def _layout(
    state: Mapping[str, Tensor],
    depths: tuple[int, ...],
    kind: WeightFormat,
    info: WeightInfo | None,
) -> str | None:
    if state["conv1.weight"].ndim == 4:
        return None
    if info is not None:
        return info.spec.layout
    return kind.layouts.get(_inflation(_temporal_sizes(state), depths) or "", kind.layout)


def _temporal_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        name: tensor.shape[2] if tensor.ndim == 5 else 1
        for name, tensor in state.items()
        if tensor.ndim in (4, 5)
    }


def _inflation(sizes: Mapping[str, int], depths: tuple[int, ...]) -> str | None:
    fitting = (name for name in INFLATIONS if _has_inflation(sizes, depths, name))
    return next(fitting, None)


def _has_inflation(sizes: Mapping[str, int], depths: tuple[int, ...], name: str) -> bool:
    """Whether the kernels have the temporal sizes of an inflation; shallow nets may fit two."""
    wanted = {"conv1.weight": INFLATIONS[name].stem}
    for stage, depth in enumerate(depths):
        kernels = temporal_kernels(INFLATIONS[name], stage, depth)
        for block, (first, middle) in enumerate(kernels):
            wanted[f"layer{stage + 1}.{block}.conv1.weight"] = first
            wanted[f"layer{stage + 1}.{block}.conv2.weight"] = middle
    return all(steps == wanted.get(kernel, 1) for kernel, steps in sizes.items())


def _without_zero_biases(path: Path, plain: PlainTensors) -> PlainTensors:
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


def _as_float32(
    path: Path, state: Mapping[str, Tensor], called: Mapping[str, str]
) -> dict[str, Tensor]:
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


def _check_architecture(
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


def _norm_family(
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


def _statistics_of_affine(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Running statistics that leave y = s x + b as it is: mean 0, variance 1 less epsilon."""
    statistics = {}
    for name in [name for name in state if _is_of_norm(name) and name.endswith(".weight")]:
        layer = name.removesuffix("weight")
        statistics[f"{layer}running_mean"] = torch.zeros_like(state[name])
        statistics[f"{layer}running_var"] = torch.full_like(state[name], 1 - EPS)
    return statistics


NORM_PARTS = {
    BATCH: ("weight", "bias", "running_mean", "running_var"),
    AFFINE: ("weight", "bias"),
    GROUP: ("weight", "bias"),
    NONE: (),
}
"""Norm family -> tensors of each norm layer in a file."""


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


def _check_whole(
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


def _rgb_in_unit_range(
    kernel: Tensor, scale: InputScale, std: Triple | None
) -> tuple[Tensor, InputScale, list[str]]:
    """Make a first kernel (O, 3, ...) take RGB in [0, 1] less a mean over a std.

    It gives the same outputs as before on the same image: its channels are reversed where they
    were blue, green, red, and multiplied by 255 std where its input was in 0 to 255, undivided.
    """
    changes = []
    if scale.bgr:
        kernel = kernel.flip(1)
        changes.append("BGR to RGB")
    new_std = scale.std
    if scale.absorbed:
        new_std = std or IMAGENET_STD
        factors = torch.tensor(new_std, dtype=torch.float64) * 255
        kernel = (kernel.double() * factors.view(-1, *[1] * (kernel.ndim - 2))).float()
        changes.append("0..255 to [0, 1] over the std: channels times 255 std")
    note = [f"conv1: {'; '.join(changes)}"] if changes else []
    return kernel, InputScale(scale.mean, new_std), note


def _check_class_names(source: Source) -> None:
    names, count = source.class_names, source.num_classes
    if names is not None and count is not None and len(names) != count:
        raise WeightError(
            f"{source.path}: has {len(names)} class names and a classifier of {count} classes; "
            "it was put together wrongly"
        )


def _check_description(source: Source, spec: NetworkSpec) -> None:
    """Refuse a description that is not of the tensors beside it."""
    found = {
        "width": (source.width, spec.width),
        "depths": (source.depths, spec.depths),
        "classes": (source.num_classes, spec.num_classes),
    }
    faults = [f"{key} {said} but has {has}" for key, (has, said) in found.items() if has != said]
    if spec.norm not in source.norms:
        faults.append(f"norm {spec.norm} but has tensors of {' or '.join(source.norms)}")
    described = ARCHITECTURES[spec.arch].inflation or "none" if spec.family == "i3d" else "none"
    fits = _has_inflation(source.temporal_sizes, source.depths, described)
    if spec.family in ("i3d", "resnet2d") and not fits:
        faults.append(f"{spec.arch} but has temporal kernels of {source.inflation or 'no network'}")
    if spec.family not in ("i3d", "resnet2d"):
        faults.append(f"{spec.arch} but has the tensors of a ResNet")
    if faults:
        raise WeightError(f"{source.path}: says it is of {'; '.join(faults)}; convert it again")
