"""torchcodec's reader, in exact mode: it seeks by the times of all packets of a file.

It runs in the process that asks, unlike decord: no damaged file crashed it, and files that claim
much memory are errors under the limit of the loader's workers. Which files it reads as a full
decode does is :mod:`videogn.data.routing`'s to know.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from videogn.data.decode import FrameIndices, checked_indices, gather, packet_seconds
from videogn.data.rgb import Box
from videogn.data.video_files import chosen_stream, errors_named, opened
from videogn.errors import DecodeError, UserError

BATCH = 16
"""Frames asked for at once; more would hold many large images together."""


class TorchcodecReader:
    """A video as torchcodec reads it, opened under the rules of :mod:`videogn.data.video_files`.

    Args:
        number: of the stream among the file's video streams; None for the one ffmpeg calls best.
        device: what decodes. ``cuda`` is NVIDIA's decoder, whose frames are copied to the CPU's
            memory; it has never been tried, for want of a GPU.

    Raises:
        DecodeError: torchcodec cannot read the file.
        UserError: torchcodec or FFmpeg's libraries are not installed.
    """

    def __init__(
        self, path: str, number: int | None = None, *, device: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        decoders = check_torchcodec(device)
        self._path = path
        self._number = number
        # torchcodec has no allow-list: what ours refuses is not shown to it.
        with errors_named(path, lambda: "before any frame"), opened(path) as container:
            stream = chosen_stream(path, container, number).index
        with errors_named(path, lambda: "in torchcodec, on opening"):
            self._video = decoders.VideoDecoder(
                # An absolute path cannot be taken for a "scheme:".
                str(Path(path).absolute()),
                stream_index=stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=device,
                seek_mode="exact",
            )
            self.num_frames = len(self._video)
        if self.num_frames == 0:
            raise DecodeError(path, "no frames", "zero_frames")
        self.height = self.width = 0
        self.height, self.width = self._read([0]).shape[1:3]

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, as :meth:`VideoReader.frames` says."""
        return gather(self, indices)

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of rising indices one by one, as :meth:`VideoReader.images` says."""
        rising = checked_indices(self.num_frames, indices)
        for start in range(0, len(rising), BATCH):
            batch = self._read(rising[start : start + BATCH])
            yield from batch if box is None else batch[:, box.rows, box.columns]

    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""
        return packet_seconds(self._path, self.num_frames, self._number)

    def _read(self, rising: list[int]) -> np.ndarray:
        with errors_named(self._path, lambda: f"in torchcodec, of frames {rising}"):
            batch: np.ndarray = self._video.get_frames_at(rising).data.cpu().numpy()
        if self.height and batch.shape[1:3] != (self.height, self.width):
            height, width = batch.shape[1:3]
            reason = f"torchcodec: frames {rising} are of another size, {width}x{height}"
            raise DecodeError(self._path, reason)
        return batch


def check_torchcodec(device: Literal["cpu", "cuda"] = "cpu") -> Any:
    """The module of torchcodec's decoders.

    Raises:
        UserError: it, FFmpeg's libraries or the device is not there.
    """
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            "data.reader=torchcodec needs torchcodec (pip install 'videogn[torchcodec]') and "
            f"FFmpeg's shared libraries, version 4 or later: {str(error).splitlines()[0]}"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "data.reader=torchcodec_cuda needs a GPU that PyTorch can use; none is here"
        )
    return decoders
