"""The configuration: frozen dataclasses, read from YAML with one parent and ``key=value`` words.

The dataclasses are the truth: every key, type, default and choice stands here and nowhere else.
pydantic checks a merged file against them in strict mode, so an integer passes for a float and
nothing else is coerced.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from videogn.errors import ConfigError
from videogn.yaml_files import BASE_KEY, parse_value, read_with_base

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[float, float, float]
PositiveTriple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

STRICT = ConfigDict(strict=True, extra="forbid")

STILL_ARCHS = ("resnet50", "resnet101", "vgg16")
"""Values of ``model.arch`` that are 2D networks."""


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are and how they are read."""

    __pydantic_config__ = STRICT

    train: str = ""
    """Training videos: a list file, a class-folder tree, a Kinetics csv, or another ``format``."""
    val: str = ""
    """Validation videos, measured during training."""
    test: str = ""
    """Videos of the 10-clip test."""
    root: str | None = None
    """Folder that relative paths start at; the list's own folder where null."""
    format: Literal[
        "auto",
        "list",
        "tree",
        "kinetics",
        "slowfast",
        "mmaction2",
        "ucf101",
        "hmdb51",
        "ssv2",
        "table",
    ] = "auto"
    """Layout of the lists; ``auto`` tells it by their content. ``mmaction2`` must be named where
    lines are ``path num_frames label``. HMDB51 is a pattern such as
    ``splits/*_test_split1.txt``: ``train`` takes its training videos, ``val`` and ``test`` its
    test videos."""
    allow_outside_root: bool = False
    """Whether entries may lie outside ``root``, through links, ``..`` or absolute paths. Without
    a root, a list of nothing but absolute paths has their common folder for it."""
    class_names: str | None = None
    """File of class names in label order, one per line, for lists whose labels are numbers."""
    mean: Triple | None = None
    """RGB mean of the input in [0, 1]; where null, the weight file's, else 0.45."""
    std: PositiveTriple | None = None
    """RGB standard deviation in [0, 1]; where null, the weight file's, else 0.225."""
    num_workers: NonNegativeInt = 4
    """Decoding processes per GPU; 0 decodes in the training process."""
    reader: Literal["pyav", "decord"] = "pyav"
    """Decoder. decord runs in a process of its own, for some files crash it; its frames are not
    those of a full decode in every file."""
    index: str = "auto"
    """Packet index that pyav reads by: ``auto`` is the one ``videogn data index`` put beside the
    list, if it is there; ``never`` none; else the file of that name."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network is built and which weights it starts from."""

    __pydantic_config__ = STRICT

    arch: Literal[
        "i3d_r50",
        "i3d_r101",
        "i3d_3x3x3_r50",
        "i3d_3x3x3_r101",
        "i3d_heavy_r50",
        "c2d_r50",
        "c2d_r101",
        "resnet50",
        "resnet101",
        "vgg16",
        "slow_r50",
        "r2plus1d_r50",
        "csn_r101",
        "x3d_xs",
        "x3d_s",
        "x3d_m",
        "x3d_l",
    ] = "i3d_r50"
    """I3D has its first 1x1 kernels inflated, ``3x3x3`` its 3x3 kernels, ``heavy`` the first of
    every block, C2D none; ``resnet`` and ``vgg16`` are 2D networks, on clips of one frame; the
    others are pytorchvideo's."""
    norm: Literal["bn", "frozen_bn", "sync_bn", "gn", "ln", "in", "none"] = "gn"
    """``frozen_bn`` keeps BN's stored statistics, gamma and beta; ``sync_bn`` takes statistics over
    all processes; ``ln`` has one group and ``in`` one channel per group."""
    num_groups: PositiveInt = 32
    """Groups of every GN layer (paper section 4.1)."""
    channels_per_group: PositiveInt | None = None
    """Where given, every GN layer has groups of this many channels instead."""
    layout: Literal[
        "nonlocal", "nonlocal_paper", "zoo", "nonlocal_8x8", "mmaction2", "mmaction2_heavy"
    ] = "nonlocal"
    """``nonlocal``: the released 32x2 network; ``nonlocal_paper``: the printed one; ``zoo``: the
    8x8 network of pytorchvideo and PySlowFast; ``nonlocal_8x8``: the released 8x8 network;
    ``mmaction2`` and ``mmaction2_heavy``: mmaction2's 32x2 networks."""
    num_classes: PositiveInt = 400
    weights: str | None = None
    """File of ``videogn inflate`` or a checkpoint; random where null."""
    width: PositiveInt | None = None
    """Channels of the stem, with which every other layer scales; the network's own where null."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=5)] | None = None
    """Blocks of each stage; the network's own where null."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


