"""From a record to clips: one training clip per item, or all test views of one video.

Shapes: C = 3 colours, T frames, H x W pixels. All randomness is a function of (seed, epoch,
index), not of workers or ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videogn.data.decode import VideoReader
from videogn.data.list_checks import VideoRecord
from videogn.data.rgb import Box
from videogn.data.sampling import num_resampled, random_clip, resampled, uniform_clips
from videogn.data.transforms import (
    Augmentation,
    center_box,
    draw_augmentation,
    scale,
    scaled_size,
    source_box,
    three_boxes,
)
from videogn.errors import DecodeError

MAX_TRIES = 10
VALIDATION = 1
"""Ends the seeds of validation draws. NumPy takes (a, b) and (a, b, 0, 0) for the same seed, so
only a last word that is not zero keeps them apart from those of training."""


class ClipSample(NamedTuple):
    """One training or validation clip.

    Attributes:
        clip: (C, T, H, W) uint8; None where a validation video could not be read.
        label: of the video the clip is of.
        place: where it stands in the list.
        failures: (path, reason) of each video tried before.
    """

    clip: Tensor | None
    label: int
    place: int
    failures: tuple[tuple[str, str], ...]


class VideoViews(NamedTuple):
    """All test views of one video: its frames, each once, and which of them make a view.

    Ten clips overlap; put together in a data worker they would be twice as many bytes.

    Attributes:
        place: where the video stands in the list.
        frames: (C, U, H, W) uint8; None where it failed.
        clips: (num_clips, T) int64, which of the U frames a clip shows.
        boxes: the crops of every clip.
        reason: why it failed.
    """

    place: int
    frames: Tensor | None
    clips: Tensor
    boxes: tuple[Box, ...]
    reason: str | None

    @classmethod
    def failed(cls, place: int, reason: str) -> "VideoViews":
        """Of a video that could not be read."""
        return cls(place, None, torch.empty(0, 0, dtype=torch.int64), (), reason)

    def to(self, device: torch.device) -> "VideoViews":
        """The same with its frames, and which of them make a clip, on a device."""
        if self.frames is None:
            return self
        return self._replace(
            frames=self.frames.to(device, non_blocking=True),
            clips=self.clips.to(device, non_blocking=True),
        )

    @property
    def num_views(self) -> int:
        """Clips times crops."""
        return len(self.clips) * len(self.boxes)

    def stack(self, first: int = 0, stop: int | None = None) -> Tensor:
        """Views first … stop - 1, clip by clip, (V, C, T, h, w) uint8.

        Raises:
            ValueError: the video could not be read.
        """
        if self.frames is None:
            raise ValueError(f"video {self.place} has no views: {self.reason}")
        views = []
        for view in range(self.num_views)[first:stop]:
            clip, crop = divmod(view, len(self.boxes))
            box = self.boxes[crop]
            part = self.frames[:, :, box.rows, box.columns]
            views.append(part[:, self.clips[clip]])
        return torch.stack(views)


class RandomClips:
    """Draws one augmented clip of a video (non-local paper, section 4.1)."""

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
        fps: float | None = None,
    ) -> None:
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.short_side_min = short_side_min
        self.short_side_max = short_side_max
        self.crop_size = crop_size
        self.flip_probability = flip_probability
        self.open_video = open_video
        self.fps = fps

    def read(self, path: str, rng: np.random.Generator) -> Tensor:
        """A clip (C, T, crop_size, crop_size) uint8 that ``rng`` decides.

        Raises:
            DecodeError: the video cannot be read.
        """
        with _memory_errors_named(path):
            video = self.open_video(path)
            indices = _at_rate(
                video,
                self.fps,
                lambda total: random_clip(total, self.num_frames, self.frame_stride, rng),
            )
            draw = draw_augmentation(
                rng, self.short_side_min, self.short_side_max, self.flip_probability
            )
            clip = np.empty((self.num_frames, self.crop_size, self.crop_size, 3), dtype=np.uint8)
            self._fill(clip, video, indices, draw)
        return torch.from_numpy(clip).permute(3, 0, 1, 2)

    def _fill(
        self, clip: np.ndarray, video: VideoReader, indices: np.ndarray, draw: Augmentation
    ) -> None:
        """Write the frames into (T, crop_size, crop_size, 3), each decoded and changed once."""
        box = source_box(draw, video.height, video.width, self.crop_size)
        unique, places = np.unique(indices, return_inverse=True)
        size = self.crop_size, self.crop_size
        scaled = scale(video.images(unique, box), size, mirror=draw.flip)
        for number, image in enumerate(scaled):
            for place in np.flatnonzero(places == number):
                clip[place] = image


class TrainDataset(Dataset[ClipSample]):
    """Training clips by (epoch, index).

    A video that cannot be decoded is replaced by another, drawn as a function of (seed, epoch,
    index, try), with its own label, and is named in ``failures``.
    """

    def __init__(self, records: Sequence[VideoRecord], clips: RandomClips, seed: int) -> None:
        self._records = records
        self._clips = clips
        self._seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        epoch, index = key
        chosen, failures = index, []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng([self._seed, epoch, index, attempt])
            if attempt:
                chosen = int(rng.integers(len(self._records)))
            record = self._records[chosen]
            try:
                clip = self._clips.read(record.path, rng)
            except DecodeError as error:
                failures.append((error.path, error.reason))
            else:
                return ClipSample(clip, record.label, chosen, tuple(failures))
        raise DecodeError(
            failures[-1][0],
            f"{failures[-1][1]}; so were {MAX_TRIES - 1} videos tried before it: check the list",
        )


class ValDataset(Dataset[ClipSample]):
    """One clip per video under training augmentation, drawn once and for all (paper, Figure 7)."""

    def __init__(self, records: Sequence[VideoRecord], clips: RandomClips, seed: int) -> None:
        self._records = records
        self._clips = clips
        self._seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ClipSample:
        record = self._records[index]
        try:
            rng = np.random.default_rng([self._seed, 0, index, 0, VALIDATION])
            clip = self._clips.read(record.path, rng)
        except DecodeError as error:
            return ClipSample(None, record.label, index, ((error.path, error.reason),))
        return ClipSample(clip, record.label, index, ())


class TestDataset(Dataset[VideoViews]):
    """All views of a video by its index; every video is decoded once for all its clips.

    With protocol ``paper`` a view is the whole frame at the given short side, or one of three
    squares along its longer side; with ``center`` it is the square of ``crop_size`` in the middle.
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
        fps: float | None = None,
    ) -> None:
        self._records = records
        self._num_frames = num_frames
        self._frame_stride = frame_stride
        self._num_clips = num_clips
        self._num_crops = num_crops
        self._protocol = protocol
        self._short_side = short_side
        self._crop_size = crop_size
        self._open_video = open_video
        self._fps = fps

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> VideoViews:
        path = self._records[index].path
        try:
            with _memory_errors_named(path):
                return self._read(index, path)
        except DecodeError as error:
            return VideoViews.failed(index, error.reason)

    def _read(self, place: int, path: str) -> VideoViews:
        video = self._open_video(path)
        clips = _at_rate(
            video,
            self._fps,
            lambda total: uniform_clips(
                total, self._num_frames, self._frame_stride, self._num_clips
            ),
        )
        unique, shown = np.unique(clips, return_inverse=True)
        size = scaled_size(video.height, video.width, self._short_side)
        kept = Box(0, 0, *size)
        if self._protocol == "center":
            kept = center_box(*size, self._crop_size)
        frames = np.empty((len(unique), kept.height, kept.width, 3), dtype=np.uint8)
        for number, image in enumerate(scale(video.images(unique), size)):
            frames[number] = image[kept.rows, kept.columns]
        return VideoViews(
            place,
            torch.from_numpy(frames).permute(3, 0, 1, 2),
            torch.from_numpy(shown.reshape(clips.shape)),
            self._boxes(kept),
            None,
        )

    def _boxes(self, kept: Box) -> tuple[Box, ...]:
        if self._protocol == "center" or self._num_crops == 1:
            return (Box(0, 0, kept.height, kept.width),)
        return three_boxes(kept.height, kept.width)


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
    """Tell which video a worker's memory limit was too small for."""
    try:
        yield
    except MemoryError as error:
        raise DecodeError(path, "needs more memory than a worker may use") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise DecodeError(path, "needs more memory than a worker may use") from error
