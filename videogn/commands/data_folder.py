"""Which lists a folder of a data set holds, in the layouts that Kinetics and others come in."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from videogn.errors import ConfigError

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation"),
    "test": ("test",),
}
"""Split -> names that lists and folders of it have."""
SUFFIXES = (".csv", ".txt", ".list", ".json", ".parquet")
PREPARED, CLASS_NAMES = "list.txt", "class_names.txt"
"""What ``videogn data prepare`` leaves in a split's folder."""
ANNOTATIONS = ("", "annotations")
"""Folders that lists lie in; CVDF's copy of Kinetics has the second."""


def data_words(
    folder: Path, *, tests_on_val: bool, given: Mapping[str, str] | None = None
) -> list[str]:
    """``data.train=`` and its likes for the lists or class-folder trees of a folder.

    Args:
        tests_on_val: whether the test is of the validation videos, whatever else there is; the
            labels of Kinetics' test split are not published.
        given: what the user has set; a split that is named there is not looked for.

    Raises:
        ConfigError: there is no training or no validation split, or more than one.
    """
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: no such folder")
    given = given or {}
    train, val, test = (
        Path(given[f"data.{split}"]) if f"data.{split}" in given else _one(folder, split)
        for split in ("train", "val", "test")
    )
    if train is None or val is None:
        missing = "train" if train is None else "val"
        raise ConfigError(
            f"--data {folder}: has no {missing} split: no list or folder called "
            f"{' or '.join(SPLITS[missing])} ({', '.join(SUFFIXES)}; lists also in "
            f"{ANNOTATIONS[1]}/); name it by data.{missing}=PATH"
        )
    sources = {"train": train, "val": val, "test": val if tests_on_val or test is None else test}
    words = [f"data.{split}={path}" for split, path in sources.items()]
    names = train.parent / CLASS_NAMES
    if train.is_file() and names.is_file():
        words.append(f"data.class_names={names}")
    if any(path.parent.name == ANNOTATIONS[1] for path in sources.values()):
        # The names in such lists start at the data set's folder.
        words.append(f"data.root={folder}")
    return words


def _one(folder: Path, split: str) -> Path | None:
    """The list of a split, or else its tree.

    Raises:
        ConfigError: several lists may be meant.
    """
    there = [path for path in _candidates(folder, split) if path.exists()]
    lists = [path for path in there if path.is_file()]
    if len(lists) > 1:
        raise ConfigError(
            f"--data {folder}: {lists[0].name} and {lists[1].name} may both be the {split} split; "
            f"name one by data.{split}=PATH"
        )
    return next(iter([*lists, *there]), None)


def _candidates(folder: Path, split: str) -> Iterator[Path]:
    for name in SPLITS[split]:
        for where in ANNOTATIONS:
            yield from (folder / where / f"{name}{suffix}" for suffix in SUFFIXES)
        yield folder / name / PREPARED
        yield folder / name
