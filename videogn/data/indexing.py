"""Making packet indexes of many videos, in processes that a bad file can take down alone."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from videogn.data.images import ImageReader, is_image
from videogn.data.index_file import Entry, IndexFile
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.processes import Lost, Pool, known_or_run
from videogn.errors import DecodeError
from videogn.files import UNKNOWN, state_of


def make_index(
    paths: Iterable[str], file: IndexFile, pool: Pool, *, stream: int | None = None
) -> Iterator[Entry]:
    """Index the videos that the file does not know yet, and write and give the entry of each.

    Args:
        stream: number among each file's video streams; None for the one ffmpeg calls best.

    Yields:
        Entries in no particular order, those already known first.
    """
    make, find = partial(index_entry, stream=stream), partial(file.find, stream=stream)
    stand_in = partial(_not_tried, stream=stream)
    return known_or_run(make, paths, pool, find, file.add, stand_in, done="indexed")


def index_entry(path: str, stream: int | None = None) -> Entry:
    """What there is to know about one video; never an error over its content."""
    index, reason, readable = None, None, True
    try:
        if is_image(path):
            ImageReader(path)
            raise NotIndexableError("an image")
        index = index_video(path, stream)
    except DecodeError as error:
        reason, readable = error.reason, False
    except NotIndexableError as error:
        reason = str(error)
    size, mtime_ns = state_of(path)
    return Entry(str(Path(path).absolute()), stream, size, mtime_ns, index, reason, readable)


def _not_tried(path: str, lost: Lost, stream: int | None) -> Entry:
    """An entry that is not remembered: another machine, or a quieter one, may do better."""
    path = str(Path(path).absolute())
    return Entry(path, stream, UNKNOWN, UNKNOWN, None, lost.reason, readable=False)
