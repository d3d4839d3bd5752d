"""torchcodec's reader, in exact mode: it seeks by the times of all packets of a file.

Which files it reads as a full decode does is :mod:`videogn.data.routing`'s to know.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from videogn.data.decode import (
    FrameIndices,
    best_stream,
    checked_indices,
    errors_named,
    gather,
    opened,
)
from videogn.data.rgb import Box
from videogn.errors import DecodeError, UserError

BATCH = 16
"""Frames asked for at once; more would hold many large images together."""


class TorchcodecReader:
    """A video as torchcodec reads it, opened under the rules of :mod:`videogn.data.decode`.

    Raises:
        DecodeError: torchcodec cannot read the file.
        UserError: torchcodec or FFmpeg's libraries are not installed.
    """

    def __init__(self, path: str) -> None:
        decoders = _decoders()
        self._path = path
        # torchcodec has no allow-list: what ours refuses is not shown to it.
        with errors_named(path, lambda: "before any frame"), opened(path) as container:
            stream = best_stream(path, container).index
        with errors_named(path, lambda: "in torchcodec, on opening"):
            self._video = decoders.VideoDecoder(
                # An absolute path cannot be taken for a "scheme:".
                str(Path(path).absolute()),
                stream_index=stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
                seek_mode="exact",
            )
            self.num_frames = len(self._video)
        if self.num_frames == 0:
            raise DecodeError(path, "no frames", "zero_frames")
        [first] = self._read([0])
        self.height, self.width = first.shape[:2]

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, as :meth:`VideoReader.frames` says."""
        return gather(self, indices)

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of rising indices one by one, as :meth:`VideoReader.images` says."""
        rising = checked_indices(self, indices)
        for start in range(0, len(rising), BATCH):
            batch = self._read(rising[start : start + BATCH])
            yield from batch if box is None else batch[:, box.rows, box.columns]

    def _read(self, rising: list[int]) -> np.ndarray:
        with errors_named(self._path, lambda: f"in torchcodec, of frames {rising}"):
            batch: np.ndarray = self._video.get_frames_at(rising).data.numpy()
            return batch


def check_torchcodec() -> None:
    """Refuse to go on without torchcodec.

    Raises:
        UserError: it or FFmpeg's libraries are not installed.
    """
    _decoders()


def _decoders() -> Any:
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            "data.reader=torchcodec needs torchcodec (pip install 'videogn[torchcodec]') and "
            f"FFmpeg's shared libraries, version 4 or later: {str(error).splitlines()[0]}"
        ) from error
