"""Making packet indexes of many videos, in processes that a bad file can take down alone."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from videogn.data.index_file import Entry, IndexFile
from videogn.data.packets import NotIndexableError, PacketIndex, index_video
from videogn.data.processes import Lost, run_all
from videogn.errors import DecodeError
from videogn.files import UNKNOWN, state_of

SAVE_SECONDS = 5.0
"""Entries reach the disk at least this often."""


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
        for path, outcome in run_all(
            index_entry, missing, num_workers=num_workers, timeout=timeout, done="indexed"
        ):
            entry = _not_tried(path, outcome) if isinstance(outcome, Lost) else outcome
            if entry.size != UNKNOWN:
                fresh.append(entry)
            if time.monotonic() - saved > SAVE_SECONDS:
                file.add(fresh)
                fresh, saved = [], time.monotonic()
            yield entry
    finally:
        file.add(fresh)


def index_entry(path: str) -> Entry:
    """What there is to know about one video; never an error over its content."""
    try:
        index, reason = index_video(path), None
    except DecodeError as error:
        return _failed(path, error.reason)
    except NotIndexableError as error:
        index, reason = None, str(error)
    return _about(path, index, reason, readable=True)


def _not_tried(path: str, lost: Lost) -> Entry:
    """An entry that is not remembered: another machine, or a quieter one, may do better."""
    path = str(Path(path).absolute())
    return Entry(path, UNKNOWN, UNKNOWN, None, lost.reason, readable=False)


def _failed(path: str, reason: str) -> Entry:
    return _about(path, None, reason, readable=False)


def _about(path: str, index: PacketIndex | None, reason: str | None, *, readable: bool) -> Entry:
    size, mtime_ns = state_of(path)
    return Entry(str(Path(path).absolute()), size, mtime_ns, index, reason, readable)
