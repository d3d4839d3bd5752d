"""Lists of labelled videos in the forms users have, read into one record type."""

import csv
import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from videogn.data.list_checks import (
    ANY_LABEL,
    IMAGE_SUFFIXES,
    INTEGER,
    MAX_FAULTS,
    VIDEO_SUFFIXES,
    Entry,
    Expected,
    Faults,
    Fence,
    Subset,
    VideoList,
    VideoRecord,
    checked,
    class_order,
    files_under,
    lines_of,
    name_fault,
    read_text,
    suffix_of,
    videos_under,
)
from videogn.data.list_formats import (
    is_hmdb51,
    is_parquet,
    is_table,
    is_ucf101,
    read_hmdb51,
    read_mmaction2,
    read_parquet,
    read_ssv2,
    read_table,
    read_ucf101,
    split_label,
)
from videogn.data.shards import is_shards, read_shards
from videogn.errors import AnnotationError

logger = logging.getLogger("videogn")

T = TypeVar("T")

ListFormat = Literal[
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
    "shards",
]
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
K400_LABELS_SHA256 = "a8dafb93a1204d4ecfa904f943ce5ee0c62ddeeb1df71aa1f96983fca17d777e"
"""Of the 400 class names of Kinetics-400, sorted, joined by line ends."""


def read_videos(
    source: str,
    *,
    num_classes: int,
    root: str | None = None,
    class_names: Sequence[str] | None = None,
    format: ListFormat = "auto",  # noqa: A002 - as the config key is named
    subset: Subset | None = None,
    allow_outside_root: bool = False,
) -> VideoList:
    """Read a list of videos of whichever format ``source`` is.

    - list file, as PySlowFast's: a line is ``path label``, separated by white space or a comma;
      the label stands on the right, so a path may hold both; it may stand in double quotes;
    - tree: ``<source>/<class>/…/<video>``;
    - Kinetics csv: columns ``label,youtube_id,time_start,time_end[,split]``, files named
      ``<youtube_id>_<start>_<end>.*`` anywhere under the root;
    - mmaction2, UCF101, HMDB51, Something-Something v2 and tables: see
      :mod:`videogn.data.list_formats`. mmaction2's lines are as a list's where no number of frames
      stands in them; else its format must be named;
    - tar shards: see :mod:`videogn.data.shards`.

    Args:
        root: where relative paths start; by default the folder of the list.
        class_names: in label order; where None, a tree's and a csv's classes in sorted order.
        format: ``auto`` tells it by the content.
        subset: of HMDB51's split files, which hold both.
        allow_outside_root: whether a video may lie outside the root, as a link, ``..`` or an
            absolute path may say. Where not, and no root is given, a list of nothing but absolute
            paths has their common folder for its root.

    Raises:
        AnnotationError: listing every fault as ``file:line``.
        UserError: a parquet file, and pyarrow is not installed.
    """
    expected = Expected(num_classes, class_names, root, allow_outside_root)
    try:
        videos = _read(source, format, subset, expected)
    except OSError as error:
        raise AnnotationError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not videos.records:
        raise AnnotationError(f"{source}: names no video")
    return videos


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names in label order, one per line.

    Raises:
        AnnotationError: the file cannot be read, a name is empty or stands twice, or the names of
            Kinetics-400 are in another order than theirs.
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
    try:
        check_k400_order(names)
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from error
    return names


def check_k400_order(names: Sequence[str]) -> None:
    """Refuse the 400 class names of Kinetics-400 in another order than the usual, sorted one.

    Raises:
        AnnotationError: naming the first label that differs.
    """
    usual = sorted(names)
    if list(names) == usual or _sha256(usual) != K400_LABELS_SHA256:
        return
    label = next(i for i, name in enumerate(names) if name != usual[i])
    raise AnnotationError(
        f"the order of the Kinetics-400 classes is permuted: label {label} is {names[label]!r} "
        f"and should be {usual[label]!r}; use the names in sorted order, and labels made for it"
    )


