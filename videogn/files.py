"""Files written whole or not at all, and their hashes."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from videogn.errors import RunError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place once the block ends without error.

    The content is on the disk before the name is, so a reader never meets half a file and a
    failed write leaves the earlier file as it was.

    Raises:
        RunError: the folder or file cannot be written; the message has the free space.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush_to_disk(target.parent)
    except OSError as error:
        raise RunError(
            f"{target}: cannot be written: {error.strerror or error}{free_space(target)}"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def printable(text: object) -> str:
    """Text from a file as it may be printed: a terminal would obey its control characters.

    What does not print is written as Python writes it: a line end as ``\\n``.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def check_writable(path: str | Path) -> None:
    """Find out before hours of work that their result could not be written.

    Raises:
        RunError: ``path`` is a folder, or lies in no folder that may be written.
    """
    path = Path(path)
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"{path}: cannot be written: {parent} is no folder that may be written")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, or of a member of a tar file, as hexadecimal digits."""
    part = locate(path)
    with Path(part.file).open("rb") as file:
        if part.size is None and hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        file.seek(part.start)
        left = state_of(path)[0]
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # There is no way to read it without setting it; single-threaded at the places that write.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def free_space(path: Path) -> str:
    """How much space is free where ``path`` lies, for messages."""
    folder = next((p for p in path.parents if p.is_dir()), None)
    if folder is None:
        return ""
    stats = os.statvfs(folder)
    return f" ({stats.f_bavail * stats.f_frsize / 2**20:.0f} MiB free in {folder})"


UNKNOWN = -1
"""Size and time of a file that is not there; nothing is remembered of it."""


def state_of(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns; both :data:`UNKNOWN` for what is not there.

    A member of a tar file has its own size and the time of the tar file.
    """
    part = locate(path)
    try:
        status = Path(part.file).stat()
    except (OSError, ValueError):
        return UNKNOWN, UNKNOWN
    if part.size is None:
        return status.st_size, status.st_mtime_ns
    if part.start + part.size > status.st_size:
        return UNKNOWN, UNKNOWN
    return part.size, status.st_mtime_ns


class Part(NamedTuple):
    """The bytes that a path names: those of a file, or of a member of a tar file.

    Attributes:
        file: to open.
        start: first byte.
        size: in bytes; None for the whole file.
    """

    file: str
    start: int
    size: int | None


# The shortest name of a tar file counts: folders are the user's, names of members are anyone's.
MEMBER = re.compile(r"(.+?\.tar)/@([0-9]{1,18})\+([0-9]{1,18})/.+", re.DOTALL)


def locate(path: str | Path) -> Part:
    """Where the bytes of a path lie; one that :func:`member_path` gave lies in its tar file."""
    text = os.fspath(path)
    match = MEMBER.fullmatch(text) if ".tar/@" in text else None
    return Part(match[1], int(match[2]), int(match[3])) if match else Part(text, 0, None)


def member_path(tar: str, start: int, size: int, name: str) -> str:
    """A path of a member of a tar file, ``TAR/@START+SIZE/NAME``, which no other file can have.

    It tells where the bytes are, so nobody who opens it has to look for them; the name is for
    people.

    Args:
        tar: whose name ends in ``.tar``.
        start: first byte of the member's content.
        size: of the content, in bytes.
        name: relative, without ``..``.
    """
    return f"{tar}/@{start}+{size}/{name}"
