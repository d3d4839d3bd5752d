"""A weight file of any program as a network of this one.

What a file cannot tell is taken as usual and said so, or comes from its user's wishes.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from videogn.errors import WeightError
from videogn.files import sha256_of
from videogn.models.build import build_network
from videogn.models.containers import Content, parse_description, read_content
from videogn.models.formats import FORMATS
from videogn.models.names import PLAIN, PYTORCHVIDEO
from videogn.models.norm import BATCH_NORMS
from videogn.models.plain_resnet import COUNTER
from videogn.models.sources import OWN, Source, as_2d, read_source
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo
from videogn.models.weights import (
    OPTIMIZER_PREFIX,
    few,
    is_safetensors,
    read_info,
    read_weights,
)
from videogn.models.zoo import PROJECTION, match_network

DROPOUT_3D, DROPOUT_2D = 0.5, 0.0
"""In training, of networks whose file does not say (non-local paper, section 4.1)."""


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, whatever file they came from.

    Attributes:
        path: the file.
        info: the network, its classes and its input.
        state: its tensors under this program's names.
        plain: the same under plain names; None where it is no bottleneck ResNet.
        source: the file as read; None likewise.
        lines: what was found, and what had to be taken for granted.
    """

    path: Path
    info: WeightInfo
    state: dict[str, Tensor]
    plain: dict[str, Tensor] | None
    source: Source | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Wishes:
    """What the command line says about a file that cannot say it itself."""

    source_format: str | None = None
    norm: str | None = None
    num_groups: int | None = None
    channels_per_group: int | None = None
    layout: str | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def load(path: Path, wishes: Wishes) -> Loaded:
    """Read a file of any kind and find out which network it is of.

    Raises:
        WeightError: it cannot be read, or is of a network that is not known here.
    """
    if _is_of_other_family(path):
        return _load_other_family(path)
    try:
        source = read_source(path, source_format=wishes.source_format, std=wishes.std)
    except WeightError:
        other = _load_pytorchvideo(path, wishes)
        if other is None:
            raise
        return other
    if source.format == "slowfast-in1k":
        source = as_2d(source)
    info, taken = describe_source(source, wishes)
    return Loaded(
        path=path,
        info=info,
        state=own_state(source, info.spec),
        plain=source.state,
        source=source,
        lines=(_network_line(path, FORMATS[source.format].title, info), *_dropped(source), *taken),
    )


def build(loaded: Loaded) -> nn.Module:
    """The network with its weights, in evaluation mode."""
    with torch.device("meta"):
        network = build_network(loaded.info.spec)
    network.load_state_dict(loaded.state, assign=True)
    return network.eval()


def describe_source(source: Source, wishes: Wishes) -> tuple[WeightInfo, list[str]]:
    """The network of a file, and lines about what the file does not tell.

    Raises:
        WeightError: it is of no known network, or the wishes contradict what it says.
    """
    if source.info is not None:
        return _described(source, source.info, wishes), list(source.notes)
    taken = list(source.notes)
    spec = _deduced_spec(source, wishes, taken)
    mean, std = wishes.mean or source.mean, wishes.std or source.std
    if wishes.mean is None and wishes.std is None:
        taken.append(f"input       not told by the weights, taken as the usual of {source.format}")
    info = WeightInfo(
        spec=spec,
        class_names=wishes.class_names or source.class_names,
        mean=mean,
        std=std,
        source=source.path.name,
        source_sha256=source.sha256,
        temporal_init=None,
    )
    return info, taken


