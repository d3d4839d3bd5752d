"""Lists of videos in the layouts of mmaction2, UCF101, HMDB51, Something-Something v2 and tables.

Each reader takes what is wanted of the list and gives a :class:`VideoList`, or every fault as
``file:line``.
"""

import csv
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from videogn.data.list_checks import (
    INTEGER,
    Entry,
    Expected,
    Faults,
    Subset,
    VideoList,
    checked,
    class_order,
    lines_of,
    ordered_names,
    read_text,
)
from videogn.errors import AnnotationError, UserError

QUOTED = re.compile(r'"((?:[^"]|"")+)"[\s,]+(\S.*)')
UCF_CLASSES = "classInd.txt"
UCF_LINE = re.compile(r"([^/\s]+)/([^/]+\.avi)(?:\s+([0-9]{1,18}))?", re.IGNORECASE)
HMDB_FILE = re.compile(r"(.+)_test_split([0-9]+)\.txt")
HMDB_LINE = re.compile(r"(\S.*?)\s+([012])")
HMDB_SUBSETS = {"train": ("1",), "test": ("2",), "all": ("1", "2")}
SSV2_LABELS = ("something-something-v2-labels.json", "labels.json")
PATH_COLUMNS = ("path", "video", "file", "filename")
LABEL_COLUMNS = ("label", "class", "target")
PARQUET_MAGIC = b"PAR1"


def split_quoted(line: str) -> tuple[str, str] | None:
    """The path and the rest of a line ``"path" rest``; None where it has no such form.

    A quote inside the path is doubled, as in csv files.
    """
    match = QUOTED.fullmatch(line)
    return (match[1].replace('""', '"'), match[2]) if match else None


def split_label(line: str) -> tuple[str, str]:
    """``path, label`` or ``path label``, divided at the last comma or white space.

    The path may stand in double quotes.
    """
    line = line.strip()
    quoted = split_quoted(line)
    if quoted and not any(char == "," or char.isspace() for char in quoted[1]):
        return quoted
    cut = max((i for i, char in enumerate(line) if char == "," or char.isspace()), default=-1)
    if cut < 0:
        return "", line
    return line[:cut].rstrip().removesuffix(",").rstrip(), line[cut + 1 :]


def read_mmaction2(path: Path, text: str, expected: Expected) -> VideoList:
    """Lines ``path label`` or ``path num_frames label``, divided by blanks.

    Raises:
        AnnotationError: with every fault; a path is a folder of frames.
    """
    faults, entries, folder = Faults(str(path)), [], expected.folder(path)
    for number, line in lines_of(text):
        quoted = split_quoted(line)
        name, *rest = [quoted[0], *quoted[1].split()] if quoted else line.split()
        if len(rest) not in (1, 2) or not all(INTEGER.fullmatch(word) for word in rest):
            faults.add(
                number,
                f"{line!r} is not of the form `path label` or `path num_frames label`; "
                "put a path with blanks in double quotes",
            )
        elif "\0" not in name and (folder / name).is_dir():
            faults.add(
                number, f"{name!r} is a folder of frames; give mmaction2's list of the video files"
            )
        else:
            entries.append(Entry(number, name, int(rest[-1])))
    names = tuple(expected.class_names) if expected.class_names else None
    return VideoList(str(path), checked(entries, folder, expected, faults), names)


def is_ucf101(path: Path, text: str) -> bool:
    """Whether a list stands beside ``classInd.txt`` and starts as a split of UCF101 does."""
    # The first line decides: a later fault must not turn labels from 1 into labels from 0.
    first = next((line for _, line in lines_of(text)), "")
    return bool(UCF_LINE.fullmatch(first)) and (path.parent / UCF_CLASSES).is_file()


def read_ucf101(path: Path, text: str, expected: Expected) -> VideoList:
    """A split of UCF101: lines ``Class/v_x.avi[ label]``, labels from 1, and ``classInd.txt``.

    Raises:
        AnnotationError: with every fault; a label is another than that of the folder.
    """
    own = _ucf_classes(path.parent / UCF_CLASSES)
    names = ordered_names(str(path), own, expected)
    faults, entries = Faults(str(path)), []
    for number, line in lines_of(text):
        match = UCF_LINE.fullmatch(line)
        if match is None:
            faults.add(number, f"{line!r} is not of the form `Class/video.avi [label]`")
        elif match[1] not in own:
            faults.add(number, f"the class {match[1]!r} is not in {UCF_CLASSES}")
        elif match[3] is not None and int(match[3]) != own.index(match[1]) + 1:
            faults.add(
                number,
                f"{match[1]!r} has label {match[3]} here and {own.index(match[1]) + 1} in "
                f"{UCF_CLASSES}; set data.format=list if labels start at 0",
            )
        else:
            entries.append(Entry(number, f"{match[1]}/{match[2]}", names.index(match[1])))
    return VideoList(str(path), checked(entries, expected.folder(path), expected, faults), names)


