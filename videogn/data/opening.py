"""Which reader opens a video: by its packet index where there is one, else by seeking or by the
chosen one.

A file of a form that the chosen reader is not proven to read right goes to an exact one, and an
image to the reader of images, whatever is chosen.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.decord_reader import DecordReader, check_decord
from videogn.data.images import ImageReader, is_image
from videogn.data.index_file import Entry, IndexFile
from videogn.data.packets import IndexedReader
from videogn.data.routing import PROVEN, look, why_exact
from videogn.data.seeking import open_seeking
from videogn.data.torchcodec_reader import TorchcodecReader, check_torchcodec
from videogn.errors import DecodeError, UserError
from videogn.files import locate

READERS: dict[str, Callable[..., VideoReader]] = {
    "pyav": PyAVReader,
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "torchcodec_cuda": partial(TorchcodecReader, device="cuda"),
}
"""Value of ``data.reader`` -> what opens a file, and takes the number of a stream behind it."""

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
        seek: whether the exact reader may leave out the stretches of a video without an entry
            there that nobody asks for, and so overlook their damage.
        stream: number among each file's video streams; None for the one ffmpeg calls best.
        insist: whether ``reader`` reads every file, also those it is known to get wrong.
    """

    def __init__(
        self,
        reader: str,
        index: Path | None = None,
        *,
        seek: bool = False,
        stream: int | None = None,
        insist: bool = False,
    ) -> None:
        self.reader = reader
        self.index = index
        self.seek = seek
        self.stream = stream
        self.insist = insist
        self._file: IndexFile | None = None

    def __call__(self, path: str) -> VideoReader:
        """The video at ``path``.

        Raises:
            DecodeError: it cannot be read.
            UserError: the index file is damaged, or the reader is not installed, or cannot read
                the chosen stream, or a tar shard although it must.
        """
        if is_image(path):
            return ImageReader(path)
        if self.reader not in PROVEN:
            return self._exact(path, self._find(path))
        if self.insist:
            if _is_member(path):
                raise UserError(
                    f"data.reader={self.reader}: cannot read tar shards; set data.reader=pyav or "
                    "data.insist_on_reader=false"
                )
            return self._open(self.reader, path)
        entry = self._find(path)
        if self._why_exact(path, entry) is None:
            # What it refuses may be sound, and the exact reader names damage better.
            with contextlib.suppress(DecodeError):
                video = self._open(self.reader, path)
                if entry is None or entry.index is None:
                    return video
                if video.num_frames == entry.index.num_frames:
                    return video
        return self._exact(path, entry)

    def share(self, paths: Sequence[str]) -> str:
        """How many of some files ``reader`` would read, and why it would not read the others."""
        reasons: Counter[str] = Counter()
        for path in paths:
            try:
                reason = self._why_other(path)
            except DecodeError:
                reason = "unreadable"
            if reason is not None:
                reasons[reason] += 1
        share = f"{self.reader} for {len(paths) - reasons.total()} of {len(paths)} sampled videos"
        others = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        return f"{share}; an exact reader for the others: {others}" if others else share

    def _why_other(self, path: str) -> str | None:
        if is_image(path):
            return "an image"
        return None if self.insist else self._why_exact(path, self._find(path))

    def _why_exact(self, path: str, entry: Entry | None) -> str | None:
        if _is_member(path):
            return "in a tar shard"
        if self.stream is not None and not PROVEN[self.reader].picks_stream:
            return "data.stream"
        if entry is not None and entry.index is None:
            return "no packet index fits it" if entry.readable else "unreadable"
        return why_exact(self.reader, look(path, self.stream))

    def _exact(self, path: str, entry: Entry | None) -> VideoReader:
        if entry is not None and entry.index is not None:
            return IndexedReader(path, entry.index)
        if entry is None and self.seek:
            return open_seeking(path, self.stream)
        return self._open("pyav", path)

    def _open(self, reader: str, path: str) -> VideoReader:
        chosen = () if self.stream is None else (self.stream,)
        return READERS[reader](path, *chosen)

    def _find(self, path: str) -> Entry | None:
        if self.index is None:
            return None
        if self._file is None:
            self._file = IndexFile(self.index)
        return self._file.find(path, self.stream)

    def __getstate__(self) -> dict[str, Any]:
        # A database connection belongs to the process that opened it.
        return {**vars(self), "_file": None}


def _is_member(path: str) -> bool:
    return locate(path).size is not None
