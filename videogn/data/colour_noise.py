"""Random colours of fb.resnet.torch for ImageNet: jitter, and the lighting of AlexNet.

Each change of the three maps a colour x in [0, 1] to A x + b, so a clip goes through one such map
and is rounded once. Shapes: U frames, H x W pixels, 3 colours (RGB).
"""

import cv2
import numpy as np

GREY = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in the grey of a colour (BT.601)."""
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
"""Of the colours of ImageNet's pixels in [0, 1], one vector in each column: the numbers of
fb.resnet.torch and of everyone since."""


class ColourNoise:
    """A change of :class:`videogn.data.changed.ChangedClips`: one map for all frames of a clip.

    Unlike torchvision's, nothing is cut off between the changes, as it is not in fb.resnet.torch;
    the result is cut off at 0 and 255.

    Args:
        jitter: brightness, contrast and saturation, in random order, are multiplied by factors
            uniform in [1 - jitter, 1 + jitter].
        lighting: standard deviation of the share of each eigenvector that is added.
    """

    def __init__(self, jitter: float, lighting: float) -> None:
        self._jitter = jitter
        self._lighting = lighting

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> None:
        """Change frames (U, H, W, 3) uint8 where they are."""
        pixels = images.reshape(-1, images.shape[2], 3)
        matrix, offset = np.eye(3), np.zeros(3)
        if self._jitter:
            mean = np.array(cv2.mean(pixels)[:3]) / 255
            matrix, offset = _jittered(mean, self._jitter, rng)
        if self._lighting:
            offset = offset + EIGENVECTORS @ (rng.normal(0, self._lighting, 3) * EIGENVALUES)
        # In floats: 8-bit sources are multiplied by ten-bit factors on some machines.
        found = cv2.transform(pixels.astype(np.float32), np.c_[matrix, 255 * offset])
        np.clip(found.round(out=found), 0, 255, out=found)
        pixels[...] = found


def _jittered(
    mean: np.ndarray, jitter: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A (3, 3) and b (3,) of random brightness, contrast and saturation.

    Args:
        mean: (3,) colour of the clip, to whose grey contrast draws all.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    for kind in rng.permutation(3):
        factor = rng.uniform(1 - jitter, 1 + jitter)
        if kind == 2:  # saturation: towards the grey of each pixel
            step = factor * np.eye(3) + (1 - factor) * np.outer(np.ones(3), GREY)
            matrix, offset = step @ matrix, step @ offset
            continue
        grey = GREY @ (matrix @ mean + offset) if kind == 1 else 0.0
        matrix, offset = factor * matrix, factor * offset + (1 - factor) * grey
    return matrix, offset
