import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

FOOTAGE = Path(os.environ.get("VIDEOGN_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
NUMBER_BITS = 10

# Time limits of single examples fail on a busy machine, whatever the code does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
BLOCK = 16


@pytest.fixture(scope="session")
def footage() -> Path:
    """Folder of real camera footage; the repository holds none."""
    if not FOOTAGE.is_dir():
        pytest.skip(f"no real footage in {FOOTAGE}; name its folder in VIDEOGN_TEST_DATA")
    return FOOTAGE


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with ``number`` in the top rows: one bit per black or white block."""
    # Noise makes packets of real size, beside which the headers of containers are small.
    frame = np.full((height, width, 3), 128, np.uint8)
    corner = frame[:160, :160]
    corner[:] = np.random.default_rng(number).integers(256, size=corner.shape)
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, width // BLOCK)
        block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
        frame[block] = 235 if number >> bit & 1 else 20
    return frame


@dataclass(frozen=True)
class VideoMaker:
    """Encodes videos whose frames carry their numbers."""

    folder: Path

    def __call__(
        self,
        name: str = "video.mp4",
        num_frames: int = 20,
        *,
        size: tuple[int, int] = (64, 96),
        codec: str = "libx264",
        container_options: dict[str, str] | None = None,
        **codec_options: str,
    ) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.options = {"threads": "1", **codec_options}
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    @staticmethod
    def numbers_in(frames: np.ndarray) -> list[int]:
        """The numbers that decoded (T, H, W, 3) frames carry."""
        numbers = []
        for frame in frames:
            number = 0
            for bit in range(NUMBER_BITS):
                row, column = (BLOCK * part for part in divmod(bit, frame.shape[1] // BLOCK))
                middle = frame[row + 6 : row + 10, column + 6 : column + 10]
                number |= int(middle.mean() > 128) << bit
            numbers.append(number)
        return numbers


@pytest.fixture
def make_video(tmp_path: Path) -> VideoMaker:
    return VideoMaker(tmp_path)


def _randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw gammas, betas and running statistics, which a fresh network has at 0 and 1.

    Without it a block's last gamma of 0 hides the block from every comparison of outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim != 1:
                continue
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    return _randomise
