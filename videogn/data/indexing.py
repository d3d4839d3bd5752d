"""Making packet indexes of many videos, in processes that a bad file can take down alone."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from videogn.data.index_file import Entry, IndexFile
from videogn.data.killable import run_all
from videogn.data.packets import NotIndexableError, PacketIndex, index_video
from videogn.errors import DecodeError

SAVE_SECONDS = 5.0
"""Entries reach the disk at least this often."""

UNKNOWN = -1
"""Size and time of a file that is missing; such an entry is not remembered."""


def make_index(
    paths: Iterable[str], file: IndexFile, *, num_workers: int, timeout: float
) -> Iterator[Entry]:
    """Index the videos that the file does not know yet, and write and give the entry of each.

    Args:
        timeout: seconds after which a video is given up and its process killed.

    Yields:
        Entries in no particular order, those already known first.
    """
    missing = []
    for path in paths:
        known = file.find(path)
        if known is None:
            missing.append(path)
        else:
            yield known
    fresh: list[Entry] = []
    saved = time.monotonic()
    try:
        for entry in _index_all(missing, num_workers, timeout):
            if entry.size != UNKNOWN:
                fresh.append(entry)
            if time.monotonic() - saved > SAVE_SECONDS:
                file.add(fresh)
                fresh, saved = [], time.monotonic()
            yield entry
    finally:
        file.add(fresh)


def _index_all(paths: list[str], num_workers: int, timeout: float) -> Iterator[Entry]:
    for path, outcome in run_all(index_entry, paths, num_workers=num_workers, timeout=timeout):
        yield outcome if isinstance(outcome, Entry) else _not_tried(path, outcome.reason)


def index_entry(path: str) -> Entry:
    """What there is to know about one video; never an error over its content."""
    try:
        index, reason = index_video(path), None
    except DecodeError as error:
        return _failed(path, error.reason)
    except NotIndexableError as error:
        index, reason = None, str(error)
    return _about(path, index, reason, readable=True)


def _not_tried(path: str, reason: str) -> Entry:
    """An entry that is not remembered: another machine, or a quieter one, may do better."""
    return Entry(str(Path(path).absolute()), UNKNOWN, UNKNOWN, None, reason, readable=False)


def _failed(path: str, reason: str) -> Entry:
    return _about(path, None, reason, readable=False)


def _about(path: str, index: PacketIndex | None, reason: str | None, *, readable: bool) -> Entry:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        size, mtime_ns = UNKNOWN, UNKNOWN
    else:
        size, mtime_ns = status.st_size, status.st_mtime_ns
    return Entry(str(Path(path).absolute()), size, mtime_ns, index, reason, readable)
