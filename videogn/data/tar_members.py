"""What lies where in a tar file, by its headers: contents are passed over."""

import os
import posixpath
import tarfile
from pathlib import Path
from typing import NamedTuple

from videogn.errors import DecodeError
from videogn.files import UNKNOWN, locate, state_of

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER = 8 * 2**30 - 1
"""Bytes that the size in a plain header can tell."""
BAD_TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RuntimeError)
"""What Python's reader raises over damaged files."""
MAX_END = 2**20
"""Bytes of zeros that may follow the last member: writers fill up whole records."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
        name: relative, without ``.``, ``..`` and empty parts.
        start: first byte of its content.
        size: of its content, in bytes.
    """

    name: str
    start: int
    size: int


class Fault(NamedTuple):
    """What is wrong with a member of a tar file; with the file itself where it names none."""

    member: str
    text: str


def members_of(path: str) -> tuple[list[Member], list[Fault]]:
    """The regular files of a tar file in their order, hidden ones left out, and what is wrong.

    Raises:
        OSError: the file cannot be read.
    """
    members: list[Member] = []
    faults: list[Fault] = []
    try:
        # "r:" takes no compressed file and seeks from header to header.
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if tar.offset <= info.offset:  # a size below 0: the reader would go in circles
                    return members, [*faults, Fault("", _damaged(info.offset))]
                fault = _member_fault(info)
                if fault:
                    faults.append(Fault(info.name, fault))
                elif info.isreg() and not posixpath.basename(info.name).startswith("."):
                    name = posixpath.normpath(info.name)
                    members.append(Member(name, info.offset_data, info.size))
            end = tar.offset
    except BAD_TAR_ERRORS as error:
        return members, [*faults, Fault("", _no_tar(path, str(error)))]
    end_fault = _end_fault(path, end)
    return members, [*faults, Fault("", end_fault)] if end_fault else faults


def _member_fault(info: tarfile.TarInfo) -> str | None:
    if info.isdir():
        return None
    if info.issparse():
        return "is sparse, its bytes do not lie together; pack it without --sparse"
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}; pack the file itself (tar --dereference)"
    if not info.isreg():
        return "is no regular file"
    if not is_plain(info.name):
        return "leads out of the tar file; pack it under a plain relative name"
    if info.size > MAX_MEMBER:
        return f"has {info.size} bytes; a member may have {MAX_MEMBER}"
    return None


def is_plain(name: str) -> bool:
    """Whether a member's name is relative and leads nowhere else."""
    return not name.startswith("/") and ".." not in name.split("/")


def _no_tar(path: str, reason: str) -> str:
    with Path(path).open("rb") as file:
        head = file.read(8)
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({name}), and members are read in place; unpack it to a .tar"
    return f"is no tar file or is cut off ({reason}); pack it again"


def _end_fault(path: str, end: int) -> str | None:
    """What is wrong behind the last member that was found, at byte ``end``.

    Python's reader takes damage there for the end without a word.
    """
    with Path(path).open("rb") as file:
        file.seek(end)
        rest = file.read(MAX_END + 1)
    if len(rest) < BLOCK:
        return f"is cut off: ends at byte {end + len(rest)} without the end mark; pack it again"
    if rest.strip(b"\0") or len(rest) > MAX_END:
        return _damaged(end)
    return None


def _damaged(place: int) -> str:
    return f"is damaged at byte {place}, or something was appended there; pack it again"


def check_member(path: str) -> None:
    """Refuse a path of a tar file's member whose bytes lie elsewhere by now.

    Paths of other files pass.

    Raises:
        DecodeError: the tar file has no such member at that place.
    """
    part = locate(path)
    if part.size is None:
        return
    with Path(part.file).open("rb", buffering=0) as file:
        head = os.pread(file.fileno(), BLOCK, max(0, part.start - BLOCK))
    _, mtime_ns = state_of(path)
    try:
        found: int | None = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape").size
    except BAD_TAR_ERRORS:
        found = None
    if found != part.size:
        reason = "no such member at that place: the shard has changed; make the list again"
        raise DecodeError(path, reason, "missing")
    if mtime_ns == UNKNOWN:
        raise DecodeError(path, "the shard is cut off before the member's end", "truncated")
