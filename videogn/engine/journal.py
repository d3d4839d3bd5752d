"""What a test has scored so far, so that it can be interrupted and go on.

A folder of files, one per process that ever wrote, of one record per video::

    magic  place  size  checksum | kind  reason  thumbnail  arrays

A record is whole or it is not there: what a killed process left half written ends its file. Files
are only added to, so a record that was read once stays. Several hosts need a common file system.
"""

import json
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videogn.engine.evaluator import VideoScore
from videogn.errors import RunError
from videogn.files import free_space, printable, write_text

HEAD = struct.Struct("<4sQQI")
"""Magic, place in the list, bytes of the content, CRC-32 of place and content."""
MAGIC = b"VGN1"
LENGTHS = struct.Struct("<BII")
"""Arrays, bytes of the reason (0 where there is none), bytes of the thumbnail."""
SHAPE = struct.Struct("<B")
IDENTITY_FILE = "test.json"
CHOSEN = {"precision": "test.precision", "recipe": "test.recipe"}
"""What ``auto`` chooses by the machine, and the setting that insists."""


class Journal:
    """Scores in a folder.

    Args:
        identity: what decides the scores. Those of another test are refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._identity = json.loads(json.dumps(dict(identity)))

    def check(self) -> None:
        """Refuse a folder that holds the beginning of another test.

        Raises:
            RunError: naming the folder and what differs.
        """
        path = self.folder / IDENTITY_FILE
        if not path.exists():
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key, value in self._identity.items() if there.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(
                f"{path}: cannot be read: {error}; remove {self.folder} to begin anew"
            ) from error
        if changed:
            lines = "".join(
                f"\n  - {key}: {printable(there.get(key))} there, {self._identity[key]} now"
                for key in changed
            )
            remedy = "finish it, choose another --out, or remove the folder"
            if set(changed) <= CHOSEN.keys():
                # Nothing need be lost: another machine chooses otherwise.
                settings = " ".join(f"{CHOSEN[key]}={there.get(key)}" for key in changed)
                remedy = f"on another kind of machine set {settings} to go on, or {remedy}"
            raise RunError(f"{self.folder}: holds the beginning of another test; {remedy}:{lines}")

    def begin(self) -> None:
        """Make the folder, where there is none; nobody else may be at work in it.

        Raises:
            RunError: as :meth:`check`, for another test may have begun since; or it cannot be
                written.
        """
        self.check()
        if (self.folder / IDENTITY_FILE).exists():
            return
        # Left by a removal that was cut short: nobody knows of which test they are.
        for path in self.folder.glob("*.scores"):
            path.unlink(missing_ok=True)
        write_text(self.folder / IDENTITY_FILE, json.dumps(self._identity, indent=2) + "\n")

    def read(self) -> dict[int, VideoScore]:
        """All that is scored, by place."""
        found: dict[int, VideoScore] = {}
        for score in self._scores():
            found.setdefault(score.place, score)
        return found

    def places(self) -> frozenset[int]:
        """Which videos are scored; their scores, gigabytes at the end, are not kept."""
        return frozenset(score.place for score in self._scores())

    def _scores(self) -> Iterator[VideoScore]:
        for path in sorted(self.folder.glob("*.scores")):
            yield from _records(path)

    def writer(self, rank: int) -> "Writer":
        """A file of its own for a process."""
        return Writer(self.folder, rank)

    def remove(self) -> None:
        """Remove the folder: the scores are in the results."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """Adds records to a file of its own; each is with the system when :meth:`add` returns.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        # Others who may use the folder may go on with the test.
        self._path = folder / f"rank{rank}-{secrets.token_hex(8)}.scores"
        try:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def add(self, score: VideoScore) -> None:
        """Write a record down."""
        content = _packed(score)
        checksum = _checksum(score.place, content)
        record = memoryview(HEAD.pack(MAGIC, score.place, len(content), checksum) + content)
        try:
            while record:
                record = record[os.write(self._handle, record) :]
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Let the file go."""
        os.close(self._handle)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}{free_space(path)}; what is scored "
        "so far is kept: the same command goes on"
    )


def _checksum(place: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(place.to_bytes(8, "little")))


def _packed(score: VideoScore) -> bytes:
    reason = (score.reason or "").encode(errors="surrogatepass")
    arrays = score.arrays or ()
    parts = [LENGTHS.pack(len(arrays), len(reason), len(score.thumbnail)), reason, score.thumbnail]
    for array in arrays:
        parts.append(SHAPE.pack(array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape))
        parts.append(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return b"".join(parts)


def _unpacked(place: int, content: bytes) -> VideoScore:
    count, reason_size, thumbnail_size = LENGTHS.unpack_from(content)
    start = LENGTHS.size + reason_size
    reason = content[LENGTHS.size : start].decode(errors="surrogatepass")
    thumbnail = content[start : start + thumbnail_size]
    start += thumbnail_size
    arrays = []
    for _ in range(count):
        (ndim,) = SHAPE.unpack_from(content, start)
        shape = struct.unpack_from(f"<{ndim}I", content, start + SHAPE.size)
        start += SHAPE.size + 4 * ndim
        array = np.frombuffer(content, "<f4", int(np.prod(shape)), start).reshape(shape)
        arrays.append(array)
        start += array.nbytes
    return VideoScore(place, tuple(arrays) or None, thumbnail, reason or None)


def _records(path: Path) -> Iterator[VideoScore]:
    """The sound records of a file, up to the first that is not."""
    with path.open("rb") as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            magic, place, size, checksum = HEAD.unpack(head)
            # A damaged size would ask for more memory than there is.
            if magic != MAGIC or size > path.stat().st_size:
                return
            content = file.read(size)
            if len(content) < size or _checksum(place, content) != checksum:
                return
            yield _unpacked(place, content)