@dataclass(frozen=True)
class ClipConfig:
    """What a clip is. Sizes are in pixels."""

    __pydantic_config__ = STRICT

    num_frames: PositiveInt = 32
    frame_stride: PositiveInt = 2
    short_side_min: PositiveInt = 256
    """Smallest short side in training; the short side in testing."""
    short_side_max: PositiveInt = 320
    crop_size: PositiveInt = 224
    flip_probability: Fraction = 0.5
    """Chance that a training clip is mirrored left to right; 0 where direction is the class."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe (non-local paper, section 4.1, and its released code)."""

    __pydantic_config__ = STRICT

    clips_per_gpu: PositiveInt = 8
    base_lr: PositiveFloat = 0.01
    """Learning rate at ``base_batch`` clips; scaled in proportion to clips per GPU x GPUs."""
    base_batch: PositiveInt = 64
    iterations: PositiveInt = 400_000
    warmup_iterations: NonNegativeInt = 0
    """Iterations of linear warm-up from a tenth of the learning rate."""
    lr_milestones: tuple[Fraction, ...] = (0.375, 0.75)
    """Shares of the iterations after which the learning rate is multiplied by ``lr_gamma``."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; Nesterov's form where above 0."""
    weight_decay: NonNegativeFloat = 1e-4
    norm_weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the norm layers' gamma and beta; the paper's ImageNet setting is 1e-4."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast in the forward pass; weights, losses and updates stay fp32."""
    log_interval: PositiveInt = 20
    """Iterations between progress lines."""
    val_interval: PositiveInt = 20_000
    """Iterations between validations; the last iteration always validates."""
    checkpoint_interval: PositiveInt = 10_000
    """Iterations between checkpoints; validations and the last iteration always save one."""
    max_failed_fraction: Fraction = 0.01
    """Training stops once more than this share of the list could not be decoded, but never for a
    single video."""


@dataclass(frozen=True)
class TestConfig:
    """The multi-clip test (paper section 4.3)."""

    __pydantic_config__ = STRICT
    __test__ = False  # not a test case, whatever pytest thinks of the name

    num_clips: PositiveInt = 10
    num_crops: Literal[1, 3] = 1
    """1: the whole frame; 3: squares at both ends and in the middle of the longer side."""
    protocol: Literal["paper", "center"] = "paper"
    """``paper``: fully convolutional at short side ``clip.short_side_min``; ``center``: one
    centre crop of ``clip.crop_size``."""
    views_per_pass: PositiveInt = 10
    """Views of one video in a forward pass; fewer where memory is short."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    __pydantic_config__ = STRICT

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    out: str = ""
    """Run folder; ``runs/<name of the config file>`` where empty."""
    resume: Literal["auto", "never"] = "auto"
    """``auto`` goes on from the run folder's last checkpoint; ``never`` refuses a used folder."""


@dataclass(frozen=True)
class LoadedConfig:
    """A checked config and where its values came from.

    Attributes:
        config: the checked values.
        explicit: dotted keys set by the file itself or on the command line, not inherited.
    """

    config: Config
    explicit: frozenset[str]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a YAML file with its ``_BASE_`` parents, apply ``key=value`` overrides and check all.

    Raises:
        ConfigError: listing every unknown key, wrong type and wrong choice at once.
    """
    path = Path(path)
    faults: list[str] = []
    own, tree = read_with_base(path)
    assigned = _parse_overrides(overrides, faults)
    for key, value in assigned.items():
        _assign(tree, key, value, faults)
    tree.setdefault("out", "")
    if tree["out"] == "":
        tree["out"] = f"runs/{path.stem}"
    config = _validate(tree, faults)
    if config is not None:
        faults += _inconsistencies(config)
    if faults or config is None:
        raise ConfigError(_fault_message(str(path), faults))
    return LoadedConfig(config, frozenset([*_leaf_keys(own), *assigned]))


def to_tree(config: Config) -> dict[str, Any]:
    """The config as plain nested dicts and lists."""
    tree: dict[str, Any] = json.loads(_ADAPTER.dump_json(config))
    return tree


def to_yaml(config: Config) -> str:
    """The config as YAML that :func:`load_config` reads back to an equal config."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def from_tree(tree: Mapping[str, Any], source: str) -> Config:
    """Check plain nested dicts, as :func:`to_tree` writes them.

    Raises:
        ConfigError: as :func:`load_config` does; ``source`` names the place in the message.
    """
    faults: list[str] = []
    config = _validate(tree, faults)
    if config is not None:
        faults += _inconsistencies(config)
    if faults or config is None:
        raise ConfigError(_fault_message(source, faults))
    return config


def leaf_keys() -> list[str]:
    """Every dotted key of the config, such as ``train.base_lr``."""
    return list(_leaf_keys_of(Config))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    return {
        key: (_lookup(old, key), _lookup(new, key))
        for key in leaf_keys()
        if _lookup(old, key) != _lookup(new, key)
    }


_ADAPTER = TypeAdapter(Config)


def _parse_overrides(overrides: Sequence[str], faults: list[str]) -> dict[str, Any]:
    assigned: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            faults.append(f"{word!r} is not of the form key=value, such as train.base_lr=0.01")
            continue
        try:
            assigned[key] = parse_value(text) if text else ""
        except ValueError as error:
            faults.append(f"{key}: {text!r} is not a YAML value: {error}")
    return assigned


