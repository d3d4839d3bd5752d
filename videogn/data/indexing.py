"""Making packet indexes of many videos, in processes that a bad file can take down alone."""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from videogn.data.index_file import Entry, IndexFile
from videogn.data.packets import NotIndexableError, index_video
from videogn.data.processes import Lost, run_all
from videogn.errors import DecodeError
from videogn.files import UNKNOWN, state_of

SAVE_SECONDS = 5.0
"""Entries reach the disk at least this often."""


def make_index(
    paths: Iterable[str],
    file: IndexFile,
    *,
    num_workers: int,
    timeout: float,
    stream: int | None = None,
) -> Iterator[Entry]:
    """Index the videos that the file does not know yet, and write and give the entry of each.

    Args:
        timeout: seconds after which a video is given up and its process killed.
        stream: number among each file's video streams; None for the one ffmpeg calls best.

    Yields:
        Entries in no particular order, those already known first.
    """
    missing = []
    for path in paths:
        known = file.find(path, stream)
        if known is None:
            missing.append(path)
        else:
            yield known
    fresh: list[Entry] = []
    saved = time.monotonic()
    try:
        task = partial(index_entry, stream=stream)
        for path, outcome in run_all(
            task, missing, num_workers=num_workers, timeout=timeout, done="indexed"
        ):
            entry = _not_tried(path, stream, outcome) if isinstance(outcome, Lost) else outcome
            if entry.size != UNKNOWN:
                fresh.append(entry)
            if time.monotonic() - saved > SAVE_SECONDS:
                file.add(fresh)
                fresh, saved = [], time.monotonic()
            yield entry
    finally:
        file.add(fresh)


def index_entry(path: str, stream: int | None = None) -> Entry:
    """What there is to know about one video; never an error over its content."""
    index, reason, readable = None, None, True
    try:
        index = index_video(path, stream)
    except DecodeError as error:
        reason, readable = error.reason, False
    except NotIndexableError as error:
        reason = str(error)
    size, mtime_ns = state_of(path)
    return Entry(str(Path(path).absolute()), stream, size, mtime_ns, index, reason, readable)


def _not_tried(path: str, stream: int | None, lost: Lost) -> Entry:
    """An entry that is not remembered: another machine, or a quieter one, may do better."""
    path = str(Path(path).absolute())
    return Entry(path, stream, UNKNOWN, UNKNOWN, None, lost.reason, readable=False)
