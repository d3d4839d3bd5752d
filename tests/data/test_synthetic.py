import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.synthetic import (
    FRAMES,
    MOTIONS,
    PATCH,
    SIZE,
    SPEED,
    TEXTURES,
    encode_video,
    render_motion_dataset,
    render_video,
)


def moving_pixels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(-1)


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_square_drifts_in_the_direction_of_its_class(motion: int) -> None:
    frames = render_video(np.random.default_rng(motion), motion, appearance=3)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    rows, columns = list(MOTIONS.values())[motion]
    ground = np.median(frames, axis=0).astype(np.uint8)
    square = moving_pixels(ground, frames[0])
    for time in (1, 5, FRAMES - 1):
        shifted = np.roll(square, (time * SPEED * rows, time * SPEED * columns), (0, 1))
        overlap = moving_pixels(ground, frames[time]) & shifted
        assert overlap.sum() > 0.6 * PATCH**2


def test_a_frame_does_not_know_its_class() -> None:
    # The same draws with another class give the same first frame.
    first = [render_video(np.random.default_rng(7), motion, 0)[0] for motion in range(len(MOTIONS))]
    assert all((frame == first[0]).all() for frame in first)


def test_encoded_video_is_what_was_rendered(tmp_path: Path) -> None:
    frames = render_video(np.random.default_rng(1), 0, 3)
    encode_video(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == FRAMES
    assert np.abs(np.stack(decoded).astype(int) - frames).mean() < 16  # chroma is halved


def test_lists_are_balanced_independent_and_complete(tmp_path: Path) -> None:
    count = len(MOTIONS) * len(TEXTURES)
    lists = render_motion_dataset(tmp_path, {"train": count, "val": 4}, seed=0)
    motion = [line.split() for line in lists.motion["train"].read_text().splitlines()]
    appearance = [line.split() for line in lists.appearance["train"].read_text().splitlines()]
    assert [name for name, _ in motion] == [name for name, _ in appearance]
    pairs = Counter((m, a) for (_, m), (_, a) in zip(motion, appearance, strict=True))
    assert len(pairs) == count
    assert set(pairs.values()) == {1}
    assert all((tmp_path / name).stat().st_size > 0 for name, _ in motion)


def test_complete_folder_is_left_alone(tmp_path: Path) -> None:
    render_motion_dataset(tmp_path, {"train": 4}, seed=0)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    render_motion_dataset(tmp_path, {"train": 4}, seed=0)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_rendering_is_a_function_of_the_seed() -> None:
    # The pixels, not the bytes of the file: the encoder does not promise those.
    first, again, other = (render_video(np.random.default_rng(s), 1, 2) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_the_same_seed_gives_the_same_files_whatever_lay_in_memory(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from videogn.data.synthetic import render_motion_dataset
render_motion_dataset(Path(sys.argv[1]), {"train": 12}, seed=5)
"""
    found = []
    for filling in ("0", "85", "170"):  # 0: memory is left as it is
        folder = tmp_path / filling
        environment = os.environ | {"MALLOC_PERTURB_": filling}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
        found.append([path.read_bytes() for path in sorted(folder.rglob("*.mp4"))])
    assert len(found[0]) == 12
    assert found[0] == found[1] == found[2]