def _assign(tree: dict[str, Any], key: str, value: Any, faults: list[str]) -> None:
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            faults.append(f"{key}: {section!r} is a value, not a section{_nearest(key)}")
            return
        node = child
    node[leaf] = value


def _validate(tree: Mapping[str, Any], faults: list[str]) -> Config | None:
    try:
        # The JSON form admits a list for a tuple, which strict mode refuses for Python objects.
        return _ADAPTER.validate_json(json.dumps(tree))
    except TypeError as error:
        faults.append(f"a value is of no known kind: {error}")
    except ValidationError as error:
        for fault in error.errors():
            line = _describe(fault)
            if line not in faults:
                faults.append(line)
    return None


def _describe(fault: Any) -> str:
    """One pydantic fault as a line that names the key, the value and the remedy."""
    location = [str(part) for part in fault["loc"]]
    key, value = _known_prefix(location), fault["input"]
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        unknown = ".".join(location)
        if location[-1] == BASE_KEY:
            return f"{unknown}: {BASE_KEY} stands at the top of a file only"
        return f"{unknown}: no such key{_nearest(unknown)}"
    message = fault["msg"]
    message = re.sub(r"^Input should be (a |an )?valid ", "must be a ", message)
    message = message.replace("Input should be ", "must be ")
    message = message.replace("must be a integer", "must be an integer")
    message = message.replace("must be a array", "must be a list")
    message = message.replace("Tuple should have", "must have").replace(" after validation", "")
    message = message.replace("must be a object", "must be a section of keys")
    message = message.replace("must be an object", "must be a section of keys")
    message = message.replace("Field required", "must have more values")
    hint = ""
    if isinstance(value, bool) and ("string" in message or fault["type"] == "literal_error"):
        word = "yes, on or true" if value else "no, off or false"
        hint = f" (YAML reads {word} as {value}; put it in quotes if you mean the word)"
    if fault["type"] == "literal_error" and isinstance(value, str):
        close = difflib.get_close_matches(value, re.findall(r"'([^']+)'", message), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{key}: {message}, got {value!r}{hint}"


def _known_prefix(location: Sequence[str]) -> str:
    """The config key a pydantic location lies under, with positions inside lists as [i]."""
    words = [f"[{part}]" if part.isdigit() else f".{part}" for part in location]
    return "".join(words).lstrip(".")


def _nearest(key: str) -> str:
    """A hint naming the keys most like ``key``, by the whole name and by its last part."""
    known = leaf_keys()
    sections = [f.name for f in fields(Config)]
    by_leaf: dict[str, list[str]] = {}
    for name in known:
        by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
    leaf = key.rpartition(".")[2]
    matches = difflib.get_close_matches(key, [*known, *sections], n=2, cutoff=0.75)
    for close in difflib.get_close_matches(leaf, by_leaf, n=2, cutoff=0.7):
        matches += by_leaf[close]
    if not matches and len(leaf) > 1:
        matches = [name for word, names in by_leaf.items() if leaf in word for name in names]
    unique = list(dict.fromkeys(matches))[:3]
    if not unique:
        return f"; the sections are {', '.join(sections)}"
    return f"; did you mean {' or '.join(unique)}?"


def _inconsistencies(config: Config) -> list[str]:
    """Faults between fields that are sound one by one."""
    clip, train, test, model = config.clip, config.train, config.test, config.model
    faults = []
    if clip.short_side_max < clip.short_side_min:
        faults.append(
            f"clip.short_side_max ({clip.short_side_max}) is below clip.short_side_min "
            f"({clip.short_side_min})"
        )
    if clip.crop_size > clip.short_side_min:
        faults.append(
            f"clip.crop_size ({clip.crop_size}) is above clip.short_side_min "
            f"({clip.short_side_min}); a crop must lie inside the frame"
        )
    if train.warmup_iterations >= train.iterations:
        faults.append(
            f"train.warmup_iterations ({train.warmup_iterations}) must be below train.iterations "
            f"({train.iterations})"
        )
    if list(train.lr_milestones) != sorted(set(train.lr_milestones)):
        faults.append(f"train.lr_milestones {list(train.lr_milestones)} must rise strictly")
    if test.protocol == "center" and test.num_crops != 1:
        faults.append("test.protocol=center has one crop; set test.num_crops=1")
    if model.arch in STILL_ARCHS and clip.num_frames != 1:
        faults.append(
            f"model.arch={model.arch} takes still frames; set clip.num_frames=1, "
            f"got {clip.num_frames}"
        )
    if (config.data.mean is None) != (config.data.std is None):
        faults.append("data.mean and data.std belong together: set both or neither")
    return faults


def _fault_message(source: str, faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return f"{source}: {faults[0]}"
    lines = "\n".join(f"  - {fault}" for fault in faults)
    return f"{source}: {len(faults)} faults\n{lines}"


def _leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _leaf_keys_of(section: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(section)
    for item in fields(section):
        assert item.default is not MISSING or item.default_factory is not MISSING
        if is_dataclass(hints[item.name]):
            yield from _leaf_keys_of(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _lookup(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