def _described(source: Source, info: WeightInfo, wishes: Wishes) -> WeightInfo:
    """What a file says of itself; only BN's kinds may be changed, and missing names added."""
    spec = info.spec
    given = {
        "norm": (wishes.norm, spec.norm),
        "num-groups": (wishes.num_groups, spec.num_groups),
        "channels-per-group": (wishes.channels_per_group, spec.channels_per_group),
        "layout": (wishes.layout, spec.layout),
        "class-names": (wishes.class_names, info.class_names),
        "mean": (wishes.mean, info.mean),
        "std": (wishes.std, info.std),
    }
    for key, (wish, said) in given.items():
        exchangeable = key == "norm" and {wish, said} <= set(BATCH_NORMS)
        missing = key == "class-names" and said is None
        if wish is not None and wish != said and not exchangeable and not missing:
            what = "others" if key == "class-names" else said
            raise WeightError(
                f"{source.path}: says of itself that its {key} is {what}; leave out --{key}"
            )
    spec = replace(spec, norm=wishes.norm or spec.norm)
    return replace(info, spec=spec, class_names=info.class_names or wishes.class_names)


def _deduced_spec(source: Source, wishes: Wishes, taken: list[str]) -> NetworkSpec:
    if source.num_classes is None:
        raise WeightError(
            f"{source.path}: has no classifier, and no network here is without; `videogn inflate` "
            "gives 2D weights a fresh one"
        )
    norm = wishes.norm or source.norms[0]
    if norm not in source.norms:
        raise WeightError(
            f"{source.path}: its weights are of {' or '.join(source.norms)}; give one of these to "
            f"--norm, not {norm}"
        )
    layout = wishes.layout or source.layout or "nonlocal"
    if wishes.norm is None and len(source.norms) > 1:
        taken.append(f"norm        not told by the weights, taken as {norm} (--norm)")
    if norm == "gn" and wishes.num_groups is None and wishes.channels_per_group is None:
        taken.append("groups      not told by the weights, taken as 32 (--num-groups)")
    if source.dims == 3 and wishes.layout is None:
        taken.append(f"layout      not told by the weights, taken as {layout} (--layout)")
    return NetworkSpec(
        arch=_architecture(source),
        norm=norm,
        num_groups=wishes.num_groups or 32,
        channels_per_group=wishes.channels_per_group,
        layout=layout,
        num_classes=source.num_classes,
        width=source.width,
        depths=source.depths,
        dropout=DROPOUT_3D if source.dims == 3 else DROPOUT_2D,
    )


def _architecture(source: Source) -> str:
    """The architecture with the source's temporal kernels, by preference of its depths."""
    family = "i3d" if source.dims == 3 else "resnet2d"
    inflation = source.inflation if source.dims == 3 else None
    fitting = [
        name
        for name, own in ARCHITECTURES.items()
        if own.family == family and own.inflation == inflation
    ]
    if not fitting or (source.dims == 3 and inflation is None):
        raise WeightError(
            f"{source.path}: the temporal sizes of its kernels are those of no network known here, "
            "which are I3D with 3x1x1 or 3x3x3 kernels, mmaction2's heavy I3D and C2D"
        )
    return next((a for a in fitting if ARCHITECTURES[a].depths == source.depths), fitting[0])


def own_state(source: Source, spec: NetworkSpec) -> dict[str, Tensor]:
    """The tensors of a file under this program's names, with zeros for BN's missing counts.

    Raises:
        WeightError: they are not those of the network.
    """
    names = PYTORCHVIDEO if spec.family == "i3d" else PLAIN
    with torch.device("meta"):
        wanted = build_network(spec).state_dict()
    state = {}
    for name, tensor in wanted.items():
        plain = names.to_plain(name)
        found = source.state.get(plain or "")
        if found is None and name.endswith(COUNTER):
            found = torch.zeros((), dtype=torch.int64)
        if found is None or found.shape != tensor.shape:
            had = "missing" if found is None else f"{tuple(found.shape)}"
            raise WeightError(
                f"{source.path}: {plain} is {had} and {tuple(tensor.shape)} is wanted for "
                f"{spec.arch}"
            )
        state[name] = found
    return state


