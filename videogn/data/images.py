"""Image files: a still image is a video of one frame.

Shapes: H x W pixels, 3 colours (RGB). A file is what its first bytes say, whatever its name: what
is called ``.JPEG`` in ImageNet holds a PNG once and CMYK colours 22 times.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from videogn.data.decode import FrameIndices, checked_indices, gather
from videogn.data.list_checks import IMAGE_SUFFIXES, suffix_of
from videogn.data.rgb import Box
from videogn.data.video_files import MAX_PIXELS, MAX_SIDE, check_regular_file
from videogn.errors import DecodeError
from videogn.files import locate, state_of

MAX_BYTES = 2**28
"""Largest file that is read: the largest picture in 16 bits with transparency takes as much."""
MAX_SCANS = 100
"""Passes over a progressive JPEG; encoders make about ten. A pass over millions of pixels can be
asked for in sixty bytes."""
SCAN = b"\xff\xda"
"""Begins a pass. In the data of one, only zeros and restarts follow ``ff``."""
BAD_IMAGE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error),
)
"""What Pillow raises over damaged files; a TypeError, say, is a fault of this package."""

FORMATS = {
    b"\xff\xd8\xff": ("jpeg", JpegImageFile),
    b"\x89PNG\r\n\x1a\n": ("png", PngImageFile),
    b"RIFF": ("webp", WebPImageFile),
}
"""First bytes -> what reads the file; no other part of Pillow sees one."""


class ImageHeader(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: ``jpeg``, ``png`` or ``webp``.
        height, width: pixels.
    """

    format: str
    height: int
    width: int


def is_image(path: str) -> bool:
    """Whether a path names an image file, by its suffix."""
    return suffix_of(path) in IMAGE_SUFFIXES


class ImageReader:
    """An image file as a video of one frame, shown at 0 seconds; fulfils ``VideoReader``.

    The pixels are those of torchvision's ``ImageFolder``: Pillow's, without transparency and as
    they are stored. The EXIF tag that would turn them is not followed, as it is not where networks
    are trained on ImageNet. 16 bits a colour become their upper 8; of an animation the first
    picture is read.

    Raises:
        DecodeError: the file is missing, no JPEG, PNG or WebP, too large, damaged or cut off. Not
            noticed: overwritten JPEG data that parses as another picture, and a JPEG cut short
            with an end mark behind the cut.
    """

    num_frames = 1

    def __init__(self, path: str) -> None:
        self._image = decode_image(path)
        self.height, self.width, _ = self._image.shape

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, as :meth:`VideoReader.frames` says."""
        return gather(self, indices)

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of rising indices one by one, as :meth:`VideoReader.images` says."""
        box = box or Box(0, 0, self.height, self.width)
        part = self._image[box.rows, box.columns]
        return (part for _ in checked_indices(self.num_frames, indices))

    def times(self) -> np.ndarray:
        """When the frame is shown: (1,) float64, 0 seconds."""
        return np.zeros(1)


def read_header(path: str) -> ImageHeader:
    """What an image file says of itself; nothing is decoded.

    Raises:
        DecodeError: as :class:`ImageReader` does, but for damage behind the header.
    """
    content = _content(path)
    with _errors_named(path):
        return _opened(path, content)[0]


def decode_image(path: str) -> np.ndarray:
    """The pixels of an image file, (H, W, 3) uint8.

    Raises:
        DecodeError: as :class:`ImageReader` does.
    """
    content = _content(path)
    with _errors_named(path):
        header, image = _opened(path, content)
        if header.format == "jpeg" and content.count(SCAN) > MAX_SCANS:
            raise DecodeError(path, f"a JPEG of more than {MAX_SCANS} passes", "huge")
        return _rgb(image)


def _content(path: str) -> bytes:
    """The bytes of a file, or of a member of a tar file."""
    check_regular_file(path)
    part, (size, _) = locate(path), state_of(path)
    if size > MAX_BYTES:
        raise DecodeError(path, f"an image file of {size} bytes is too large", "huge")
    if size == 0:
        raise DecodeError(path, "an empty file", "zero_frames")
    try:
        with Path(part.file).open("rb") as file:
            file.seek(part.start)
            return file.read(size)
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error


def _opened(path: str, content: bytes) -> tuple[ImageHeader, Image.Image]:
    """The header of an image, and the image with its pixels not decoded yet."""
    known = [found for magic, found in FORMATS.items() if content.startswith(magic)]
    if not known:
        raise DecodeError(path, f"no JPEG, PNG or WebP image: begins with {content[:8]!r}")
    [(name, opener)] = known
    if name == "webp":
        # Its reader takes memory for the picture at once.
        _check_size(path, *_webp_size(content))
    image = opener(BytesIO(content))
    _check_size(path, *image.size)
    return ImageHeader(name, image.height, image.width), image


def _check_size(path: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DecodeError(path, f"an image of {width}x{height} pixels is too large", "huge")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height by the first chunk of a WebP file (RFC 9649).

    Raises:
        ValueError: there is none of a known kind.
    """
    kind, chunk = content[8:16], content[20:30]
    if len(chunk) == 10:
        if kind == b"WEBPVP8X":
            return 1 + int.from_bytes(chunk[4:7], "little"), 1 + int.from_bytes(chunk[7:], "little")
        if kind == b"WEBPVP8L":
            bits = int.from_bytes(chunk[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if kind == b"WEBPVP8 ":
            width, height = struct.unpack("<2H", chunk[6:])
            return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no WebP picture behind its header")


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels as (H, W, 3) uint8, without transparency."""
    image.load()
    if image.mode.startswith("I"):
        # Pillow would cut all above 255 off.
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    # A palette with transparent colours would be asked to become RGBA.
    image.info.pop("transparency", None)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Turn whatever a bad file makes Pillow raise into one error with the path, and warn not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(path, "needs more memory than a worker may use", "huge") from error
    except BAD_IMAGE_ERRORS as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        code = "truncated" if "truncated" in words.lower() else "unreadable"
        raise DecodeError(path, f"cannot be decoded: {words}", code) from error
