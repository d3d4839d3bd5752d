"""Video files as containers: opened under rules, their streams chosen, their errors named.

Files are opened under an allow-list of formats and protocols, so that none can make the decoder
open another file or a network address.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from videogn.data.tar_members import check_member
from videogn.errors import DecodeError
from videogn.files import locate

MAX_PIXELS = 1 << 25
"""Largest frame that is decoded: a crafted header may ask for gigabytes."""
MAX_SIDE = 16384
OPEN_OPTIONS = {
    # Neither list protects without the other: playlists are a format, http is a protocol.
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg",
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}
OPEN_SECONDS = READ_SECONDS = 10.0
# Titles and other tags may be in any encoding. PyAV 19 reads every one and takes no such argument;
# before, one that is not UTF-8 makes opening fail without it.
TAG_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

BAD_FILE_ERRORS = (
    *(av.error.FFmpegError, OSError, LookupError),
    *(ValueError, ArithmeticError, RuntimeError),
)
"""What PyAV raises over damaged files; a TypeError, say, is a fault of this package."""


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The container, opened under the rules of this module.

    Raises:
        DecodeError: there is no regular file; what PyAV raises over others passes through.
    """
    check_regular_file(path)
    address, options = _address(path)
    with av.open(
        address,
        options=options,
        timeout=(OPEN_SECONDS, READ_SECONDS),
        **TAG_OPTIONS,
    ) as container:
        yield container


def _address(path: str) -> tuple[str, dict[str, str]]:
    """What FFmpeg opens, and its options; the bytes of a tar shard's member are a file to it."""
    part = locate(path)
    # An absolute path cannot be taken for a "scheme:", nor anything in it for an option.
    file = str(Path(part.file).absolute())
    if part.size is None:
        return file, OPEN_OPTIONS
    address = f"subfile,,start,{part.start},end,{part.start + part.size},,:{file}"
    return address, OPEN_OPTIONS | {"protocol_whitelist": "subfile,file"}


def check_regular_file(path: str) -> None:
    """Refuse what is no file.

    Raises:
        DecodeError: it is missing, a folder, a pipe or a device, or no path at all.
    """
    # Before anything opens it: a named pipe would block, whatever the timeout.
    if "\0" in path:
        raise DecodeError(path.replace("\0", "\\0"), "the path holds a NUL character")
    try:
        mode = Path(locate(path).file).stat().st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise DecodeError(path, "no such file", "missing") from error
        raise DecodeError(path, str(error.strerror)) from error
    if not stat.S_ISREG(mode):
        raise DecodeError(path, "a folder" if stat.S_ISDIR(mode) else "not a regular file")
    check_member(path)


def best_stream(path: str, container: Any) -> Any:
    """The video stream that ffmpeg calls best, as :func:`chosen_stream` gives it."""
    return chosen_stream(path, container, None)


def chosen_stream(path: str, container: Any, number: int | None) -> Any:
    """A video stream, ready to decode in one thread.

    Args:
        number: among the video streams, from 0 on (ffmpeg's ``v:0``); None for the one that
            ffmpeg calls best.

    Raises:
        DecodeError: there is none, or its pictures are too large.
    """
    videos = container.streams.video
    if number is not None and number >= len(videos):
        reason = f"no video stream {number}: it has {len(videos)}, counted from 0"
        raise DecodeError(path, reason, "no_video_stream")
    stream = container.streams.best("video") if number is None else videos[number]
    # The cover picture of a song counts as a stream of one frame.
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise DecodeError(path, "no video stream", "no_video_stream")
    context = stream.codec_context
    if context is None:
        raise DecodeError(path, "no decoder knows its video stream")
    width, height = context.width, context.height
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(path, f"frames of {width}x{height} pixels are too large", "huge")
    # The option given on opening bounds probing only, this one decoding.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    # Frame threads swallow errors at the end of cut files; loader workers give the parallelism.
    context.thread_type = "NONE"
    return stream


def nominal_rate(stream: Any) -> Fraction | None:
    """Frames per second that the headers claim; None where they do not."""
    return exact(stream.average_rate) or exact(stream.guessed_rate)


def exact(number: Any) -> Fraction | None:
    """A time base or rate as PyAV gives it; None where it is not set."""
    # Fractions or None before PyAV 19. It has a type of its own, which rounds to 32 bits and is
    # false, never None, where it is not set.
    return Fraction(number.numerator, number.denominator) if number else None


@contextmanager
def errors_named(path: str, where: Callable[[], str]) -> Iterator[None]:
    """Turn whatever a bad file makes PyAV raise into one error with the path."""
    try:
        yield
    except DecodeError:
        raise
    except MemoryError as error:
        reason = f"needs more memory than a worker may use ({where()})"
        raise DecodeError(path, reason, "huge") from error
    except BAD_FILE_ERRORS as error:
        raise DecodeError(path, f"decode error {where()}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The error's own words, without the path that FFmpeg appends to them."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
