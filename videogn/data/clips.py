"""Makers of one clip of a video: drawn for training, or the one in the middle.

Shapes: T frames, H x W pixels. All randomness comes from the generator that is given.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from videogn.data.decode import VideoReader
from videogn.data.frames import Frames, Wanted, write_frames
from videogn.data.limits import limited_memory
from videogn.data.sampling import num_resampled, random_clip, resampled, uniform_clips
from videogn.data.transforms import (
    center_box,
    draw_area_box,
    draw_augmentation,
    scaled_size,
    source_box,
)
from videogn.errors import DecodeError


class Clips(Protocol):
    """Makes one clip of a video."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a clip needs."""
        ...

    def read(
        self, path: str, rng: np.random.Generator, memory: np.ndarray | None = None
    ) -> tuple[Frames, np.ndarray]:
        """Frames of a clip and which of them it shows, as :meth:`RandomClips.read`."""
        ...


class RandomClips:
    """Draws one augmented clip of a video (non-local paper, section 4.1).

    Args:
        random_area: crops are parts of random area and aspect, scaled bicubically, as for ImageNet
            (:func:`videogn.data.transforms.draw_area_box`), not squares at a random short side.
            ``planar_room`` has to be 0 then.
        planar_room: frames stay as the decoder gives them where they take at most so many times
            the bytes of the finished clip; 0 finishes all.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        frame_stride: int,
        short_side_min: int,
        short_side_max: int,
        crop_size: int,
        flip_probability: float,
        open_video: Callable[[str], VideoReader],
        random_area: bool = False,
        planar_room: float = 0.0,
        fps: float | None = None,
    ) -> None:
        if random_area and planar_room:
            raise ValueError("frames left as they are decoded cannot be scaled bicubically")
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.short_side_min = short_side_min
        self.short_side_max = short_side_max
        self.crop_size = crop_size
        self.flip_probability = flip_probability
        self.open_video = open_video
        self.random_area = random_area
        self.planar_room = planar_room
        self.fps = fps

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a clip needs."""
        finished = self.num_frames * self.crop_size**2 * 3
        return math.ceil(finished * max(1.0, self.planar_room))

    def read(
        self, path: str, rng: np.random.Generator, memory: np.ndarray | None = None
    ) -> tuple[Frames, np.ndarray]:
        """Frames of a clip that ``rng`` decides, and which of them it shows, (T,) int64.

        Args:
            memory: (num_bytes,) uint8 to write it into.

        Raises:
            DecodeError: the video cannot be read.
        """
        memory = np.empty(self.num_bytes, np.uint8) if memory is None else memory
        with memory_errors_named(path):
            video = self.open_video(path)
            indices = at_rate(
                video,
                self.fps,
                lambda total: random_clip(total, self.num_frames, self.frame_stride, rng),
            )
            wanted = self._draw(video.height, video.width, rng)
            unique, shown = np.unique(indices, return_inverse=True)
            form = write_frames(memory, video, path, unique, wanted, planar=self.planar_room > 0)
        return Frames.in_memory(form, memory), shown

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> Wanted:
        size = self.crop_size, self.crop_size
        if self.random_area:
            box = draw_area_box(rng, height, width)
            flip = bool(rng.random() < self.flip_probability)
            return Wanted(box, size, mirror=flip, cubic=True)
        draw = draw_augmentation(
            rng, self.short_side_min, self.short_side_max, self.flip_probability
        )
        box = source_box(draw, height, width, self.crop_size)
        return Wanted(box, size, mirror=draw.flip)


class CenterClips:
    """The clip in the middle of a video: the middle frames, and the middle of each.

    Args:
        num_frames, frame_stride, fps: as in :class:`videogn.config.ClipConfig`.
        short_side: pixels of the shorter side after scaling.
        crop_size: side of the square that is cut out of the scaled frame.
        planar_room: as in :class:`RandomClips`.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        frame_stride: int,
        short_side: int,
        crop_size: int,
        open_video: Callable[[str], VideoReader],
        planar_room: float = 0.0,
        fps: float | None = None,
    ) -> None:
        self._num_frames = num_frames
        self._frame_stride = frame_stride
        self._short_side = short_side
        self._crop_size = crop_size
        self._open_video = open_video
        self._planar_room = planar_room
        self._fps = fps

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a clip needs."""
        finished = self._num_frames * self._crop_size**2 * 3
        return math.ceil(finished * max(1.0, self._planar_room))

    def read(
        self, path: str, rng: np.random.Generator, memory: np.ndarray | None = None
    ) -> tuple[Frames, np.ndarray]:
        """As :meth:`RandomClips.read`, but nothing is drawn from ``rng``."""
        del rng
        memory = np.empty(self.num_bytes, np.uint8) if memory is None else memory
        with memory_errors_named(path):
            video = self._open_video(path)
            [indices] = at_rate(
                video,
                self._fps,
                lambda total: uniform_clips(total, self._num_frames, self._frame_stride, 1),
            )
            size = scaled_size(video.height, video.width, self._short_side)
            wanted = Wanted(None, size, center_box(*size, self._crop_size))
            unique, shown = np.unique(indices, return_inverse=True)
            planar = self._planar_room > 0
            form = write_frames(memory, video, path, unique, wanted, planar=planar)
        return Frames.in_memory(form, memory), shown


def at_rate(
    video: VideoReader, fps: float | None, choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    """The frames that ``choose`` takes of a number of frames: at ``fps``, or at its own rate."""
    if fps is None:
        return choose(video.num_frames)
    seconds = video.times()
    return resampled(seconds, fps, choose(num_resampled(seconds, fps)))


@contextmanager
def memory_errors_named(path: str) -> Iterator[None]:
    """Limit the memory that a video may take, and tell which one that was too little for."""
    try:
        with limited_memory():
            yield
    except MemoryError as error:
        raise DecodeError(path, "needs more memory than a worker may use") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise DecodeError(path, "needs more memory than a worker may use") from error
