"""Lists of labelled videos in the three forms users have, read into one record type."""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videogn.errors import AnnotationError

logger = logging.getLogger("videogn")

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv"}
    | {".wmv", ".asf", ".ogv", ".3gp"}
)
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
MAX_FAULTS = 20
ANY_LABEL = 10**18
"""More classes than any list has: its labels are not asked for."""
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


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


def read_videos(
    source: str,
    *,
    num_classes: int,
    root: str | None = None,
    class_names: Sequence[str] | None = None,
) -> VideoList:
    """Read a list file, a class-folder tree or a Kinetics csv, whichever ``source`` is.

    - list file: a line is ``path label``, separated by white space or a comma; the label stands
      on the right, so a path may hold both;
    - tree: ``<source>/<class>/…/<video>``;
    - Kinetics csv: columns ``label,youtube_id,time_start,time_end[,split]``, files named
      ``<youtube_id>_<start>_<end>.*`` anywhere under the root.

    Args:
        root: where relative paths start; by default the folder of the list.
        class_names: in label order; where None, a tree's and a csv's classes in sorted order.

    Raises:
        AnnotationError: listing every fault as ``file:line``.
    """
    try:
        videos = _read(Path(source), num_classes, root, class_names)
    except OSError as error:
        raise AnnotationError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not videos.records:
        raise AnnotationError(f"{source}: names no video")
    return videos


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names in label order, one per line.

    Raises:
        AnnotationError: the file cannot be read, or a name is empty or stands twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise AnnotationError(f"{path}: cannot read the class names: {reason}") from error
    if not names:
        raise AnnotationError(f"{path}: no class names; write one per line")
    faults = [
        f"{path}:{number}: {'empty' if not name else f'{name!r} stands twice'}"
        for number, name in enumerate(names, 1)
        if not name or name in names[: number - 1]
    ]
    if faults:
        raise AnnotationError("\n".join(faults))
    return names


def read_any_videos(source: str, root: str | None = None) -> VideoList:
    """A list, tree or csv with as many classes as it has, whatever its labels mean.

    Raises:
        AnnotationError: as :func:`read_videos` does.
    """
    path = Path(source)
    names: Sequence[str] | None = None
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    elif path.is_file() and _is_kinetics_csv(text := _read_text(path)):
        rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
        names = sorted({row["label"] for row in rows if row.get("label")})
    num_classes = len(names) if names is not None else ANY_LABEL
    return read_videos(source, num_classes=num_classes, root=root, class_names=names)


def video_paths(source: str, root: str | None = None) -> list[str]:
    """Files of a list, tree or csv, whatever their labels mean.

    Raises:
        AnnotationError: as :func:`read_videos` does.
    """
    return [record.path for record in read_any_videos(source, root).records]


