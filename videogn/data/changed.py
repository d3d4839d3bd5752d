"""Clips whose finished frames are changed by chance, after scaling and before the network.

Shapes: U frames, H x W pixels, C = 3 colours.
"""

from collections.abc import Callable

import numpy as np

from videogn.data.clips import Clips
from videogn.data.frames import Frames

Change = Callable[[np.ndarray, np.random.Generator], None]
"""Changes (U, H, W, 3) uint8 RGB where it is, as the generator decides, all frames alike."""


class ChangedClips:
    """Clips that go through changes which the generator they were drawn from decides.

    Args:
        clips: must finish their frames.
        changes: one after the other.
    """

    def __init__(self, clips: Clips, *changes: Change) -> None:
        self._clips = clips
        self.changes = changes

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that a clip needs."""
        return self._clips.num_bytes

    def read(
        self, path: str, rng: np.random.Generator, memory: np.ndarray | None = None
    ) -> tuple[Frames, np.ndarray]:
        """As :meth:`videogn.data.clips.RandomClips.read`; a frame shown twice is changed once.

        Raises:
            ValueError: the frames are not finished.
        """
        frames, shown = self._clips.read(path, rng, memory)
        if not frames.form.is_finished:
            raise ValueError("only finished frames can be changed: planar_room must be 0")
        images = frames.rgb().permute(1, 2, 3, 0).numpy()
        for change in self.changes:
            change(images, rng)
        return frames, shown
