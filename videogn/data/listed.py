"""Lists of videos with their faults in place: what ``data check`` is to find must not stop it."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from videogn.data.annotations import (
    ListFormat,
    check_one_split,
    files_by_stem,
    format_of,
    kinetics_rows,
    kinetics_stem,
    list_lines,
    read_any_videos,
    row_fault,
)
from videogn.data.list_checks import ANY_LABEL, Expected, Fence, fence_of, read_text
from videogn.data.list_formats import is_parquet
from videogn.data.shards import is_shards
from videogn.errors import AnnotationError


@dataclass(frozen=True)
class ListedVideo:
    """One entry of a list that may have faults.

    Attributes:
        path: the file to open.
        label: class index, perhaps of no class; None where it cannot be read.
        fault: why there is no label, or why the file is not to be opened.
    """

    path: str
    label: int | None
    fault: str | None = None


def list_videos(
    source: str,
    root: str | None = None,
    *,
    format: ListFormat = "auto",  # noqa: A002 - as the config key is named
    allow_outside_root: bool = False,
) -> tuple[list[ListedVideo], tuple[str, ...] | None]:
    """The entries of a list, and its class names where it tells.

    Faults of single lines stay in place in list files and Kinetics csvs; other formats are read
    as :func:`read_any_videos` does. A line that repeats an earlier one's path and label counts
    once.

    Args:
        allow_outside_root: as :func:`read_videos` has it; an entry outside has a fault.

    Raises:
        AnnotationError: there is no such list, it names no video, or cannot be read as a whole.
    """
    path = Path(source)
    try:
        named, classes = _list(path, root, format)
    except OSError as error:
        raise AnnotationError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not named:
        raise AnnotationError(f"{source}: names no video")
    expected = Expected(ANY_LABEL, None, root, allow_outside_root)
    folder = path if path.is_dir() else expected.folder(path)
    fence = fence_of([name for name, _ in named], folder, expected)
    entries = [_fenced(name, video, fence) for name, video in named]
    return list(dict.fromkeys(entries)), classes


def _fenced(name: str, video: ListedVideo, fence: Fence | None) -> ListedVideo:
    # A NUL is no part of a path that can be followed; the reader tells of it.
    if fence is None or video.fault is not None or "\0" in video.path:
        return video
    return replace(video, fault=fence.fault(video.path, name))


def _list(
    path: Path, root: str | None, layout: ListFormat
) -> tuple[list[tuple[str, ListedVideo]], tuple[str, ...] | None]:
    """Entries with the paths as the list has them."""
    if layout == "auto" and is_shards(path):
        layout = "shards"
    if layout == "auto" and path.is_file() and not is_parquet(path):
        layout = format_of(path, read_text(path))
    folder = Path(root) if root is not None else path.parent
    if layout == "kinetics":
        return _list_kinetics_csv(path, read_text(path), folder)
    if layout in ("list", "slowfast"):
        lines = list_lines(read_text(path))
        return [(name, _listed(_absolute(folder / name), label)) for _, name, label in lines], None
    # What lies outside the root becomes a fault of its entry.
    videos = read_any_videos(str(path), root, format=layout, allow_outside_root=True)
    named = [(r.name, ListedVideo(_absolute(r.path), r.label)) for r in videos.records]
    return named, videos.class_names


def _listed(path: str, label: int | str) -> ListedVideo:
    if isinstance(label, int):
        return ListedVideo(path, label)
    return ListedVideo(path, None, label)


def _list_kinetics_csv(
    path: Path, text: str, root: Path
) -> tuple[list[tuple[str, ListedVideo]], tuple[str, ...]]:
    rows = kinetics_rows(path, text)
    # A row's own line is not known once the next is read.
    lines = [(rows.line_num, row) for row in rows]
    stems = [kinetics_stem(row) for _, row in lines]
    sound = [row for (_, row), stem in zip(lines, stems, strict=True) if stem and row["label"]]
    check_one_split(path, Counter(row.get("split") or "" for row in sound))
    names = sorted({row["label"] for row in sound})
    index = {name: label for label, name in enumerate(names)}
    files = files_by_stem(root)
    named = []
    for (line, row), stem in zip(lines, stems, strict=True):
        # Where the row does not tell its file, its place stands for it.
        name = files.get(stem, [f"{stem}.mp4"])[0] if stem else f"{_absolute(path)}:{line}"
        label = index.get(row["label"]) if stem else None
        fault = row_fault(row) if label is None else label
        named.append((name, _listed(_absolute(root / name), fault)))
    return named, tuple(names)


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