def _ucf_classes(path: Path) -> list[str]:
    if not path.is_file():
        raise AnnotationError(f"{path}: no such file; a split of UCF101 has it beside it")
    faults, names = Faults(str(path)), list[str]()
    for number, line in lines_of(read_text(path)):
        label, _, name = line.partition(" ")
        name = name.strip()
        if label != str(len(names) + 1) or not name or name in names:
            faults.add(number, f"{line!r} is not `{len(names) + 1} Class` with a new class")
        names.append(name)
    faults.raise_if_any()
    return names


def is_hmdb51(paths: Sequence[Path]) -> bool:
    """Whether files are named as the split files of HMDB51."""
    return bool(paths) and all(HMDB_FILE.fullmatch(path.name) for path in paths)


def read_hmdb51(
    source: str, paths: Sequence[Path], subset: Subset | None, expected: Expected
) -> VideoList:
    """Split files of HMDB51, ``<class>_test_split1.txt`` with lines ``video.avi 0|1|2``.

    Videos are at ``<root>/<class>/<video>``; 1 is for training, 2 for testing, 0 for neither.

    Raises:
        AnnotationError: with every fault; no subset is named, or the files are of several splits.
    """
    if subset is None:
        raise AnnotationError(f"{source}: split files of HMDB51; say which subset: train or test")
    told = [(path, HMDB_FILE.fullmatch(path.name)) for path in paths]
    classes = {path: match[1] for path, match in told if match}
    strange = [path.name for path, match in told if not match]
    splits = sorted({match[2] for _, match in told if match})
    if strange or len(splits) != 1:
        raise AnnotationError(
            f"{source}: must match the files <class>_test_splitN.txt of one split, got splits "
            f"{splits} and other files {strange[:3]}; such as data.train='splits/*_test_split1.txt'"
        )
    names = class_order(source, list(classes.values()), expected)
    faults, entries = Faults(source), []
    for path, name in classes.items():
        for number, line in lines_of(read_text(path)):
            match = HMDB_LINE.fullmatch(line)
            if match is None:
                faults.add(number, f"{line!r} is not of the form `video 0|1|2`", str(path))
            elif match[2] in HMDB_SUBSETS[subset]:
                entries.append(Entry(number, f"{name}/{match[1]}", names.index(name), str(path)))
    records = checked(entries, expected.folder(paths[0]), expected, faults)
    return VideoList(source, records, names)


def read_ssv2(path: Path, text: str, expected: Expected) -> VideoList:
    """A json list of Something-Something v2, with its labels json beside it.

    Videos are at ``<root>/<id>.webm``; a class is a template without its brackets.

    Raises:
        AnnotationError: with every fault.
    """
    own = _ssv2_classes(path)
    names = ordered_names(str(path), own, expected)
    index = {name: label for label, name in enumerate(names)}
    faults, entries = Faults(str(path)), []
    known = set(own)
    for number, item in _json_items(path, text):
        video, template = (
            (item.get("id"), item.get("template")) if isinstance(item, dict) else (None, None)
        )
        if not isinstance(video, str) or not video or not isinstance(template, str):
            faults.add(number, "no id or template; the test set has no public labels")
            continue
        name = template.replace("[", "").replace("]", "")
        if name not in known:
            faults.add(number, f"the template {name!r} of id {video!r} is not in the labels json")
            continue
        entries.append(Entry(number, f"{video}.webm", index[name]))
    return VideoList(str(path), checked(entries, expected.folder(path), expected, faults), names)


def _ssv2_classes(path: Path) -> list[str]:
    """Class names in the order of the labels json beside a list."""
    files = [path.parent / name for name in SSV2_LABELS if (path.parent / name).is_file()]
    if not files:
        raise AnnotationError(f"{path}: no {' or '.join(SSV2_LABELS)} beside it; put it there")
    try:
        labels = dict[str, Any](json.loads(read_text(files[0])))
        names = sorted(labels, key=lambda name: int(labels[name]))
        numbers = [int(labels[name]) for name in names]
    except (ValueError, TypeError, RecursionError) as error:
        raise AnnotationError(f"{files[0]}: is no json of `template: number`: {error}") from error
    if numbers != list(range(len(names))):
        raise AnnotationError(f"{files[0]}: its numbers are not 0 … {len(names) - 1}, each once")
    return names


def _json_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of a json list with the lines that they start at."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    position = _skip(blank, text, 0)
    line = 1 + text.count("\n", 0, position)
    separator = "["
    while True:
        # An empty list ends at once; any other has an item after each comma.
        if text[position : position + 1] == "]" and separator == ",":
            return
        if text[position : position + 1] != separator:
            raise AnnotationError(f"{path}:{line}: is no json list: {separator!r} is missing")
        start = _skip(blank, text, position + 1)
        line += text.count("\n", position, start)
        if separator == "[" and text[start : start + 1] == "]":
            return
        try:
            item, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{path}:{line}: is no json list: {error}") from error
        yield line, item
        position = _skip(blank, text, end)
        line += text.count("\n", start, position)
        separator = ","


