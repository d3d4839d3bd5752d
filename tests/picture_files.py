"""Image files in every form that tests need, of pixels that they know."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from videogn.data.images import SCAN


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colours, (H, W, 3) uint8, another with each seed."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.random.default_rng(seed).uniform(2, 9, (3, 3))
    colours = [np.sin(a * rows + b * columns + c) for a, b, c in waves]
    return (127.5 + 120 * np.stack(colours, -1)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    """Pixels in one of Pillow's formats."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, depth: int, colour: int, raw: bytes, *extra: bytes) -> bytes:
    """A PNG by its definition alone."""
    head = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    chunks = [_chunk(b"IHDR", head), *extra, _chunk(b"IDAT", zlib.compress(raw))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def with_jpeg_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">2H", height, width) + content[place + 4 :]


def webp_canvas(width: int, height: int) -> bytes:
    """The header of an extended WebP file."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sizes
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> the content of a file that is no sound image, and the code of its fault."""
    jpeg = encoded(picture(), "JPEG")
    steps = encoded(picture(), "JPEG", progressive=True)
    png, webp = encoded(picture(), "PNG"), encoded(picture(), "WEBP")
    lossless = encoded(picture(), "WEBP", lossless=True)
    last = steps.rindex(SCAN)
    return {
        "empty.jpg": (b"", "zero_frames"),
        "text.jpg": (b"not an image at all\n" * 50, "unreadable"),
        "video.jpg": (b"\0\0\0\x20ftypisom" + bytes(100), "unreadable"),
        "gif.png": (encoded(picture(), "GIF"), "unreadable"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "no end mark.jpg": (jpeg[:-2], "truncated"),
        "half progressive.jpg": (steps[: len(steps) // 2], "truncated"),
        "head.jpg": (jpeg[:20], "unreadable"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "head.png": (png[:20], "truncated"),
        "rotten.png": (png[:60] + b"rot" + png[63:], "unreadable"),
        "half.webp": (webp[: len(webp) // 2], "unreadable"),
        "head.webp": (webp[:16], "unreadable"),
        "half lossless.webp": (lossless[: len(lossless) // 2], "unreadable"),
        "bomb.png": (png_of(60000, 60000, 8, 2, bytes(10**6)), "huge"),
        "bomb of one row.png": (png_of(2**24, 1, 8, 0, bytes(10**6)), "huge"),
        "bomb.jpg": (with_jpeg_size(jpeg, 65500, 65500), "huge"),
        "bomb.webp": (webp_canvas(16384, 16384), "huge"),
        "bomb of passes.jpg": (steps[:-2] + steps[last:-2] * 100 + steps[-2:], "huge"),
    }


def image_tree(
    folder: Path, classes: int, per_class: int, size: Callable[[int], tuple[int, int]]
) -> Path:
    """``folder/nNNNN/NNNN_I.JPEG``, each class of another colour."""
    for label in range(classes):
        for number in range(per_class):
            pixels = picture(*size(number), seed=100 * label + number) // 3
            pixels[..., label % 3] += 150
            path = folder / f"n{label:04d}" / f"n{label:04d}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels, "JPEG", quality=95))
    return folder
