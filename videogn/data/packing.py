"""Packing the videos of a list into tar shards of the webdataset layout.

The same list, seed and size give the same shards, byte by byte. Inputs are only read; no file that
is there is written over.
"""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from videogn.data.list_checks import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoRecord
from videogn.data.tar_members import MAX_MEMBER
from videogn.errors import RunError
from videogn.files import UNKNOWN, atomic_path, locate, state_of

PACKING = 4
"""Ends the seeds of these orders, so that nothing else is drawn from the same one."""
MAX_STEM = 60
"""Letters of a video's own name that its key keeps."""
MAX_FAULTS = 20
NANOSECONDS = 10**9


class Item(NamedTuple):
    """A video to pack.

    Attributes:
        source: the file to read.
        key: of the sample, unique in all shards.
        suffix: of the video's name.
        label: class index.
        size: of the video, in bytes.
        mtime: when it was last changed, in seconds; a changed video gives another shard.
    """

    source: str
    key: str
    suffix: str
    label: int
    size: int
    mtime: int

    def members(self) -> tuple[tarfile.TarInfo, tarfile.TarInfo]:
        """The headers of its label and of its video."""
        return (
            self._header("cls", len(self.label_bytes())),
            self._header(self.suffix[1:], self.size),
        )

    def label_bytes(self) -> bytes:
        """What stands in its label's member."""
        return str(self.label).encode()

    def _header(self, kind: str, size: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(f"{self.key}.{kind}")
        info.size, info.mtime, info.mode = size, self.mtime, 0o644
        return info


def plan_shards(records: Sequence[VideoRecord], shard_bytes: int, seed: int) -> list[list[Item]]:
    """Which videos each shard holds: the list permuted, then cut by size.

    Lists often stand in the order of their classes, and a shuffle buffer cannot undo that.

    Raises:
        RunError: with every video that cannot be packed.
    """
    order = np.random.default_rng([seed, 0, 0, 0, PACKING]).permutation(len(records))
    digits = max(7, len(str(len(records) - 1)))
    items, faults = [], []
    for place in order.tolist():
        item, fault = _item(records[place], f"{place:0{digits}d}")
        items.append(item)
        faults += [fault] if fault else []
    if faults:
        rest = len(faults) - MAX_FAULTS
        lines = "".join(f"\n  - {fault}" for fault in faults[:MAX_FAULTS])
        raise RunError(
            f"{len(faults)} of {len(records)} videos cannot be packed:{lines}"
            + (f"\n  and {rest} more" if rest > 0 else "")
        )
    return list(_cut(items, shard_bytes))


def _item(record: VideoRecord, number: str) -> tuple[Item, str | None]:
    size, mtime_ns = state_of(record.path)
    suffix = PurePosixPath(record.path).suffix.lower()
    fault = None
    if size == UNKNOWN or not Path(locate(record.path).file).is_file():
        fault = "no such file"
    elif suffix not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        fault = f"its name ends in {suffix!r}, by which no reader of shards knows a video"
    elif not 0 < size <= MAX_MEMBER:
        fault = f"has {size} bytes; a member may have 1 to {MAX_MEMBER}"
    key = _key(record.name, number)
    item = Item(record.path, key, suffix, record.label, size, max(0, mtime_ns) // NANOSECONDS)
    return item, f"{record.path}: {fault}" if fault else None


def _key(name: str, number: str) -> str:
    """``FOLDER/NUMBER-STEM``: the folder often names the class; a key ends at its first dot."""
    path = PurePosixPath(name)
    folder = _plain(path.parent.name)[:MAX_STEM]
    stem = f"{number}-{_plain(path.stem)[:MAX_STEM]}"
    return f"{folder}/{stem}" if folder else stem


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() and char not in "./" else "_" for char in text)


def _cut(items: Sequence[Item], shard_bytes: int) -> Iterator[list[Item]]:
    shard: list[Item] = []
    held = 0
    for item in items:
        size = sum(len(_framed(info)) + _filled(info.size) for info in item.members())
        if shard and _whole(held + size) > shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append(item)
        held += size
    if shard:
        yield shard


def _framed(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _filled(size: int) -> int:
    """Bytes that a content takes: whole blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _whole(framed: int) -> int:
    """Bytes of a shard with its end mark: whole records."""
    return -(-(framed + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def shard_file(name: str, number: int) -> str:
    """File name of a shard."""
    return f"{name}-{number:06d}.tar"


def check_folder(folder: Path, name: str, shards: Sequence[Sequence[Item]]) -> list[int]:
    """Numbers of the shards that are not there yet; leftovers of a killed run are removed.

    Raises:
        RunError: a file of such a name holds something else.
    """
    own = re.compile(rf"{re.escape(name)}-[0-9]{{6,}}\.tar")
    for path in folder.glob(".*.tar"):
        if re.fullmatch(rf"\.{own.pattern}\.[^.]+\.tar", path.name):
            path.unlink(missing_ok=True)
    known = {shard_file(name, number): number for number in range(len(shards))}
    missing = set(known.values())
    for path in sorted(folder.glob("*.tar")):
        if not own.fullmatch(path.name):
            continue
        number = known.get(path.name)
        if number is None or not holds(path, shards[number]):
            raise RunError(
                f"{path}: was not packed from this list with these settings, or a video has "
                "changed; choose another --out or --name, or remove it"
            )
        missing.remove(number)
    return sorted(missing)


def holds(path: Path, items: Sequence[Item]) -> bool:
    """Whether a shard has the members of these items: names, sizes, times and labels."""
    expected = [
        (info.name, info.size, info.mtime, content)
        for item in items
        for info, content in zip(item.members(), (item.label_bytes(), None), strict=True)
    ]
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for place, info in enumerate(tar):
                file = tar.extractfile(info) if place % 2 == 0 and info.size < 32 else None
                found.append((info.name, info.size, info.mtime, file.read() if file else None))
    except (tarfile.TarError, OSError):
        return False
    framed = sum(
        len(_framed(info)) + _filled(info.size) for item in items for info in item.members()
    )
    return found == expected and path.stat().st_size == _whole(framed)


def write_shard(path: Path, items: Sequence[Item]) -> None:
    """Write a shard whole or not at all.

    Raises:
        RunError: a video has changed or cannot be read, or the shard cannot be written.
    """
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for item in items:
                label, video = item.members()
                tar.addfile(label, io.BytesIO(item.label_bytes()))
                _add_video(tar, video, item)
        if not holds(temporary, items):
            raise RunError(f"{path}: did not come out as it was written; is the disk sound?")


def _add_video(tar: tarfile.TarFile, info: tarfile.TarInfo, item: Item) -> None:
    part = locate(item.source)
    try:
        with Path(part.file).open("rb") as file:
            file.seek(part.start)
            tar.addfile(info, file)
        size, mtime_ns = state_of(item.source)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{item.source}: cannot be packed: {reason}") from error
    if (size, max(0, mtime_ns) // NANOSECONDS) != (item.size, item.mtime):
        raise RunError(f"{item.source}: changed while it was packed; start again")