def spread(records: Sequence[VideoRecord], count: int) -> list[VideoRecord]:
    """At most ``count`` records, evenly spaced over the list."""
    count = min(count, len(records))
    return [records[place * len(records) // count] for place in range(count)]


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
    """The entries of a list, tree or csv, and its class names where it tells, faults and all.

    A line that repeats an earlier one's path and label counts once.

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
    if path.is_dir():
        names = [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        tree = _read_tree(path, len(names), None)
        return [ListedVideo(_absolute(r.path), r.label) for r in tree.records], tree.class_names
    if not path.is_file():
        raise AnnotationError(f"{path}: no such list of videos; give a list file, tree or csv")
    text = _read_text(path)
    folder = Path(root) if root is not None else path.parent
    if _is_kinetics_csv(text):
        return _list_kinetics_csv(path, text, folder)
    lines = [(_absolute(folder / name), label) for _, name, label in _list_lines(text)]
    return [_listed(video, label) for video, label in lines], None


def _listed(path: str, label: int | str) -> ListedVideo:
    if isinstance(label, int):
        return ListedVideo(path, label)
    return ListedVideo(path, None, label)


def _list_kinetics_csv(
    path: Path, text: str, root: Path
) -> tuple[list[ListedVideo], tuple[str, ...]]:
    rows = _kinetics_rows(path, text)
    # A row's own line is not known once the next is read.
    lines = [(rows.line_num, row) for row in rows]
    stems = [_kinetics_stem(row) for _, row in lines]
    sound = [row for (_, row), stem in zip(lines, stems, strict=True) if stem and row["label"]]
    _check_one_split(path, Counter(row.get("split") or "" for row in sound))
    names = sorted({row["label"] for row in sound})
    index = {name: label for label, name in enumerate(names)}
    files = _files_by_stem(root)
    entries = []
    for (line, row), stem in zip(lines, stems, strict=True):
        # Where the row does not tell its file, its place stands for it.
        name = files.get(stem, f"{stem}.mp4") if stem else None
        video = _absolute(root / name) if name else f"{_absolute(path)}:{line}"
        label = index.get(row["label"]) if stem else None
        entries.append(_listed(video, _row_fault(row) if label is None else label))
    return entries, tuple(names)


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def check_label_order(videos: VideoList, names: Sequence[str], of: str) -> None:
    """Refuse a list whose labels mean other classes than its folders say.

    Paths such as ``abseiling/x.mp4`` name a class; where most of those that do contradict their
    label, the list was made for another order.

    Args:
        names: in label order.
        of: whose order it is, for the message.

    Raises:
        AnnotationError: with the first contradictions.
    """
    known = {_normalised(name) for name in names}
    told = [(r, _normalised(Path(r.name).parent.name)) for r in videos.records]
    told = [(record, folder) for record, folder in told if folder in known]
    wrong = [(r, folder) for r, folder in told if _normalised(names[r.label]) != folder]
    if not wrong or 2 * len(wrong) < len(told):
        if wrong:
            logger.warning("%s: %s", videos.source, _label_fault(wrong, names, of))
        return
    raise AnnotationError(
        f"{videos.source}: its labels are in another order: {_label_fault(wrong, names, of)}; "
        "use a list made for that order"
    )


def _label_fault(wrong: Sequence[tuple[VideoRecord, str]], names: Sequence[str], of: str) -> str:
    shown = "; ".join(
        f"{record.name!r} has label {record.label}, which is {names[record.label]!r} in {of}"
        for record, _ in wrong[:3]
    )
    rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{shown}{rest}"


def _normalised(name: str) -> str:
    """A class name as folders have it: without case, underscores for blanks."""
    return "_".join(name.lower().replace("_", " ").split())


def _read(
    path: Path, num_classes: int, root: str | None, class_names: Sequence[str] | None
) -> VideoList:
    if not path.exists():
        raise AnnotationError(f"{path}: no such list of videos; give a list file, tree or csv")
    if path.is_dir():
        return _read_tree(path, num_classes, class_names)
    if not path.is_file():
        raise AnnotationError(f"{path}: is neither a file nor a folder")
    text = _read_text(path)
    folder = Path(root) if root is not None else path.parent
    if _is_kinetics_csv(text):
        return _read_kinetics_csv(path, text, folder, num_classes, class_names)
    return _read_list(path, text, folder, num_classes, class_names)


@dataclass
class _Faults:
    """What is wrong with a list, told all at once."""

    source: str
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        self.found.append((line, text))

    def raise_if_any(self) -> None:
        if not self.found:
            return
        shown = [f"{self.source}:{line}: {text}" for line, text in sorted(self.found)[:MAX_FAULTS]]
        if len(self.found) > len(shown):
            shown.append(f"and {len(self.found) - len(shown)} more")
        raise AnnotationError("\n".join(shown))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is no list of videos: not UTF-8 text") from error


def _read_list(
    path: Path, text: str, root: Path, num_classes: int, class_names: Sequence[str] | None
) -> VideoList:
    faults = _Faults(str(path))
    entries = []
    for number, name, label in _list_lines(text):
        if isinstance(label, int):
            entries.append((number, name, label))
        else:
            faults.add(number, label)
    records = _checked(entries, root, num_classes, faults)
    return VideoList(str(path), records, tuple(class_names) if class_names else None)


def _list_lines(text: str) -> Iterator[tuple[int, str, int | str]]:
    """Each line's number, path and label; in place of a label that cannot be read, the fault."""
    # Not str.splitlines: a path may hold a character that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, label = _split_label(line)
        if not name:
            yield number, line.strip(), f"{line.strip()!r} is not of the form `path label`"
        # Not int() alone: it takes 1_2 for twelve, which is rather the end of a file name.
        elif INTEGER.fullmatch(label):
            yield number, name, int(label)
        else:
            yield number, name, f"the label {label!r} of {name!r} is not an integer"


def _split_label(line: str) -> tuple[str, str]:
    """``path, label`` or ``path label``, divided at the last comma or white space."""
    line = line.strip()
    cut = max((i for i, char in enumerate(line) if char == "," or char.isspace()), default=-1)
    if cut < 0:
        return "", line
    return line[:cut].rstrip().removesuffix(",").rstrip(), line[cut + 1 :]


def _checked(
    entries: Sequence[tuple[int, str, int]], root: Path, num_classes: int, faults: _Faults
) -> tuple[VideoRecord, ...]:
    """Records of (line, name, label) entries: labels in range, no video twice.

    Raises:
        AnnotationError: with these faults and those found before.
    """
    seen: dict[str, tuple[int, int]] = {}
    records, num_repeated = [], 0
    for line, name, label in entries:
        if not 0 <= label < num_classes:
            faults.add(
                line,
                f"the label {label} of {name!r} is outside 0 … {num_classes - 1}; "
                "mend it or set model.num_classes",
            )
            continue
        path = _absolute(root / name)
        if path not in seen:
            seen[path] = (line, label)
            records.append(VideoRecord(path, label, name))
        elif seen[path][1] == label:
            num_repeated += 1
        else:
            faults.add(
                line, f"{name!r} has label {label} here and {seen[path][1]} in line {seen[path][0]}"
            )
    faults.raise_if_any()
    if num_repeated:
        logger.warning("%s: %d repeated lines count once", faults.source, num_repeated)
    return tuple(records)


def _read_tree(root: Path, num_classes: int, class_names: Sequence[str] | None) -> VideoList:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = _class_order(str(root), [p.name for p in folders], num_classes, class_names)
    index = {name: label for label, name in enumerate(names)}
    records = [
        VideoRecord(str(path), index[folder.name], str(path.relative_to(root)))
        for folder in folders
        for path in sorted(_videos_under(folder))
    ]
    return VideoList(str(root), tuple(records), names)


def _videos_under(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(where, name)


def _raise(error: OSError) -> None:
    raise error  # os.walk would leave a folder out without a word


def _class_order(
    source: str, found: Sequence[str], num_classes: int, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """The class names in label order.

    Raises:
        AnnotationError: a found class is not among the given ones, or their number is wrong.
    """
    if class_names is not None:
        unknown = sorted(set(found) - set(class_names))
        if unknown:
            raise AnnotationError(
                f"{source}: classes {unknown[:5]} are not among the {len(class_names)} known ones, "
                f"such as {list(class_names[:3])}"
            )
        return tuple(class_names)
    if len(set(found)) != num_classes:
        raise AnnotationError(
            f"{source}: holds {len(set(found))} classes and model.num_classes is {num_classes}; "
            f"set model.num_classes={len(set(found))}, or name the classes by the training list"
        )
    return tuple(sorted(set(found)))


def _is_kinetics_csv(text: str) -> bool:
    header = text.partition("\n")[0].split(",")
    return "youtube_id" in [column.strip(' "') for column in header]


def _read_kinetics_csv(
    path: Path, text: str, root: Path, num_classes: int, class_names: Sequence[str] | None
) -> VideoList:
    rows = _kinetics_rows(path, text)
    faults, lines, splits = _Faults(str(path)), [], Counter[str]()
    for row in rows:
        splits[row.get("split") or ""] += 1
        stem = _kinetics_stem(row)
        if stem is None or not row["label"]:
            faults.add(rows.line_num, _row_fault(row))
        else:
            lines.append((rows.line_num, row["label"], stem))
    faults.raise_if_any()
    _check_one_split(path, splits)
    names = _class_order(str(path), [label for _, label, _ in lines], num_classes, class_names)
    index = {name: label for label, name in enumerate(names)}
    files = _files_by_stem(root)
    entries = [(line, files.get(stem, f"{stem}.mp4"), index[label]) for line, label, stem in lines]
    return VideoList(str(path), _checked(entries, root, num_classes, faults), names)


def _kinetics_rows(path: Path, text: str) -> "csv.DictReader[str]":
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = [name for name in KINETICS_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise AnnotationError(f"{path}:1: the csv has no column {', '.join(missing)}")
    return rows


def _row_fault(row: dict[str, str]) -> str:
    return f"no label, id or whole seconds in {list(row.values())}"


def _check_one_split(path: Path, splits: Counter[str]) -> None:
    if len(splits) > 1:
        raise AnnotationError(
            f"{path}: holds several splits, {dict(splits)}; give a csv for each, or those videos "
            "would be trained on and tested on at once"
        )


def _kinetics_stem(row: dict[str, str]) -> str | None:
    try:
        start, end = (round(float(row[key])) for key in ("time_start", "time_end"))
    except (TypeError, ValueError, OverflowError):
        return None
    return f"{row['youtube_id']}_{start:06d}_{end:06d}" if row["youtube_id"] else None


def _files_by_stem(root: Path) -> dict[str, str]:
    """Video files under a folder by their name without suffix, in one walk."""
    return {path.stem: str(path.relative_to(root)) for path in sorted(_videos_under(root))}
