"""A small labelled video data set, rendered and encoded: the class is a motion.

A textured square drifts over a textured ground in one of four directions and comes back in on
the other side. Place, textures and colours are drawn anew for every video and independently of
the direction, so a single frame says nothing about the class. The kind of texture is a second
label, for pre-training on still frames.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from videogn.files import atomic_path, write_text

MOTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Class name -> direction (rows, columns), in label order."""

SIZE = 64
PATCH = 24
FRAMES = 24
SPEED = 2
FPS = 25
BLOTCH = 4
GREY = 115


def stripes_across(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Horizontal stripes of random shades, (H, W) in [0, 1].

    Nothing here repeats at a fixed distance: a periodic texture that moves by half its period
    moves both ways at once.
    """
    return np.broadcast_to(_shades(rng, shape[0])[:, None], shape)


def stripes_down(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Vertical stripes of random shades, (H, W) in [0, 1]."""
    return np.broadcast_to(_shades(rng, shape[1])[None, :], shape)


def checks(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A grid of light and dark rectangles of random sides, (H, W) in {0, 1}."""
    across, down = stripes_across(rng, shape) > 0.5, stripes_down(rng, shape) > 0.5
    return (across ^ down).astype(float)


def blotches(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Random blotches of four pixels, (H, W) in [0, 1]."""
    coarse = rng.uniform(size=(shape[0] // BLOTCH + 1, shape[1] // BLOTCH + 1))
    return np.kron(coarse, np.ones((BLOTCH, BLOTCH)))[: shape[0], : shape[1]]


def rings(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Rings of random shades round the middle, (H, W) in [0, 1]."""
    rows, columns = (np.arange(size) - (size - 1) / 2 for size in shape)
    radius = np.hypot(rows[:, None], columns[None, :]).astype(int)
    return np.asarray(_shades(rng, int(radius.max()) + 1)[radius])


TEXTURES: Mapping[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "stripes across": stripes_across,
    "stripes down": stripes_down,
    "checks": checks,
    "blotches": blotches,
    "rings": rings,
}
"""Appearance label -> painter, in label order."""


def _shades(rng: np.random.Generator, length: int) -> np.ndarray:
    """Alternating light and dark runs of two to five pixels, (length,) in [0, 1]."""
    runs = rng.integers(2, 6, size=length)
    shades = rng.uniform(0, 0.4, size=length) + 0.6 * (np.arange(length) % 2)
    return np.repeat(shades, runs)[:length]


@dataclass(frozen=True)
class RenderedLists:
    """List files of a rendered data set: same videos, two labellings."""

    motion: dict[str, Path]
    appearance: dict[str, Path]


def render_motion_dataset(folder: Path, splits: Mapping[str, int], seed: int) -> RenderedLists:
    """Render and encode ``splits[name]`` videos per split, and write their lists.

    Classes are balanced. A folder that is complete is left as it is.
    """
    lists = RenderedLists(
        motion={split: folder / f"motion_{split}.txt" for split in splits},
        appearance={split: folder / f"appearance_{split}.txt" for split in splits},
    )
    for number, (split, count) in enumerate(splits.items()):
        if _is_complete(lists.motion[split], count):
            continue
        lines: dict[Path, list[str]] = {lists.motion[split]: [], lists.appearance[split]: []}
        for index in range(count):
            motion = index % len(MOTIONS)
            appearance = index // len(MOTIONS) % len(TEXTURES)
            name = f"{split}/{index:05d}.mp4"
            frames = render_video(np.random.default_rng([seed, number, index]), motion, appearance)
            encode_video(folder / name, frames)
            lines[lists.motion[split]].append(f"{name} {motion}")
            lines[lists.appearance[split]].append(f"{name} {appearance}")
        # The motion list comes last: its presence says that the split is complete.
        for path in (lists.appearance[split], lists.motion[split]):
            write_text(path, "\n".join(lines[path]) + "\n")
    return lists


def _is_complete(path: Path, count: int) -> bool:
    return path.exists() and len(path.read_text(encoding="utf-8").splitlines()) == count


def render_video(rng: np.random.Generator, motion: int, appearance: int) -> np.ndarray:
    """One video of a drifting square.

    Returns:
        (FRAMES, SIZE, SIZE, 3) uint8.
    """
    ground = _colour(rng, blotches(rng, (SIZE, SIZE)), contrast=40)
    square = _colour(rng, list(TEXTURES.values())[appearance](rng, (PATCH, PATCH)), contrast=220)
    origin = rng.integers(SIZE, size=2)
    step = SPEED * np.array(list(MOTIONS.values())[motion])
    frames = np.repeat(ground[None], FRAMES, axis=0)
    for time, frame in enumerate(frames):
        rows, columns = ((origin + time * step)[:, None] + np.arange(PATCH)) % SIZE
        frame[rows[:, None], columns[None, :]] = square
    return frames


def _colour(rng: np.random.Generator, texture: np.ndarray, contrast: float) -> np.ndarray:
    """Paint a texture in [0, 1] round a grey with a random tint, (H, W, 3) uint8.

    Videos differ little in brightness: BN, unlike GN, does not take such differences away, and
    they would drown the motion.
    """
    tint = rng.uniform(0.6, 1, size=3)
    painted = GREY + rng.uniform(-10, 10, size=3) + (texture[..., None] - 0.5) * tint * contrast
    return np.asarray(painted.clip(0, 255)).astype(np.uint8)


def encode_video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write ``frames: (T, H, W, 3) uint8`` as H.264 in mp4; height and width even."""
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # With trees of macroblocks x264 gave the same frames other bytes from run to run, on a CPU
        # with AVX-512: what was left in memory decided some of them.
        stream.options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream.codec_context.thread_count = 1
        for packet in _packets(stream, frames):
            container.mux(packet)


def _packets(stream: av.VideoStream, frames: np.ndarray) -> Iterator[Any]:
    for frame in frames:
        yield from stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
    yield from stream.encode(None)
