"""YAML as config files need it: ``1e-3`` is a number, no key stands twice, one parent per file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from videogn.errors import ConfigError

BASE_KEY = "_BASE_"
"""Names the parent of a file, relative to the file's folder."""


LEFT_ALONE = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int")
"""Kinds YAML 1.1 sees where nobody means them: dates, and 8 in 010 or 90 in 1:30."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a float, leaves dates alone and refuses a key twice."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rows if tag not in LEFT_ALONE]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][\d_]*)$"), list("-+0123456789")
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    seen: dict[Any, Any] = {}
    for (key, value), (key_node, _) in zip(pairs, node.value, strict=True):
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} is not a word; put it in quotes",
                problem_mark=key_node.start_mark,
            )
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
            )
        seen[key] = value
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_value(text: str) -> Any:
    """The value that ``text`` is in a config file.

    Raises:
        ValueError: it is not YAML; the message says what is wrong with it.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(_yaml_problem(error)) from error


def read_with_base(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's own keys, and those keys merged over its parents'.

    Raises:
        ConfigError: a file cannot be read or is not a mapping, or the parents form a circle.
    """
    own = _read_yaml(path)
    base = own.pop(BASE_KEY, None)
    merged = dict(own)
    visited = [path.resolve()]
    while base is not None:
        if not isinstance(base, str):
            raise ConfigError(
                f"{path}: {BASE_KEY} must name one file, got {base!r}; a config has one parent"
            )
        child, path = path, path.parent / base
        if not path.is_file():
            raise ConfigError(f"{child}: its {BASE_KEY} {base!r} does not exist ({path})")
        if path.resolve() in visited:
            chain = " -> ".join(p.name for p in [*visited, path.resolve()])
            raise ConfigError(f"{path}: {BASE_KEY} goes round in a circle: {chain}")
        visited.append(path.resolve())
        parent = _read_yaml(path)
        base = parent.pop(BASE_KEY, None)
        merged = _merge(parent, merged)
    return own, merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the config file: {reason}") from error
    try:
        tree = parse_value(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys, got {type(tree).__name__}")
    return tree


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{where}"


def _merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
