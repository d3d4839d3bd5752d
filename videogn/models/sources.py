"""Reading the weights of a bottleneck ResNet, 2D or video, whatever program saved them.

The kind of a file is found from its content. Reading never runs code that a file holds.
"""

from collections.abc import Mapping
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
from videogn.models.plain_resnet import (
    AFFINE,
    NORM_FAMILIES,
    as_float32,
    check_architecture,
    check_whole,
    find_norm_family,
    statistics_of_affine,
    without_zero_biases,
)
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo
from videogn.models.weights import (
    FORMAT_VERSION,
    few,
    is_safetensors,
    read_weights,
    refuse_unreadable,
)

OWN = "videogn"
"""The format of files that describe themselves."""


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
    plain = without_zero_biases(path, plain)
    state = as_float32(path, plain.state, plain.called)
    depths = check_architecture(path, state, plain)
    family = find_norm_family(path, state, plain, kind)
    check_whole(path, state, plain, depths, family, kind)
    notes = [kind.note] if kind.note else []
    if family == AFFINE:
        state |= statistics_of_affine(state)
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
