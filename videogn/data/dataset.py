"""From a record to clips: one training clip per item, or all test views of one video.

Shapes: C = 3 colours, T frames, H x W pixels. All randomness is a function of (seed, epoch,
index), not of workers or ranks.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videogn.data.clips import Clips, at_rate, memory_errors_named
from videogn.data.decode import VideoReader
from videogn.data.frames import Frames, Wanted, write_frames
from videogn.data.list_checks import VideoRecord
from videogn.data.protocols import PROTOCOLS, Timeline
from videogn.data.rgb import Box
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
            with self.videos.reading(index), memory_errors_named(path):
                return self._read(index, path, memory)
        except DecodeError as error:
            return VideoViews.failed(index, error.reason)

    def _read(self, place: int, path: str, memory: np.ndarray | None) -> VideoViews:
        video = self._open_video(path)
        clips = at_rate(
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
