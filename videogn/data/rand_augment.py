"""RandAugment (arXiv 1909.13719) of clips: the same operations for all their frames.

Shapes: C = 3 colours, U frames, H x W pixels.
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videogn.data.dataset import Clips
from videogn.data.frames import Frames


class RandAugmentedClips:
    """Clips that go through operations which the generator they were drawn from decides.

    Args:
        clips: must finish their frames.
        num_ops: operations, one after the other.
        magnitude: their strength, 0 to 30.
    """

    def __init__(self, clips: Clips, num_ops: int, magnitude: int) -> None:
        self._clips = clips
        self._num_ops = num_ops
        self._magnitude = magnitude

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a clip needs."""
        return self._clips.num_bytes

    @cached_property
    def _augment(self) -> Any:
        # Importing torchvision takes longer than starting a worker: only who asks for it pays.
        from torchvision.transforms.v2 import RandAugment

        return RandAugment(self._num_ops, self._magnitude)

    def read(
        self, path: str, rng: np.random.Generator, memory: np.ndarray | None = None
    ) -> tuple[Frames, np.ndarray]:
        """As :meth:`videogn.data.dataset.RandomClips.read`.

        Raises:
            ValueError: the frames are not finished.
        """
        frames, shown = self._clips.read(path, rng, memory)
        if not frames.form.is_finished:
            raise ValueError("RandAugment takes finished frames: planar_room must be 0")
        # (U, C, H, W); a frame shown twice is augmented once.
        images = frames.rgb().transpose(0, 1)
        images.copy_(self._augmented(images, int(rng.integers(2**63))))
        return frames, shown

    def _augmented(self, images: Tensor, seed: int) -> Tensor:
        """Images (U, C, H, W) uint8 after the operations that ``seed`` decides."""
        # torchvision draws from torch's generator, which belongs to the training process where it
        # reads itself. torch.manual_seed would reseed its GPU too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            augmented: Tensor = self._augment(images)
        return augmented
