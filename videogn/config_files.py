"""Configs in files: YAML with one parent and ``key=value`` words, checked, and written again.

pydantic checks a merged file against the dataclasses of :mod:`videogn.config` in strict mode, so
an integer passes for a float and nothing else is coerced.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from videogn.config import STILL_ARCHS, TIMED_PROTOCOLS, Config
from videogn.errors import ConfigError
from videogn.yaml_files import BASE_KEY, parse_value, read_with_base


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
        faults += [*_inconsistencies(config), *_overruled(config, assigned)]
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
        for fault in _one_per_value(error.errors()):
            line = _describe(fault)
            if line not in faults:
                faults.append(line)
    return None


def _one_per_value(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Faults, one for each value: of a value of several kinds pydantic has one for each kind."""
    merged: dict[object, dict[str, Any]] = {}
    for number, fault in enumerate(found):
        key, rest = _split(fault["loc"])
        if not key or (rest and isinstance(rest[0], int)):
            merged[number] = fault
        elif key in merged:
            merged[key]["msg"] += f" or {fault['msg'].removeprefix('Input should be ')}"
        else:
            merged[key] = {**fault, "loc": key}
    return list(merged.values())


def _split(location: tuple[object, ...]) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """A pydantic location as the key it lies under and what follows; no key where it has none."""
    keys = leaf_keys()
    for end in range(1, len(location) + 1):
        if ".".join(map(str, location[:end])) in keys:
            return location[:end], location[end:]
    return (), location


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
    message = re.sub(r"(^Input should be | or )(a |an )?valid ", r"\1a ", message)
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
    if train.epochs is None and train.warmup_iterations >= train.iterations:
        faults.append(
            f"train.warmup_iterations ({train.warmup_iterations}) must be below train.iterations "
            f"({train.iterations})"
        )
    if list(train.lr_milestones) != sorted(set(train.lr_milestones)):
        faults.append(f"train.lr_milestones {list(train.lr_milestones)} must rise strictly")
    if test.protocol == "center" and test.num_crops not in (None, 1):
        faults.append("test.protocol=center has one crop; set test.num_crops=1")
    if test.protocol in TIMED_PROTOCOLS and clip.fps is not None:
        faults.append(
            f"test.protocol={test.protocol} counts its clips at 30 frames per second by itself and "
            f"clip.fps is {clip.fps}; set clip.fps=null for this test"
        )
    if model.arch in STILL_ARCHS and clip.num_frames != 1:
        faults.append(
            f"model.arch={model.arch} takes still frames; set clip.num_frames=1, "
            f"got {clip.num_frames}"
        )
    if model.arch in STILL_ARCHS and train.memory_format == "channels_last_3d":
        faults.append(f"train.memory_format=channels_last_3d is for video, not {model.arch}")
    if (config.data.mean is None) != (config.data.std is None):
        faults.append("data.mean and data.std belong together: set both or neither")
    return faults


def _overruled(config: Config, assigned: Mapping[str, Any]) -> Iterator[str]:
    """Words of the command line that another setting would make do nothing."""
    train = config.train
    for word, other, value in (
        ("train.iterations", "train.epochs", train.epochs),
        ("train.val_interval", "train.val_epochs", train.val_epochs),
    ):
        if word in assigned and value is not None:
            yield (
                f"{word}={assigned[word]}: {other}={value:g} decides it; set {other}=null to go by "
                f"{word}"
            )


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
