"""Which reader opens a video: by its packet index where there is one, else the chosen one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.decord_reader import DecordReader
from videogn.data.index_file import IndexFile
from videogn.data.packets import IndexedReader
from videogn.errors import UserError
from videogn.files import locate

READERS: dict[str, Callable[[str], VideoReader]] = {"pyav": PyAVReader, "decord": DecordReader}
"""Value of ``data.reader`` -> what opens a file."""


class VideoOpener:
    """Opens videos for reading; a process finds the index file for itself when it needs it.

    Args:
        reader: a key of :data:`READERS`. Only ``pyav`` uses an index, for others read otherwise.
        index: the index file, where there is one.
    """

    def __init__(self, reader: str, index: Path | None = None) -> None:
        self.reader = reader
        self.index = index if reader == "pyav" else None
        self._file: IndexFile | None = None

    def __call__(self, path: str) -> VideoReader:
        """The video at ``path``.

        Raises:
            DecodeError: it cannot be read.
            UserError: the index file is damaged, or the reader cannot read tar shards.
        """
        if self.reader != "pyav" and locate(path).size is not None:
            raise UserError(
                f"data.reader={self.reader}: cannot read tar shards; set data.reader=pyav"
            )
        entry = self._find(path)
        if entry is not None and entry.index is not None:
            return IndexedReader(path, entry.index)
        return READERS[self.reader](path)

    def _find(self, path: str) -> Any:
        if self.index is None:
            return None
        if self._file is None:
            self._file = IndexFile(self.index)
        return self._file.find(path)

    def __getstate__(self) -> dict[str, Any]:
        # A database connection belongs to the process that opened it.
        return {"reader": self.reader, "index": self.index, "_file": None}
