"""Which reader opens a video: by its packet index where there is one, else the chosen one.

A file of a form that the chosen reader is not proven to read right goes to an exact one.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.decord_reader import DecordReader, check_decord
from videogn.data.index_file import Entry, IndexFile
from videogn.data.packets import IndexedReader
from videogn.data.routing import PROVEN, look, why_exact
from videogn.data.torchcodec_reader import TorchcodecReader, check_torchcodec
from videogn.errors import DecodeError

READERS: dict[str, Callable[[str], VideoReader]] = {
    "pyav": PyAVReader,
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "torchcodec_cuda": partial(TorchcodecReader, device="cuda"),
}
"""Value of ``data.reader`` -> what opens a file."""

CHECKS: dict[str, Callable[[], object]] = {
    "decord": check_decord,
    "torchcodec": check_torchcodec,
    "torchcodec_cuda": partial(check_torchcodec, "cuda"),
}
"""What finds out whether a reader can run here; others always can."""


class VideoOpener:
    """Opens videos for reading; a process finds the index file for itself when it needs it.

    Args:
        reader: a key of :data:`READERS`.
        index: the index file, where there is one.
        insist: whether ``reader`` reads every file, also those it is known to get wrong.
    """

    def __init__(self, reader: str, index: Path | None = None, *, insist: bool = False) -> None:
        self.reader = reader
        self.index = index
        self.insist = insist
        self._file: IndexFile | None = None

    def __call__(self, path: str) -> VideoReader:
        """The video at ``path``.

        Raises:
            DecodeError: it cannot be read.
            UserError: the index file is damaged, or the reader is not installed.
        """
        if self.reader not in PROVEN:
            return _exact(path, self._find(path))
        if self.insist:
            return READERS[self.reader](path)
        entry = self._find(path)
        if self._why_exact(path, entry) is None:
            # What it refuses may be sound, and the exact reader names damage better.
            with contextlib.suppress(DecodeError):
                video = READERS[self.reader](path)
                if entry is None or entry.index is None:
                    return video
                if video.num_frames == entry.index.num_frames:
                    return video
        return _exact(path, entry)

    def share(self, paths: Sequence[str]) -> str:
        """How many of some files ``reader`` would read, and why it would not read the others."""
        reasons: Counter[str] = Counter()
        for path in paths:
            try:
                reason = None if self.insist else self._why_exact(path, self._find(path))
            except DecodeError:
                reason = "unreadable"
            if reason is not None:
                reasons[reason] += 1
        share = f"{self.reader} for {len(paths) - reasons.total()} of {len(paths)} sampled videos"
        others = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        return f"{share}; an exact reader for the others: {others}" if others else share

    def _why_exact(self, path: str, entry: Entry | None) -> str | None:
        if entry is not None and entry.index is None:
            return "no packet index fits it" if entry.readable else "unreadable"
        return why_exact(self.reader, look(path))

    def _find(self, path: str) -> Entry | None:
        if self.index is None:
            return None
        if self._file is None:
            self._file = IndexFile(self.index)
        return self._file.find(path)

    def __getstate__(self) -> dict[str, Any]:
        # A database connection belongs to the process that opened it.
        return {**self.__dict__, "_file": None}


def _exact(path: str, entry: Entry | None) -> VideoReader:
    if entry is not None and entry.index is not None:
        return IndexedReader(path, entry.index)
    return READERS["pyav"](path)
