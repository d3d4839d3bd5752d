"""The multi-clip test: every video decoded once, all its views scored, each once.

Shapes: J clips of a video, P crops of each clip, V = J P views, K classes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from videogn.data.dataset import DeviceViews, VideoViews
from videogn.data.transforms import normalize
from videogn.engine.arithmetic import autocast, dtype_of
from videogn.engine.device_memory import is_out_of_memory
from videogn.engine.pass_size import Measure, PassSize
from videogn.engine.replays import Replays
from videogn.errors import RunError

THUMBNAIL_HEIGHT = 96
THUMBNAIL_QUALITY = 80


class VideoScore(NamedTuple):
    """What was measured of one video; ``reason`` says why there is nothing.

    Attributes:
        place: where the video stands in the list.
        arrays: (J, P, …) float32 each, in the order of the measure; None where it failed.
        thumbnail: a small JPEG of its middle frame.
    """

    place: int
    arrays: tuple[np.ndarray, ...] | None
    thumbnail: bytes
    reason: str | None


def class_scores(network: nn.Module) -> Measure:
    """Logits and softmax scores (V, K), each averaged over the locations of a view.

    The network is taken as fully convolutional: softmax at each location, then the mean (non-local
    paper, section 4.1).
    """

    def measure(views: Tensor) -> tuple[Tensor, Tensor]:
        located = network.forward_locations(views).float().flatten(2)  # type: ignore[operator]
        return located.mean(2), located.softmax(1).mean(2)

    return measure


def pooled_features(network: nn.Module) -> Measure:
    """The last stage's output, averaged over time and space, (V, C)."""

    def measure(views: Tensor) -> tuple[Tensor]:
        return (network.features(views).float().flatten(2).mean(2),)  # type: ignore[operator]

    return measure


def fastest_format(network: nn.Module) -> torch.memory_format:
    """The order in memory in which a network for testing computes fastest.

    3D convolutions like their channels last, on CPUs and GPUs. torch's group norm does not: it is
    slow there on a GPU, and loses accuracy at large means on a CPU.
    """
    modules = list(network.modules())
    if any(isinstance(module, nn.GroupNorm) for module in modules):
        return torch.contiguous_format
    if any(isinstance(module, nn.Conv3d) for module in modules):
        return torch.channels_last_3d
    return torch.contiguous_format


@dataclass(frozen=True)
class Scorer:
    """Measures the views of videos on a device.

    Attributes:
        mean, std: of the network's input, per colour, in [0, 1].
        precision: fp32, bf16 or fp16.
        pass_size: how many views go through the network at once.
        memory_format: of the views.
        replays: of passes of the measure as CUDA graphs; None to launch all plainly.
    """

    measure: Measure
    device: torch.device
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: str
    pass_size: PassSize
    memory_format: torch.memory_format = torch.contiguous_format
    replays: Replays | None = None

    def scores(self, videos: Iterable[VideoViews]) -> Iterator[VideoScore]:
        """Measure videos as they come.

        On a GPU the next video is on its way before the scores of the last are fetched.

        Raises:
            RunError: a score is not finite, or the device has too little memory for one view.
        """
        ahead = 1 if self.device.type == "cuda" else 0
        begun: deque[_Begun] = deque()
        for video in videos:
            begun.append(self._begin(video))
            if len(begun) > ahead:
                yield begun.popleft().fetch()
        while begun:
            yield begun.popleft().fetch()

    @torch.inference_mode()
    def _begin(self, video: VideoViews) -> "_Begun":
        if video.frames is None:
            return _Begun(video, (), None)
        views = self._moved(video)
        middle = views.frames[:, views.frames.shape[1] // 2]
        while True:
            try:
                arrays = self._measured_all(views)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Holes in the memory, or another process: without graphs, or by less at once, it
                # may do.
                if self.replays is not None and self.replays.drop():
                    continue
                if not self.pass_size.shrink():
                    raise self._too_large(views) from error
        return _Begun(video, *self._sent(arrays, middle))

    def _sent(
        self, arrays: tuple[Tensor, ...], middle: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor, torch.cuda.Event | None]:
        """What :class:`_Begun` holds. Copies are queued here, before the next video's passes."""
        home = tuple(tensor.to("cpu", non_blocking=True) for tensor in (*arrays, middle))
        if self.device.type != "cuda":
            return home[:-1], home[-1], None
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return home[:-1], home[-1], arrived

    def _too_large(self, views: DeviceViews) -> RunError:
        (frames, height, width), fixed = self._view(views), self.pass_size.fixed
        what, remedy = "1 view", "use a device with more, or a smaller clip.short_side_min"
        if fixed is not None:
            what, remedy = f"{fixed} views", "set test.views_per_pass=null to find how many fit"
        return RunError(
            f"{self.device}: too little memory for a pass of {what} of {frames} frames of "
            f"{height} x {width}; {remedy}"
        )

    def _moved(self, video: VideoViews) -> DeviceViews:
        if self.device.type != "cuda":
            return video.on(self.device)
        # On a stream of its own: on the network's it would wait for the video before.
        mine, other = torch.cuda.current_stream(), _copying(self.device)
        with torch.cuda.stream(other):
            views = video.on(self.device)
        mine.wait_stream(other)
        for tensor in (views.frames, views.shown):
            tensor.record_stream(mine)
        return views

    def _view(self, views: DeviceViews) -> tuple[int, int, int]:
        """(T, H, W)."""
        return views.shown.shape[1], views.boxes[0].height, views.boxes[0].width

    def _spans(self, views: DeviceViews) -> list[tuple[int, int]]:
        return self.pass_size.spans(len(views), self._view(views))

    def _measured_all(self, views: DeviceViews) -> tuple[Tensor, ...]:
        parts = [self._measured(views.stack(*span)) for span in self._spans(views)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _measured(self, views: Tensor) -> tuple[Tensor, ...]:
        dtype = dtype_of(self.precision)  # as autocast would round them
        replay = None if self.replays is None else self.replays.of(views.shape)
        place = None if replay is None else replay.views
        clips = normalize(views, self.mean, self.std, self.memory_format, dtype, out=place)
        if replay is not None:
            return replay.run()
        with autocast(self.device, self.precision):
            return self.measure(clips)


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream on which videos come to a GPU."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


class _Begun(NamedTuple):
    """A video whose scores the device may still be at.

    Attributes:
        arrays: (V, …) each, on the CPU.
        middle: (3, H, W) uint8, on the CPU; None where the video failed.
        arrived: when both are there; None where they are.
    """

    video: VideoViews
    arrays: tuple[Tensor, ...]
    middle: Tensor | None
    arrived: torch.cuda.Event | None = None

    def fetch(self) -> VideoScore:
        """Wait for the scores, check and arrange them."""
        video = self.video
        if self.middle is None:
            return VideoScore(video.place, None, b"", video.reason or "unknown")
        if self.arrived is not None:
            self.arrived.synchronize()
        shape = (len(video.shown), len(video.boxes))
        arrays = tuple(np.asarray(p.view(*shape, *p.shape[1:])) for p in self.arrays)
        if not all(np.isfinite(part).all() for part in arrays):
            raise RunError(
                f"the network's scores of video {video.place + 1} of the list are not finite; "
                "its weights are broken: test another checkpoint"
            )
        return VideoScore(video.place, arrays, _thumbnail(self.middle), None)


def _thumbnail(image: Tensor) -> bytes:
    """A small JPEG of an image (3, H, W) uint8."""
    height, width = image.shape[1:]
    size = (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:, :, ::-1])
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1].tobytes()
