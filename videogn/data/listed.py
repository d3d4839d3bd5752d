"""Lists of videos with their faults in place: what ``data check`` is to find must not stop it."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from videogn.data.annotations import (
    check_one_split,
    files_by_stem,
    format_of,
    kinetics_rows,
    kinetics_stem,
    list_lines,
    read_any_videos,
    row_fault,
)
from videogn.data.list_checks import read_text
from videogn.data.list_formats import is_parquet
from videogn.errors import AnnotationError


@dataclass(frozen=True)
class ListedVideo:
    """One entry of a list that may have faults.

    Attributes:
        path: the file to open.
        label: class index, perhaps of no class; None where it cannot be read.
        fault: why there is no label.
    """

    path: str
    label: int | None
    fault: str | None = None


def list_videos(
    source: str, root: str | None = None
) -> tuple[list[ListedVideo], tuple[str, ...] | None]:
    """The entries of a list, and its class names where it tells.

    Faults of single lines stay in place in list files and Kinetics csvs; other formats are read
    as :func:`read_any_videos` does. A line that repeats an earlier one's path and label counts
    once.

    Raises:
        AnnotationError: there is no such list, it names no video, or cannot be read as a whole.
    """
    path = Path(source)
    try:
        entries, names = _list(path, root)
    except OSError as error:
        raise AnnotationError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not entries:
        raise AnnotationError(f"{source}: names no video")
    return list(dict.fromkeys(entries)), names


def _list(path: Path, root: str | None) -> tuple[list[ListedVideo], tuple[str, ...] | None]:
    layout = format_of(path, read_text(path)) if path.is_file() and not is_parquet(path) else None
    folder = Path(root) if root is not None else path.parent
    if layout == "kinetics":
        return _list_kinetics_csv(path, read_text(path), folder)
    if layout == "list":
        lines = [(_absolute(folder / name), to) for _, name, to in list_lines(read_text(path))]
        return [_listed(video, label) for video, label in lines], None
    videos = read_any_videos(str(path), root)
    entries = [ListedVideo(_absolute(record.path), record.label) for record in videos.records]
    return entries, videos.class_names


def _listed(path: str, label: int | str) -> ListedVideo:
    if isinstance(label, int):
        return ListedVideo(path, label)
    return ListedVideo(path, None, label)


def _list_kinetics_csv(
    path: Path, text: str, root: Path
) -> tuple[list[ListedVideo], tuple[str, ...]]:
    rows = kinetics_rows(path, text)
    # A row's own line is not known once the next is read.
    lines = [(rows.line_num, row) for row in rows]
    stems = [kinetics_stem(row) for _, row in lines]
    sound = [row for (_, row), stem in zip(lines, stems, strict=True) if stem and row["label"]]
    check_one_split(path, Counter(row.get("split") or "" for row in sound))
    names = sorted({row["label"] for row in sound})
    index = {name: label for label, name in enumerate(names)}
    files = files_by_stem(root)
    entries = []
    for (line, row), stem in zip(lines, stems, strict=True):
        # Where the row does not tell its file, its place stands for it.
        name = files.get(stem, [f"{stem}.mp4"])[0] if stem else None
        video = _absolute(root / name) if name else f"{_absolute(path)}:{line}"
        label = index.get(row["label"]) if stem else None
        entries.append(_listed(video, row_fault(row) if label is None else label))
    return entries, tuple(names)


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
