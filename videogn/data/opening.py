"""Which reader opens a video: by its packet index where there is one, else by seeking or by the
chosen one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.decord_reader import DecordReader
from videogn.data.index_file import IndexFile
from videogn.data.packets import IndexedReader
from videogn.data.seeking import open_seeking
from videogn.errors import UserError
from videogn.files import locate

READERS: dict[str, Callable[..., VideoReader]] = {
    "pyav": PyAVReader,
    "decord": DecordReader,
}
"""Value of ``data.reader`` -> what opens a file, and takes the number of a stream behind it."""


class VideoOpener:
    """Opens videos for reading; a process finds the index file for itself when it needs it.

    Args:
        reader: a key of :data:`READERS`. Only ``pyav`` uses an index, for others read otherwise.
        index: the index file, where there is one.
        seek: whether pyav may leave out the stretches of a video without an entry there that
            nobody asks for, and so overlook their damage.
        stream: number among each file's video streams; None for the one ffmpeg calls best.
    """

    def __init__(
        self,
        reader: str,
        index: Path | None = None,
        *,
        seek: bool = False,
        stream: int | None = None,
    ) -> None:
        self.reader = reader
        self.stream = stream
        self.seek = seek and reader == "pyav"
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
        if entry is None and self.seek:
            return open_seeking(path, self.stream)
        chosen = () if self.stream is None else (self.stream,)
        return READERS[self.reader](path, *chosen)

    def _find(self, path: str) -> Any:
        if self.index is None:
            return None
        if self._file is None:
            self._file = IndexFile(self.index)
        return self._file.find(path, self.stream)

    def __getstate__(self) -> dict[str, Any]:
        # A database connection belongs to the process that opened it.
        return {**vars(self), "_file": None}
