"""RandAugment (arXiv 1909.13719) of clips: the same operations for all their frames.

Shapes: U frames, H x W pixels, C = 3 colours.
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RandAugmentation:
    """A change of :class:`videogn.data.changed.ChangedClips`.

    Args:
        num_ops: operations, one after the other.
        magnitude: their strength, 0 to 30.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        self._num_ops = num_ops
        self._magnitude = magnitude

    @cached_property
    def _augment(self) -> Any:
        # Importing torchvision takes longer than starting a worker: only who asks for it pays.
        from torchvision.transforms.v2 import RandAugment

        return RandAugment(self._num_ops, self._magnitude)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> None:
        """Change frames (U, H, W, 3) uint8 where they are."""
        frames = torch.from_numpy(images).permute(0, 3, 1, 2)
        frames.copy_(self._augmented(frames, int(rng.integers(2**63))))

    def _augmented(self, frames: Tensor, seed: int) -> Tensor:
        """Frames (U, C, H, W) uint8 after the operations that ``seed`` decides."""
        # torchvision draws from torch's generator, which belongs to the training process where it
        # reads itself. torch.manual_seed would reseed its GPU too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            augmented: Tensor = self._augment(frames)
        return augmented
