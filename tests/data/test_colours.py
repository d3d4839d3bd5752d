"""Colours of every reader, against the arithmetic of the standards."""

from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.forms import FULL, LIMITED, Coding, encode
from videogn.data.opening import READERS

# Shares of red and blue in luma: BT.601 (also where a file does not say), BT.709, BT.2020.
WEIGHTS = {
    None: (0.299, 0.114),
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}


def ramps(number: int, height: int, width: int) -> np.ndarray:
    """Colours that change slowly, so that how chroma is scaled hardly matters."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = np.stack([right, down, (1 - right) * (0.5 + 0.5 * down)], axis=2)
    return (255 * image).astype(np.uint8)


def by_hand(path: Path, colours: str | None) -> np.ndarray:
    """The first frame, (H, W, 3) floats: Y'CbCr of 8 bits to R'G'B' as ITU-R says."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    luma, blue, red = (plane_of(frame, number) for number in range(3))
    is_full = frame.color_range == FULL
    luma = luma if is_full else (luma - 16) * 255 / 219
    blue, red = ((part - 128) * (1 if is_full else 255 / 224) for part in (blue, red))
    of_red, of_blue = WEIGHTS[colours]
    r = luma + 2 * (1 - of_red) * red
    b = luma + 2 * (1 - of_blue) * blue
    g = (luma - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return np.stack([r, g, b], axis=2).clip(0, 255)


def plane_of(frame: av.VideoFrame, number: int) -> np.ndarray:
    plane = frame.planes[number]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    samples = rows[:, : plane.width].astype(float)
    steps = frame.height // plane.height, frame.width // plane.width
    return samples.repeat(steps[0], axis=0).repeat(steps[1], axis=1)


@pytest.mark.parametrize("reader", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("colours", WEIGHTS)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_matrix_and_range_are_obeyed(
    pixel_format: str,
    colours: str | None,
    color_range: int,
    reader: str,
    tmp_path: Path,
    need_reader,
) -> None:
    need_reader(reader)
    coding = Coding(
        num_frames=2,
        size=(96, 128),
        options={"crf": "10"},
        pixel_format=pixel_format,
        colours=colours,
        color_range=color_range,
        frames=ramps,
    )
    path = encode(tmp_path / "v.mp4", coding)
    difference = READERS[reader](str(path)).frames([0])[0] - by_hand(path, colours)
    # Rounding alone; with scaled chroma the scaler's 8-bit arithmetic darkens by a level.
    allowed = (0.3, 1.1) if pixel_format == "yuv444p" else (1.3, 4)
    assert np.abs(difference).mean() < allowed[0]
    assert np.percentile(np.abs(difference), 99) < allowed[1]


def test_the_wrong_matrix_would_be_seen(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "v.mp4",
        Coding(num_frames=2, size=(96, 128), colours="bt709", color_range=LIMITED, frames=ramps),
    )
    assert np.abs(by_hand(path, "bt709") - by_hand(path, "bt601")).mean() > 4