def _skip(blank: re.Pattern[str], text: str, position: int) -> int:
    match = blank.match(text, position)
    return match.end() if match else position


def is_parquet(path: Path) -> bool:
    """Whether a file starts as a parquet file does."""
    with path.open("rb") as file:
        return file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC


def is_table(text: str) -> bool:
    """Whether a text starts with the names of a path column and a label column."""
    try:
        # The first line alone: an open quote would run on through the text of a plain list.
        columns = next(_rows(text.partition("\n")[0]), (0, []))[1]
    except csv.Error:
        return False
    return None not in (_column(columns, PATH_COLUMNS), _column(columns, LABEL_COLUMNS))


def read_table(path: Path, text: str, expected: Expected) -> VideoList:
    """A csv or tsv whose first line names a path column and a label column.

    Of several such columns the first of ``PATH_COLUMNS`` and of ``LABEL_COLUMNS`` counts. Labels
    are integers, or class names.

    Raises:
        AnnotationError: with every fault.
    """
    try:
        rows = list(_rows(text))
    except csv.Error as error:
        raise AnnotationError(f"{path}: is no csv: {error}") from error
    columns = rows[0][1] if rows else []
    where, what = _needed_columns(path, columns)
    faults, cells = Faults(str(path)), []
    for number, row in rows[1:]:
        if len(row) != len(columns):
            faults.add(number, f"has {len(row)} values and the first line names {len(columns)}")
        else:
            cells.append((number, row[where].strip(), row[what].strip()))
    return _table(path, cells, expected, faults)


def read_parquet(path: Path, expected: Expected) -> VideoList:
    """As :func:`read_table`, of a parquet file; faults name rows from 1.

    Raises:
        UserError: pyarrow is not installed.
        AnnotationError: with every fault.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"{path}: a parquet file needs pyarrow: pip install 'videogn[parquet]'"
        ) from error
    try:
        table = parquet.read_table(str(path))
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path}: cannot be read as parquet: {error}") from error
    where, what = _needed_columns(path, list(table.column_names))
    faults, cells = Faults(str(path)), []
    pairs = zip(table.column(where).to_pylist(), table.column(what).to_pylist(), strict=True)
    for number, (name, label) in enumerate(pairs, start=1):
        if isinstance(name, str) and isinstance(label, int | str) and not isinstance(label, bool):
            cells.append((number, name.strip(), str(label).strip()))
        else:
            faults.add(number, f"{name!r}, {label!r} is no path with an integer or a class name")
    return _table(path, cells, expected, faults)


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the number of their last line."""
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(
        (f"{line}\n" for line in text.split("\n")), delimiter=delimiter, skipinitialspace=True
    )
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _column(columns: Sequence[str], wanted: Sequence[str]) -> int | None:
    plain = [column.strip().lower() for column in columns]
    return next((plain.index(name) for name in wanted if name in plain), None)


def _needed_columns(path: Path, columns: Sequence[str]) -> tuple[int, int]:
    where, what = _column(columns, PATH_COLUMNS), _column(columns, LABEL_COLUMNS)
    if where is None or what is None:
        raise AnnotationError(
            f"{path}:1: a table names a column {'|'.join(PATH_COLUMNS)} and a column "
            f"{'|'.join(LABEL_COLUMNS)}, got {list(columns)[:8]}"
        )
    return where, what


def _table(
    path: Path, cells: Sequence[tuple[int, str, str]], expected: Expected, faults: Faults
) -> VideoList:
    """The list of (line, path, label) cells, whose labels are all integers or all names."""
    for line, name, label in cells:
        if not name or not label:
            faults.add(line, f"has no {'label' if name else 'path'}")
    cells = [cell for cell in cells if cell[1] and cell[2]]
    words = [label for _, _, label in cells if not INTEGER.fullmatch(label)]
    if not words:
        entries = [Entry(line, name, int(label)) for line, name, label in cells]
        names = tuple(expected.class_names) if expected.class_names else None
    else:
        names, entries = _named_classes(path, cells, words[0], expected, faults)
    return VideoList(str(path), checked(entries, expected.folder(path), expected, faults), names)


def _named_classes(
    path: Path,
    cells: Sequence[tuple[int, str, str]],
    word: str,
    expected: Expected,
    faults: Faults,
) -> tuple[tuple[str, ...], list[Entry]]:
    known = expected.class_names
    for line, name, label in cells:
        if known is not None and label not in known:
            faults.add(
                line, f"the class {label!r} of {name!r} is not among {len(known)} known ones"
            )
        if known is None and INTEGER.fullmatch(label):
            faults.add(line, f"the label {label} of {name!r} is a number, others are {word!r}")
    faults.raise_if_any()
    names = class_order(str(path), [label for _, _, label in cells], expected)
    index = {name: label for label, name in enumerate(names)}
    return names, [Entry(line, name, index[label]) for line, name, label in cells]
