"""Files written whole or not at all, and their hashes."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            f"{target}: cannot be written: {error.strerror or error}{_free(target)}"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    """SHA-256 of a file's bytes as hexadecimal digits."""
    with Path(path).open("rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
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


def _free(path: Path) -> str:
    folder = next((p for p in path.parents if p.is_dir()), None)
    if folder is None:
        return ""
    stats = os.statvfs(folder)
    return f" ({stats.f_bavail * stats.f_frsize / 2**20:.0f} MiB free in {folder})"


UNKNOWN = -1
"""Size and time of a file that is not there; nothing is remembered of it."""


def state_of(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns; both :data:`UNKNOWN` for what is not there."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return UNKNOWN, UNKNOWN
    return status.st_size, status.st_mtime_ns
