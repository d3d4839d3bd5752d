"""What the readers of lists of videos share: the records, their checks, and faults told at once."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from videogn.errors import AnnotationError
from videogn.files import locate

logger = logging.getLogger("videogn")

Subset = Literal["train", "test", "all"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv"}
    | {".wmv", ".asf", ".ogv", ".3gp"}
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Of still images, which are read as videos of one frame."""
MAX_FAULTS = 20
ANY_LABEL = 10**18
"""More classes than any list has: its labels are not asked for."""
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+[:]|subfile,")
"""Such as ``http:`` and ``concat:``; a single letter is a drive."""


@dataclass(frozen=True)
class VideoRecord:
    """One labelled video.

    Attributes:
        path: the file to open.
        label: class index.
        name: the path as the list gives it.
    """

    path: str
    label: int
    name: str


@dataclass(frozen=True)
class VideoList:
    """The videos of a list, in its order.

    Attributes:
        source: where it was read.
        class_names: in label order, where the list tells.
    """

    source: str
    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Expected:
    """What a list must fit.

    Attributes:
        num_classes: labels are below it; ``ANY_LABEL`` where it does not matter.
        class_names: in label order, where they are known.
        root: where relative paths start; the folder of the list where None.
        allow_outside_root: whether a video may lie elsewhere.
    """

    num_classes: int
    class_names: Sequence[str] | None
    root: str | None
    allow_outside_root: bool

    def folder(self, path: Path) -> Path:
        """Where the relative paths of a list file start."""
        return path.parent if self.root is None else Path(self.root)


class Entry(NamedTuple):
    """A line of a list.

    Attributes:
        file: which holds the line, where the list has several.
    """

    line: int
    name: str
    label: int
    file: str = ""


@dataclass
class Faults:
    """What is wrong with a list, told all at once."""

    source: str
    found: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, line: int, text: str, file: str = "") -> None:
        """Note a fault of a line, of another file than the source where one is named."""
        self.found.append((file or self.source, line, text))

    def raise_if_any(self) -> None:
        """End here if there are faults.

        Raises:
            AnnotationError: with the first of them, a line each.
        """
        if not self.found:
            return
        shown = [f"{file}:{line}: {text}" for file, line, text in sorted(self.found)[:MAX_FAULTS]]
        if len(self.found) > len(shown):
            shown.append(f"and {len(self.found) - len(shown)} more")
        raise AnnotationError("\n".join(shown))


def read_text(path: Path) -> str:
    """The text of a list.

    Raises:
        AnnotationError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is no list of videos: not UTF-8 text") from error


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, stripped, with their numbers from 1."""
    # Not str.splitlines: a path may hold a character that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def checked(
    entries: Sequence[Entry],
    folder: Path,
    expected: Expected,
    faults: Faults,
    *,
    written: bool = True,
) -> tuple[VideoRecord, ...]:
    """Records of entries: labels in range, files inside the root, no video twice.

    Args:
        folder: where relative paths start.
        written: whether the names are as the list has them, not those of files found.

    Raises:
        AnnotationError: with these faults and those found before.
    """
    fence = fence_of([entry.name for entry in entries], folder, expected)
    seen: dict[str, Entry] = {}
    records, num_repeated = [], 0
    for entry in entries:
        path = os.path.abspath(folder / entry.name)  # noqa: PTH100 - resolve() would follow links
        fault = (
            (name_fault(entry.name) if written else None)
            or _label_fault(entry, expected.num_classes)
            or (fence.fault(path, entry.name) if fence else None)
        )
        if fault:
            faults.add(entry.line, fault, entry.file)
        elif path not in seen:
            seen[path] = entry
            records.append(VideoRecord(path, entry.label, entry.name))
        elif seen[path].label == entry.label:
            num_repeated += 1
        else:
            faults.add(
                entry.line,
                f"{entry.name!r} has label {entry.label} here and {seen[path].label} in line "
                f"{seen[path].line}",
                entry.file,
            )
    faults.raise_if_any()
    if num_repeated:
        logger.warning("%s: %d repeated lines count once", faults.source, num_repeated)
    return tuple(records)


