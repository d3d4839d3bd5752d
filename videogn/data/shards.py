"""Tar shards of the webdataset layout, read into the records that every list gives.

A sample is the members of one key, which is a member's name up to the first dot of its last part:
``KEY.mp4`` is its video, and its label stands in ``KEY.cls`` (a number), ``KEY.json`` (``label``,
``class`` or ``target``) or ``KEY.txt`` (a class name), the first of them that there is. A record's
path tells the place of the video in its shard, so only this module reads headers.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from videogn.data.list_checks import (
    IMAGE_SUFFIXES,
    INTEGER,
    MAX_FAULTS,
    VIDEO_SUFFIXES,
    Expected,
    Fence,
    VideoList,
    VideoRecord,
    class_order,
)
from videogn.data.list_formats import LABEL_COLUMNS
from videogn.data.tar_members import Fault, Member, is_plain, members_of
from videogn.errors import AnnotationError, RunError
from videogn.files import UNKNOWN, member_path, state_of, write_text

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Of shards; the compressed ones are refused, with what to do."""
LABELS = ("cls", "json", "txt")
MAX_LABEL = 2**20
"""Bytes of a member that holds a label."""
THREADS = 8
"""Shards whose headers are read at once: on a cluster's disks each costs a round trip."""
TABLE_SUFFIX = ".videogn-shards"
TABLE_VERSION = 1
RANGE = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"([0-9]+)\.\.([0-9]+)")
MAX_SHARDS = 1_000_000


class Sample(NamedTuple):
    """A video of a shard.

    Attributes:
        name: of its member.
        start: first byte of its content in the shard.
        size: in bytes.
        label: a number or a class name, as the shard has it.
    """

    name: str
    start: int
    size: int
    label: str


def is_shards(source: str | Path) -> bool:
    """Whether the name of a list, or the pattern, is that of tar files."""
    return str(source).lower().endswith(SUFFIXES) and not Path(source).is_dir()


def read_shards(source: str, expected: Expected) -> VideoList:
    """The videos of tar shards, shard by shard, as they lie in them.

    Raises:
        AnnotationError: with every fault as ``shard: member: fault``.
    """
    folder = Path(source).parent
    names = shard_names(source)
    paths = {name: os.path.abspath(folder / name) for name in names}  # noqa: PTH100 - not its links
    faults = list(_outside(folder, paths, expected))
    if not faults:
        samples, faults = _read_all(source, paths)
    if not faults:
        faults = list(_mixed_labels(folder, samples))
    _raise_if_any(faults)
    labels = [sample.label for found in samples.values() for sample in found]
    classes, index = _classes(source, labels, expected)
    faults = [
        f"{folder / name}: {sample.name}: the label {sample.label} is outside 0 … "
        f"{expected.num_classes - 1}; mend it or set model.num_classes"
        for name, found in samples.items()
        for sample in found
        if not 0 <= index[sample.label] < expected.num_classes
    ]
    _raise_if_any(faults)
    records = [
        VideoRecord(
            member_path(paths[name], sample.start, sample.size, sample.name),
            index[sample.label],
            f"{name}/{sample.name}",
        )
        for name, found in samples.items()
        for sample in found
    ]
    return VideoList(source, tuple(records), classes)


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        rest = len(faults) - MAX_FAULTS
        raise AnnotationError(
            "\n".join([*faults[:MAX_FAULTS], *([f"and {rest} more"] if rest > 0 else [])])
        )


def shard_names(source: str) -> list[str]:
    """Names of the files in the source's folder that it stands for.

    Braces give a range (``{000000..000099}``) or alternatives (``{a,b}``), all of which must be
    there; ``*``, ``?`` and ``[…]`` give the files there are, in sorted order.

    Raises:
        AnnotationError: the pattern is wrong, or a file is not there.
    """
    path = Path(source)
    if not path.parent.is_dir():
        raise AnnotationError(
            f"{source}: no such folder: {path.parent}; a pattern may stand for files only"
        )
    names = [path.name] if path.is_file() else list(_matching(source, path))
    faults = []
    for name in names:
        if not (path.parent / name).is_file():
            faults.append(f"{path.parent / name}: no such tar shard")
        elif not name.endswith(".tar"):
            faults.append(
                f"{path.parent / name}: is not named .tar; unpack a compressed one, rename another"
            )
    if not names:
        faults.append(f"{source}: no such tar shards")
    _raise_if_any(faults)
    return names