def _sha256(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def read_any_videos(
    source: str,
    root: str | None = None,
    *,
    format: ListFormat = "auto",  # noqa: A002 - as the config key is named
    allow_outside_root: bool = False,
) -> VideoList:
    """A list with as many classes as it has, whatever its labels mean.

    Raises:
        AnnotationError: as :func:`read_videos` does.
    """
    return read_videos(
        source,
        num_classes=ANY_LABEL,
        root=root,
        format=format,
        subset="all",
        allow_outside_root=allow_outside_root,
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced over the list."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


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
    classes = [_normalised(name) for name in names]
    known = set(classes)
    normalised = lru_cache(maxsize=4096)(_normalised)
    told = [(r, normalised(_folder_of(r.name))) for r in videos.records]
    told = [(record, folder) for record, folder in told if folder in known]
    wrong = [(record, folder) for record, folder in told if classes[record.label] != folder]
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


def _folder_of(name: str) -> str:
    """The last folder of a path, as ``Path(name).parent.name``, for millions of them."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return parts[-2] if len(parts) > 1 else ""


def _normalised(name: str) -> str:
    """A class name as folders have it: without case, underscores for blanks."""
    return "_".join(name.lower().replace("_", " ").split())


def _read(source: str, layout: ListFormat, subset: Subset | None, expected: Expected) -> VideoList:
    path = Path(source)
    if layout == "shards" or (layout == "auto" and is_shards(source)):
        return read_shards(source, expected)
    if not path.exists():
        files = [Path(name) for name in sorted(glob.glob(source))]  # noqa: PTH207 - may be absolute
        if not files:
            raise AnnotationError(f"{path}: no such list of videos; give a list file, tree or csv")
        if layout == "hmdb51" or (layout == "auto" and is_hmdb51(files)):
            return read_hmdb51(source, files, subset, expected)
        raise AnnotationError(
            f"{source}: matches {len(files)} files; only HMDB51's split files may be several"
        )
    if path.is_dir():
        if layout not in ("auto", "tree"):
            raise AnnotationError(f"{path}: is a folder, which data.format={layout} is not")
        return _read_tree(path, expected)
    if not path.is_file():
        raise AnnotationError(f"{path}: is neither a file nor a folder")
    if layout == "tree":
        raise AnnotationError(f"{path}: is a file; data.format=tree is a folder of class folders")
    if layout in ("auto", "table") and is_parquet(path):
        return read_parquet(path, expected)
    return _read_file(path, layout, subset, expected)


def _read_file(
    path: Path, layout: ListFormat, subset: Subset | None, expected: Expected
) -> VideoList:
    text = read_text(path)
    if layout == "auto":
        layout = format_of(path, text)
    if layout == "hmdb51":
        return read_hmdb51(str(path), [path], subset, expected)
    if layout == "kinetics":
        return _read_kinetics_csv(path, text, expected)
    if layout == "mmaction2":
        return read_mmaction2(path, text, expected)
    if layout == "ucf101":
        return read_ucf101(path, text, expected)
    if layout == "ssv2":
        return read_ssv2(path, text, expected)
    if layout == "table":
        return read_table(path, text, expected)
    return _read_list(path, text, expected)


def format_of(path: Path, text: str) -> ListFormat:
    """The format of a list by its content."""
    if is_hmdb51([path]):
        return "hmdb51"
    if text.lstrip().startswith("[") and path.suffix.lower() == ".json":
        return "ssv2"
    if _is_kinetics_csv(text):
        return "kinetics"
    if is_ucf101(path, text):
        return "ucf101"
    return "table" if is_table(text) else "list"


def _read_list(path: Path, text: str, expected: Expected) -> VideoList:
    faults, entries = Faults(str(path)), []
    for number, name, label in list_lines(text):
        if isinstance(label, int):
            entries.append(Entry(number, name, label))
        else:
            faults.add(number, label)
    records = checked(entries, expected.folder(path), expected, faults)
    names = tuple(expected.class_names) if expected.class_names else None
    return VideoList(str(path), records, names)


def list_lines(text: str) -> Iterator[tuple[int, str, int | str]]:
    """Each line's number, path and label; in place of a label that cannot be read, the fault."""
    for number, line in lines_of(text):
        name, label = split_label(line)
        if not name:
            yield number, line, f"{line!r} is not of the form `path label`"
        # Not int() alone: it takes 1_2 for twelve, which is rather the end of a file name.
        elif INTEGER.fullmatch(label):
            yield number, name, int(label)
        else:
            yield number, name, f"the label {label!r} of {name!r} is not an integer"


def _read_tree(root: Path, expected: Expected) -> VideoList:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = class_order(str(root), [p.name for p in folders], expected)
    index = {name: label for label, name in enumerate(names)}
    files = [entry for folder in folders for entry in files_under(str(folder))]
    kept = _videos_or_images(root, files)
    start = len(str(root / "x")) - 1
    records = []
    for entry in kept:
        name = entry.path[start:]
        records.append(VideoRecord(entry.path, index[name.partition(os.sep)[0]], name))
    if not expected.allow_outside_root:
        fence = Fence([root] if expected.root is None else [root, expected.root])
        here = "" if root.is_absolute() else f"{Path.cwd()}{os.sep}"
        told = [
            fence.fault(f"{here}{record.path}", record.name, is_link=entry.is_symlink())
            for record, entry in zip(records, kept, strict=True)
        ]
        faults = [f"{root}: {fault}" for fault in told if fault]
        if faults:
            raise AnnotationError("\n".join(faults[:MAX_FAULTS]))
    return VideoList(str(root), tuple(records), names)


def _videos_or_images(root: Path, files: Sequence["os.DirEntry[str]"]) -> list["os.DirEntry[str]"]:
    """The videos among the files of a tree, folder by folder; where there are none, the images."""
    videos, images = [], []
    for entry in files:
        suffix = suffix_of(entry.name)
        if suffix in VIDEO_SUFFIXES:
            videos.append(entry)
        elif suffix in IMAGE_SUFFIXES:
            images.append(entry)
    if videos and images:
        logger.warning(
            "%s: %d images beside %d videos are left out; a list file can name both",
            *(root, len(images), len(videos)),
        )
    # As Paths are sorted: the parts one by one.
    return sorted(videos or images, key=lambda entry: entry.path.split("/"))


def _is_kinetics_csv(text: str) -> bool:
    header = text.partition("\n")[0].split(",")
    return "youtube_id" in [column.strip(' "') for column in header]


def _read_kinetics_csv(path: Path, text: str, expected: Expected) -> VideoList:
    rows = kinetics_rows(path, text)
    faults, lines, splits = Faults(str(path)), [], Counter[str]()
    for row in rows:
        splits[row.get("split") or ""] += 1
        stem = kinetics_stem(row)
        if stem is None or not row["label"]:
            faults.add(rows.line_num, row_fault(row))
        elif (fault := name_fault(stem)) is not None:
            faults.add(rows.line_num, fault)
        else:
            lines.append((rows.line_num, row["label"], stem))
    faults.raise_if_any()
    check_one_split(path, splits)
    names = class_order(str(path), [label for _, label, _ in lines], expected)
    index = {name: label for label, name in enumerate(names)}
    folder, entries = expected.folder(path), []
    files = files_by_stem(folder)
    for line, label, stem in lines:
        found = files.get(stem, [f"{stem}.mp4"])
        entries.append(Entry(line, found[0], index[label]))
        if len(found) > 1:
            faults.add(
                line, f"{found[0]!r} and {found[1]!r} under {folder} may be meant; remove one"
            )
    return VideoList(str(path), checked(entries, folder, expected, faults, written=False), names)


def kinetics_rows(path: Path, text: str) -> "csv.DictReader[str]":
    """The rows of a Kinetics csv.

    Raises:
        AnnotationError: a column is missing.
    """
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = [name for name in KINETICS_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise AnnotationError(f"{path}:1: the csv has no column {', '.join(missing)}")
    return rows


def row_fault(row: dict[str, str]) -> str:
    """What a row without its label or file says."""
    return f"no label, id or whole seconds in {list(row.values())}"


def check_one_split(path: Path, splits: Counter[str]) -> None:
    """Refuse a csv of several splits.

    Raises:
        AnnotationError: with the rows of each.
    """
    if len(splits) > 1:
        raise AnnotationError(
            f"{path}: holds several splits, {dict(splits)}; give a csv for each, or those videos "
            "would be trained on and tested on at once"
        )


def kinetics_stem(row: dict[str, str]) -> str | None:
    """The name of a row's file without its suffix; None where the row does not tell."""
    try:
        start, end = (round(float(row[key])) for key in ("time_start", "time_end"))
    except (TypeError, ValueError, OverflowError):
        return None
    return f"{row['youtube_id']}_{start:06d}_{end:06d}" if row["youtube_id"] else None


def files_by_stem(root: Path) -> dict[str, list[str]]:
    """Video files under a folder by their name without suffix, in one walk."""
    files: dict[str, list[str]] = {}
    for path in sorted(videos_under(root)):
        files.setdefault(path.stem, []).append(str(path.relative_to(root)))
    return files