def name_fault(name: str) -> str | None:
    """What is wrong with a path as a list has it: a scheme or NUL."""
    if "\0" in name:
        return f"{name!r} holds a NUL character"
    if SCHEME.match(name):
        return f"{name!r} is an address, not a file; fetch it first (a file so named: ./{name})"
    return None


def _label_fault(entry: Entry, num_classes: int) -> str | None:
    if 0 <= entry.label < num_classes:
        return None
    return (
        f"the label {entry.label} of {entry.name!r} is outside 0 … {num_classes - 1}; "
        "mend it or set model.num_classes"
    )


class Fence:
    """Folders that videos must lie in, wherever links lead."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = tuple(os.path.realpath(folder) for folder in folders)
        self._starts = tuple(os.path.join(folder, "") for folder in self.folders)  # noqa: PTH118
        # One look per folder: a list may have hundreds of thousands of files in a few.
        self._real_folder = lru_cache(maxsize=4096)(os.path.realpath)

    def fault(self, path: str, name: str, *, is_link: bool | None = None) -> str | None:
        """Why an absolute path without ``..`` is outside; None where it is inside.

        Args:
            is_link: whether the path itself is a link, where that is known.
        """
        real = self._real(locate(path).file, is_link)
        if real.startswith(self._starts):
            return None
        return (
            f"{name!r} lies at {real}, outside {' and '.join(self.folders)}; set data.root to a "
            "folder that holds all videos, or data.allow_outside_root=true if you trust the list "
            "(--root and --allow-outside-root of the data commands)"
        )

    def _real(self, path: str, is_link: bool | None) -> str:
        if os.path.islink(path) if is_link is None else is_link:  # noqa: PTH114 - Paths are slow
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        return os.path.join(self._real_folder(folder), name)  # noqa: PTH118


def fence_of(names: Sequence[str], folder: Path, expected: Expected) -> Fence | None:
    """What the videos of a list must lie in: its folder, or that of nothing but absolute paths.

    Args:
        names: the paths as the list has them.
        folder: where relative paths start.
    """
    if expected.allow_outside_root:
        return None
    if expected.root is None and names and all(Path(name).is_absolute() for name in names):
        files = [os.path.abspath(locate(name).file) for name in names]  # noqa: PTH100
        folders = [os.path.dirname(file) for file in files]  # noqa: PTH120
        return Fence([os.path.commonpath(folders)])
    return Fence([folder])


def class_order(source: str, found: Sequence[str], expected: Expected) -> tuple[str, ...]:
    """The class names in label order: the known ones, or those found, sorted.

    Raises:
        AnnotationError: a found class is not among the known ones, or their number is wrong.
    """
    if expected.class_names is not None:
        known = expected.class_names
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise AnnotationError(
                f"{source}: classes {unknown[:5]} are not among the {len(known)} known ones, "
                f"such as {list(known[:3])}"
            )
        return tuple(known)
    check_number(source, len(set(found)), expected.num_classes)
    return tuple(sorted(set(found)))


def check_number(source: str, found: int, num_classes: int) -> None:
    """Refuse a list with another number of classes than the network.

    Raises:
        AnnotationError: naming the setting.
    """
    if num_classes not in (ANY_LABEL, found):
        raise AnnotationError(
            f"{source}: holds {found} classes and model.num_classes is {num_classes}; "
            f"set model.num_classes={found}, or name the classes by the training list"
        )


def ordered_names(source: str, own: Sequence[str], expected: Expected) -> tuple[str, ...]:
    """As :func:`class_order`, of a list that has an order of its own.

    Raises:
        AnnotationError: as there.
    """
    names = class_order(source, own, expected)
    return names if expected.class_names is not None else tuple(own)


def videos_under(folder: Path) -> Iterator[Path]:
    """Video files anywhere under a folder, except hidden ones."""
    found = (entry.path for entry in files_under(str(folder)))
    return (Path(path) for path in found if suffix_of(path) in VIDEO_SUFFIXES)


def files_under(folder: str) -> Iterator["os.DirEntry[str]"]:
    """All files anywhere under a folder, except hidden ones; links to folders are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    # Entries know what they are without another look, and ImageNet has 1.3 million.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield entry
            elif not entry.is_symlink():
                yield from files_under(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in circles


def suffix_of(path: str) -> str:
    """The suffix of a file's name in lower case, with its dot; empty where it has none."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - called for millions of files