def _matching(source: str, path: Path) -> Iterator[str]:
    """The names that a pattern stands for, each once, hidden files left out."""
    there = sorted(os.listdir(path.parent))
    names: list[str] = []
    for name in _expanded(source, path.name):
        is_pattern = any(char in name for char in "*?[")
        names += fnmatch.filter(there, name) if is_pattern else [name]
    return (name for name in dict.fromkeys(names) if not name.startswith("."))


def _expanded(source: str, pattern: str) -> Iterator[str]:
    """The names that braces stand for."""
    parts = RANGE.split(pattern)
    choices = [_choices(source, part) if i % 2 else [part] for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_SHARDS:
        raise AnnotationError(f"{source}: stands for {count} files, more than {MAX_SHARDS}")
    return ("".join(chosen) for chosen in product(*choices))


def _choices(source: str, braces: str) -> Sequence[str]:
    numbers = NUMBERS.fullmatch(braces)
    if numbers is None:
        if "," not in braces:
            raise AnnotationError(f"{source}: {{{braces}}} is neither {{FIRST..LAST}} nor {{a,b}}")
        return braces.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if last - first not in range(MAX_SHARDS):
        raise AnnotationError(f"{source}: the range {{{braces}}} is empty or too long")
    # As in a shell: zeros on the left are kept where there are any.
    padded = any(len(text) > 1 and text.startswith("0") for text in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _outside(folder: Path, paths: dict[str, str], expected: Expected) -> Iterator[str]:
    if expected.allow_outside_root:
        return
    fence = Fence([folder] if expected.root is None else [folder, expected.root])
    for name, path in paths.items():
        fault = fence.fault(path, name)
        if fault:
            yield f"{folder / name}: {fault}"


def _read_all(source: str, paths: dict[str, str]) -> tuple[dict[str, list[Sample]], list[str]]:
    """Samples by the shard's name, and what is wrong.

    What was read once is kept beside the shards and holds for files of the same size and time.
    """
    table = Path(source).parent / f"{Path(source).name}{TABLE_SUFFIX}"
    known = _load(table)
    states = {name: state_of(path) for name, path in paths.items()}
    samples, faults, new = {}, [], []
    for name in paths:
        if name in known and known[name][0] == states[name] != (UNKNOWN, UNKNOWN):
            samples[name] = known[name][1]
        else:
            new.append(name)
    with ThreadPoolExecutor(THREADS) as pool:
        for name, (found, wrong) in zip(
            new, pool.map(read_shard, [paths[name] for name in new]), strict=True
        ):
            samples[name] = found
            faults += [f"{Path(source).parent / name}: {_line(fault)}" for fault in wrong]
    samples = {name: samples[name] for name in paths}
    if new and not faults:
        # A data set may lie where nobody can write; then headers are read each time.
        with suppress(RunError):
            _save(table, {name: (states[name], found) for name, found in samples.items()})
    return samples, faults


def _line(fault: Fault) -> str:
    return f"{fault.member}: {fault.text}" if fault.member else fault.text


def _load(table: Path) -> dict[str, tuple[tuple[int, int], list[Sample]]]:
    try:
        found = json.loads(table.read_text(encoding="utf-8"))
        if found["version"] != TABLE_VERSION:
            return {}
        shards = {
            str(name): (
                (int(size), int(mtime_ns)),
                [Sample(str(n), int(s), int(z), str(label)) for n, s, z, label in samples],
            )
            for name, (size, mtime_ns, samples) in found["shards"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # none, or torn: it is made again
    plain = all(is_plain(sample.name) for _, found in shards.values() for sample in found)
    return shards if plain else {}


def _save(table: Path, shards: dict[str, tuple[tuple[int, int], list[Sample]]]) -> None:
    rows = {name: [*state, samples] for name, (state, samples) in shards.items()}
    text = json.dumps({"version": TABLE_VERSION, "shards": rows}, separators=(",", ":"))
    write_text(table, f"{text}\n")


def read_shard(path: str) -> tuple[list[Sample], list[Fault]]:
    """The samples of one shard as they lie in it, and what is wrong with it."""
    try:
        members, faults = members_of(path)
        with Path(path).open("rb", buffering=0) as file:
            keys: dict[str, dict[str, list[Member]]] = {}
            for member in members:
                key, kind = _key_and_kind(member.name)
                if kind:
                    keys.setdefault(key, {}).setdefault(kind, []).append(member)
            samples = []
            for key, kinds in keys.items():
                found = _sample(file.fileno(), key, kinds)
                if isinstance(found, Fault):
                    faults.append(found)
                else:
                    samples.append(found)
    except OSError as error:
        return [], [Fault("", f"cannot be read: {error.strerror or error}")]
    if not samples and not faults:
        faults.append(Fault("", "holds no video"))
    return sorted(samples, key=lambda sample: sample.start), faults


def _key_and_kind(name: str) -> tuple[str, str]:
    """The key of a member, and ``video``, ``image``, a key of :data:`LABELS`, ``other`` or none."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    if base.startswith("__") and base.endswith("__"):  # about the shard, not of a sample
        return name, ""
    key = f"{folder}/{stem}" if folder else stem
    extension = extension.lower()
    if extension in LABELS:
        return key, extension
    suffix = f".{extension.rpartition('.')[2]}"
    if suffix in VIDEO_SUFFIXES:
        return key, "video"
    return key, "image" if suffix in IMAGE_SUFFIXES else "other"


def _sample(descriptor: int, key: str, kinds: dict[str, list[Member]]) -> Sample | Fault:
    # A picture beside a video is its cover.
    shown = "video" if "video" in kinds else "image"
    videos = kinds.get(shown, [])
    for kind in (shown, *LABELS):
        if len(kinds.get(kind, [])) > 1:
            names = " and ".join(repr(member.name) for member in kinds[kind][:2])
            return Fault(key, f"two members of one key: {names}; a key is one sample")
    if not videos:
        found = sorted(member.name for members in kinds.values() for member in members)
        return Fault(key, f"a key without a video: {', '.join(found[:3])}")
    why = "no label: no .cls, .json or .txt of that key"
    for kind in LABELS:
        if kind not in kinds:
            continue
        [member] = kinds[kind]
        if member.size > MAX_LABEL:
            return Fault(member.name, f"has {member.size} bytes, which no label has")
        label = _label(kind, os.pread(descriptor, member.size, member.start))
        if label is not None:
            return Sample(*videos[0], label)
        why = f"no label in {member.name}: {WANTED[kind]}"
    return Fault(videos[0].name, why)


WANTED = {
    "cls": "a whole number",
    "json": f"an object with a number or class name under {' or '.join(LABEL_COLUMNS)}",
    "txt": "one line, the class name",
}
"""What a member with a label must hold."""


def _label(kind: str, content: bytes) -> str | None:
    """The label that a member holds, or None."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    if kind == "json":
        return _json_label(text)
    if kind == "cls":
        return text if INTEGER.fullmatch(text) else None
    return text if text and "\n" not in text else None


def _json_label(text: str) -> str | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    label = next((value[name] for name in LABEL_COLUMNS if name in value), None)
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return str(label).strip() or None


def _mixed_labels(folder: Path, shards: dict[str, list[Sample]]) -> Iterator[str]:
    """Numbers among class names: which is meant cannot be told."""
    numbers: list[str] = []
    word = ""
    for name, samples in shards.items():
        for is_number, group in groupby(samples, lambda s: bool(INTEGER.fullmatch(s.label))):
            if is_number:
                numbers += [f"{folder / name}: {s.name}: the label {s.label}" for s in group]
            else:
                word = word or next(group).label
    if word:
        yield from (f"{number} is a number, others are {word!r}" for number in numbers)


def _classes(
    source: str, labels: Sequence[str], expected: Expected
) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """Class names in label order, where they are told, and the number of each label."""
    if all(INTEGER.fullmatch(label) for label in labels):
        names = tuple(expected.class_names) if expected.class_names else None
        return names, {label: int(label) for label in set(labels)}
    names = class_order(source, labels, expected)
    return names, {name: number for number, name in enumerate(names)}
