"""From a record to clips: one training clip per item, or all test views of one video.

Shapes: C = 3 colours, T frames, H x W pixels. All randomness is a function of (seed, epoch,
index), not of workers or ranks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videogn.data.decode import VideoReader
from videogn.data.frames import Frames, Wanted, write_frames
from videogn.data.limits import limited_memory
from videogn.data.list_checks import VideoRecord
from videogn.data.protocols import PROTOCOLS, Timeline
from videogn.data.rgb import Box
from videogn.data.sampling import num_resampled, random_clip, resampled, uniform_clips
from videogn.data.transforms import (
    center_box,
    draw_area_box,
    draw_augmentation,
    scaled_size,
    source_box,
)
from videogn.data.watched import WatchedRecords
from videogn.errors import DecodeError

MAX_TRIES = 10
USUAL_ASPECT = 16 / 9
VALIDATION = 1
"""Ends the seeds of validation draws. NumPy takes (a, b) and (a, b, 0, 0) for the same seed, so
only a last word that is not zero keeps them apart from those of training."""


class ClipSample(NamedTuple):
    """One training or validation clip.

    Attributes:
        frames: the clip's different frames; None where a validation video could not be read.
        shown: (T,) int64, which of them it shows, one after the other.
        label: of the video the clip is of.
        place: where it stands in the list.
        failures: (path, reason) of each video tried before.
    """

    frames: Frames | None
    shown: np.ndarray
    label: int
    place: int
    failures: tuple[tuple[str, str], ...]

    @property
    def clip(self) -> Tensor | None:
        """(C, T, H, W) uint8."""
        return None if self.frames is None else clip_of(self.frames, self.shown)


def clip_of(frames: Frames, shown: np.ndarray) -> Tensor:
    """A clip (C, T, H, W) uint8 of its frames, on their device."""
    images = frames.rgb()
    # Only the clip of a video shorter than its span shows a frame twice.
    if len(shown) == frames.form.num_frames:
        return images
    return images[:, torch.from_numpy(shown).to(images.device)]


class VideoViews(NamedTuple):
    """All test views of one video: its frames, each once, and which of them make a view.

    Ten clips overlap; put together in a data worker they would be twice as many bytes.

    Attributes:
        place: where the video stands in the list.
        frames: U frames; None where it failed.
        shown: (num_clips, T) int64, which of the U frames a clip shows.
        boxes: the crops of every clip.
        reason: why it failed.
    """

    place: int
    frames: Frames | None
    shown: np.ndarray
    boxes: tuple[Box, ...]
    reason: str | None

    @classmethod
    def failed(cls, place: int, reason: str) -> "VideoViews":
        """Of a video that could not be read."""
        return cls(place, None, np.empty((0, 0), np.int64), (), reason)

    def on(self, device: torch.device) -> "DeviceViews":
        """The views on a device.

        Raises:
            ValueError: the video could not be read.
        """
        if self.frames is None:
            raise ValueError(f"video {self.place} has no views: {self.reason}")
        shown = torch.from_numpy(self.shown).to(device, non_blocking=True)
        return DeviceViews(self.frames.to(device).rgb(), shown, self.boxes)


class DeviceViews(NamedTuple):
    """The views of one video where they are scored.

    Attributes:
        frames: (C, U, H, W) uint8.
        shown, boxes: as in :class:`VideoViews`.
    """

    frames: Tensor
    shown: Tensor
    boxes: tuple[Box, ...]

    def __len__(self) -> int:
        return len(self.shown) * len(self.boxes)

    def stack(self, first: int = 0, stop: int | None = None) -> Tensor:
        """Views first … stop - 1, clip by clip, (V, C, T, h, w) uint8."""
        views = []
        for view in range(len(self))[first:stop]:
            clip, crop = divmod(view, len(self.boxes))
            box = self.boxes[crop]
            part = self.frames[:, :, box.rows, box.columns]
            views.append(part[:, self.shown[clip]])
        return torch.stack(views)


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
        with _memory_errors_named(path):
            video = self.open_video(path)
            indices = _at_rate(
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
        with _memory_errors_named(path):
            video = self._open_video(path)
            [indices] = _at_rate(
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


class TrainDataset(Dataset[ClipSample]):
    """Training clips by (epoch, index).

    A video that cannot be decoded is replaced by another, drawn as a function of (seed, epoch,
    index, try), with its own label, and is named in ``failures``.
    """

    def __init__(self, records: Sequence[VideoRecord], clips: Clips, seed: int) -> None:
        self.videos = WatchedRecords(records)
        self._clips = clips
        self._seed = seed

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        return self.read(key)

    @property
    def sample_bytes(self) -> int:
        """Bytes of memory that :meth:`read` needs."""
        return self._clips.num_bytes

    def read(self, key: tuple[int, int], memory: np.ndarray | None = None) -> ClipSample:
        """The sample of (epoch, index), its frames written into ``memory`` where given.

        Raises:
            DecodeError: neither the video nor any of those tried in its place can be read.
        """
        epoch, index = key
        chosen, failures = index, []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            if attempt:
                chosen = int(rng.integers(len(self.videos)))
            record = self.videos[chosen]
            try:
                with self.videos.reading(chosen):
                    frames, shown = self._clips.read(record.path, rng, memory)
            except DecodeError as error:
                failures.append((error.path, error.reason))
            else:
                return ClipSample(frames, shown, record.label, chosen, tuple(failures))
        raise DecodeError(
            failures[-1][0],
            f"{failures[-1][1]}; so were {MAX_TRIES - 1} videos tried before it: check the list",
        )


class ValDataset(Dataset[ClipSample]):
    """One clip per video, always the same.

    Under training augmentation it is drawn once and for all (paper, Figure 7).
    """

    def __init__(self, records: Sequence[VideoRecord], clips: Clips, seed: int) -> None:
        self.videos = WatchedRecords(records)
        self._clips = clips
        self._seed = seed

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ClipSample:
        return self.read(index)

    @property
    def sample_bytes(self) -> int:
        """Bytes of memory that :meth:`read` needs."""
        return self._clips.num_bytes

    def read(self, index: int, memory: np.ndarray | None = None) -> ClipSample:
        """The clip of a video, its frames written into ``memory`` where given."""
        record = self.videos[index]
        try:
            rng = np.random.default_rng([self._seed, 0, index, 0, VALIDATION])
            with self.videos.reading(index):
                frames, shown = self._clips.read(record.path, rng, memory)
        except DecodeError as error:
            failures = ((error.path, error.reason),)
            return ClipSample(None, np.empty(0, np.int64), record.label, index, failures)
        return ClipSample(frames, shown, record.label, index, ())


class TestDataset(Dataset[VideoViews]):
    """All views of a video by its index; every video is decoded once for all its clips.

    Args:
        protocol: which of :data:`videogn.data.protocols.PROTOCOLS` decides frames and crops.
        num_clips, num_crops: views per video; ``center`` has one crop whatever is asked.
        short_side: pixels of the shorter side after scaling.
        crop_size: side of the crop of ``center``; others do not use it.
        fps: rate that videos are brought to first; None where the protocol has its own.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        num_frames: int,
        frame_stride: int,
        num_clips: int,
        num_crops: int,
        protocol: str,
        short_side: int,
        crop_size: int,
        open_video: Callable[[str], VideoReader],
        planar: bool = False,
        fps: float | None = None,
    ) -> None:
        self._protocol = PROTOCOLS[protocol]
        if fps is not None and self._protocol.fps is not None:
            raise ValueError(f"fps={fps}: protocol {protocol} has a rate of its own")
        self.videos = WatchedRecords(records)
        self._num_frames = num_frames
        self._frame_stride = frame_stride
        self._num_clips = num_clips
        self._num_crops = num_crops
        self._short_side = short_side
        self._crop_size = crop_size
        self._open_video = open_video
        self._planar = planar
        self._fps = fps

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def sample_bytes(self) -> int:
        """Bytes that the frames of most videos need; others bring memory of their own."""
        longer = math.ceil(self._short_side * USUAL_ASPECT)
        return self._num_clips * self._num_frames * self._short_side * longer * 3

    def __getitem__(self, index: int) -> VideoViews:
        return self.read(index)

    def read(self, index: int, memory: np.ndarray | None = None) -> VideoViews:
        """The views of a video, their frames written into ``memory`` where that suffices."""
        path = self.videos[index].path
        try:
            with self.videos.reading(index), _memory_errors_named(path):
                return self._read(index, path, memory)
        except DecodeError as error:
            return VideoViews.failed(index, error.reason)

    def _read(self, place: int, path: str, memory: np.ndarray | None) -> VideoViews:
        video = self._open_video(path)
        clips = _at_rate(
            video,
            self._fps,
            lambda total: self._protocol.clips(
                Timeline(total, video.times), self._num_frames, self._frame_stride, self._num_clips
            ),
        )
        unique, shown = np.unique(clips, return_inverse=True)
        size = self._protocol.size(video.height, video.width, self._short_side)
        boxes = self._protocol.boxes(*size, num_crops=self._num_crops, crop_size=self._crop_size)
        # Of a single crop nothing else is kept.
        kept = boxes[0] if len(boxes) == 1 and boxes[0] != Box(0, 0, *size) else None
        wanted = Wanted(None, size, kept)
        needed = len(unique) * math.prod(wanted.shape)
        if memory is None or len(memory) < needed:
            memory = np.empty(needed, np.uint8)
        form = write_frames(memory, video, path, unique, wanted, planar=self._planar)
        frames = Frames.in_memory(form, memory)
        if kept is not None:
            boxes = (Box(0, 0, kept.height, kept.width),)
        return VideoViews(place, frames, shown.reshape(clips.shape), boxes, None)


def _at_rate(
    video: VideoReader, fps: float | None, choose: Callable[[int], np.ndarray]
) -> np.ndarray:
    """The frames that ``choose`` takes from so many at ``fps``, or at the video's own rate."""
    if fps is None:
        return choose(video.num_frames)
    seconds = video.times()
    return resampled(seconds, fps, choose(num_resampled(seconds, fps)))


@contextmanager
def _memory_errors_named(path: str) -> Iterator[None]:
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