def _is_of_other_family(path: Path) -> bool:
    """Whether it is a file of this program and of no bottleneck ResNet."""
    if not path.is_file() or not is_safetensors(path):
        return False
    try:
        return read_info(path).spec.family not in ("i3d", "resnet2d")
    except WeightError:
        return False  # the reader says what is wrong with it


def _load_other_family(path: Path) -> Loaded:
    file = read_weights(path)
    return Loaded(
        path=path,
        info=file.info,
        state=file.state,
        plain=None,
        source=None,
        lines=(_network_line(path, FORMATS[OWN].title, file.info),),
    )


def _load_pytorchvideo(path: Path, wishes: Wishes) -> Loaded | None:
    """A file of one of pytorchvideo's other networks; None where it is none of them.

    Raises:
        WeightError: it is, but its values are not sound or the wishes do not fit.
    """
    content = read_content(path)
    arch = match_network({name: tuple(tensor.shape) for name, tensor in content.tensors.items()})
    if arch is None:
        return None
    statistics = any(name.endswith("running_var") for name in content.tensors)
    norms = BATCH_NORMS if statistics else ("gn", "ln", "in")
    taken: tuple[str, ...] = ()
    if content.description is not None:
        tree = parse_description(str(path), content.description)
        info = WeightInfo.from_json(tree, str(path))
    else:
        info = _info_of_pytorchvideo(path, arch, content, wishes, norms[0])
        taken = (
            f"norm        not told by the weights, taken as {info.spec.norm} (--norm)",
            "input       not told by the weights, taken as the usual of pytorchvideo",
        )
    if info.spec.arch != arch or info.spec.norm not in norms:
        raise WeightError(
            f"{path}: has the tensors of {arch} with {' or '.join(norms)}, not of {info.spec.arch} "
            f"with {info.spec.norm}"
        )
    with torch.device("meta"):
        wanted = build_network(info.spec).state_dict()
    state = {name: content.tensors.get(name, torch.zeros((), dtype=torch.int64)) for name in wanted}
    wrong = [n for n, t in state.items() if not t.isfinite().all() or t.shape != wanted[n].shape]
    if wrong:
        raise WeightError(
            f"{path}: NaN or infinite values, or another shape, in {few(wrong)}; use other weights"
        )
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    lines = (_network_line(path, "pytorchvideo", info), *taken)
    return Loaded(path, info, state, None, None, lines)


def _info_of_pytorchvideo(
    path: Path, arch: str, content: Content, wishes: Wishes, norm: str
) -> WeightInfo:
    own = ARCHITECTURES[arch]
    [classes] = [t.shape[0] for n, t in content.tensors.items() if re.fullmatch(PROJECTION, n)]
    spec = NetworkSpec(
        arch=arch,
        norm=wishes.norm or norm,
        num_groups=wishes.num_groups or 32,
        channels_per_group=wishes.channels_per_group,
        layout="zoo",
        num_classes=classes,
        width=own.width,
        depths=own.depths,
        dropout=DROPOUT_3D,
    )
    usual = FORMATS["pytorchvideo"].scale
    return WeightInfo(
        spec=spec,
        class_names=wishes.class_names,
        mean=wishes.mean or usual.mean,
        std=wishes.std or usual.std,
        source=path.name,
        source_sha256=sha256_of(path),
        temporal_init=None,
    )


def _network_line(path: Path, kind: str, info: WeightInfo) -> str:
    spec = info.spec
    layout = f", layout {spec.layout}" if spec.family == "i3d" else ""
    return (
        f"{path}: {kind}, {spec.arch}, norm {spec.norm}, width {spec.width}, depths "
        f"{','.join(map(str, spec.depths))}{layout}, {spec.num_classes} classes"
    )


def _dropped(source: Source) -> list[str]:
    count = len(source.dropped)
    if source.format == OWN:
        with safe_open(source.path, framework="pt") as file:
            count += sum(name.startswith(OPTIMIZER_PREFIX) for name in file.keys())  # noqa: SIM118
    return [f"left out    {count} tensors that are not the network's"] if count else []
