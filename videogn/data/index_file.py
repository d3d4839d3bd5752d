"""The packet indexes of a data set in one file beside its list.

A SQLite database: rows are looked up by path when they are needed, so 300,000 videos cost a
process no memory, an interrupted run keeps what it has, and a torn write is undone on opening.
An entry holds for a file of the same size and modification time only.
"""

import sqlite3
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from videogn.data.packets import PacketIndex
from videogn.errors import UserError
from videogn.files import UNKNOWN, state_of

SUFFIX = ".videogn-index"
FORMAT_VERSION = 2
BEST = -1
"""Stands for the stream that ffmpeg calls best."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS videos (
    path TEXT NOT NULL,
    stream INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    readable INTEGER NOT NULL,
    reason TEXT,
    packets BLOB,
    PRIMARY KEY (path, stream)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """What is known about one video.

    Attributes:
        path: absolute.
        stream: number among its video streams; None for the one ffmpeg calls best.
        size: of the file, in bytes.
        mtime_ns: when the file was last changed.
        index: where its frames lie; None where only a full decode is exact, or nothing is.
        reason: why there is no index.
        readable: whether a full decode succeeds.
    """

    path: str
    stream: int | None
    size: int
    mtime_ns: int
    index: PacketIndex | None
    reason: str | None
    readable: bool


def index_path(source: str | Path) -> Path:
    """Where the index of a list or of a folder tree lies: beside it, under its name."""
    path = Path(source)
    return path.parent / f"{path.name}{SUFFIX}"


class IndexFile:
    """The entries of one data set. A process opens it for itself: it does not cross a fork.

    Raises:
        UserError: the file is missing, or is no index of this version.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise UserError(f"{self.path}: no such index; make it with `videogn data index LIST`")
        mode = "rwc" if create else "ro"
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            # Whichever thread drops the last reference may close it.
            self._database = sqlite3.connect(address, uri=True, timeout=60, check_same_thread=False)
            # From Python 3.13 on, a connection that goes without being closed is a warning.
            weakref.finalize(self, self._database.close)
            if create:
                self._database.executescript(SCHEMA)
            self._check_version(create)
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: is no index or is damaged ({error}); remove it and make it again "
                "with `videogn data index LIST`"
            ) from error

    def _check_version(self, create: bool) -> None:
        row = self._database.execute("SELECT version FROM about").fetchone()
        if row is None and create:
            with self._database:
                self._database.execute("INSERT INTO about VALUES (?)", (FORMAT_VERSION,))
            return
        if row is None or row[0] != FORMAT_VERSION:
            found = None if row is None else row[0]
            raise UserError(
                f"{self.path}: has index version {found!r}, this program reads {FORMAT_VERSION}; "
                "remove it and make it again with `videogn data index LIST`"
            )

    def find(self, path: str, stream: int | None = None) -> Entry | None:
        """The entry of a stream; None where there is none or the file has changed since."""
        key = _stored(str(Path(path).absolute())), BEST if stream is None else stream
        row = self._database.execute(
            "SELECT * FROM videos WHERE path = ? AND stream = ?", key
        ).fetchone()
        if row is None:
            return None
        entry = _entry(row)
        return entry if state_of(path) == (entry.size, entry.mtime_ns) else None

    def add(self, entries: Iterable[Entry]) -> None:
        """Write entries of files that are there, all or none, in place of earlier ones."""
        rows = [_row(entry) for entry in entries if entry.size != UNKNOWN]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO videos VALUES (?,?,?,?,?,?,?)", rows)

    def close(self) -> None:
        """Let the file go."""
        self._database.close()


def _row(entry: Entry) -> tuple[object, ...]:
    packets = None if entry.index is None else entry.index.to_bytes()
    stream = BEST if entry.stream is None else entry.stream
    about = (entry.size, entry.mtime_ns, int(entry.readable), entry.reason)
    return (_stored(entry.path), stream, *about, packets)


def _stored(path: str) -> str | bytes:
    """A path as SQLite can hold it: as bytes where a name on the disk is no UTF-8 text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode(errors="surrogatepass")
    return path


def _entry(row: tuple[str | bytes, int, int, int, int, str | None, bytes | None]) -> Entry:
    path, stream, size, mtime_ns, readable, reason, packets = row
    index = None if packets is None else PacketIndex.from_bytes(packets)
    chosen = None if stream == BEST else stream
    if isinstance(path, bytes):
        path = path.decode(errors="surrogatepass")
    return Entry(path, chosen, size, mtime_ns, index, reason, bool(readable))
