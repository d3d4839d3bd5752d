import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from videogn.data.transforms import (
    Augmentation,
    augment,
    center_crop,
    clip_from_frames,
    draw_augmentation,
    normalize,
    resize_short_side,
    three_crops,
)


def random_clip_of(height: int, width: int, frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, frames, height, width), dtype=torch.uint8, generator=generator)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) in floats: pixel centres at half integers, edges repeated, no antialiasing."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            x = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(x)
            high = min(low + 1, old - 1)
            matrix[i, low] += 1 - (x - low)
            matrix[i, high] += x - low
        return matrix

    return weights(image.shape[0], height) @ image @ weights(image.shape[1], width).T


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((40, 61), 32, (32, 48)),
        ((61, 40), 32, (48, 32)),
        ((24, 31), 40, (40, 51)),
        ((30, 30), 17, (17, 17)),
        ((32, 50), 32, (32, 50)),
    ],
)
def test_resize_is_bilinear_and_rounds_the_long_side_down(size, short_side, expected) -> None:
    clip = random_clip_of(*size)
    resized = resize_short_side(clip, short_side)
    assert resized.dtype == torch.uint8
    assert tuple(resized.shape) == (3, 2, *expected)
    for colour in range(3):
        for time in range(2):
            exact = bilinear(clip[colour, time].numpy().astype(float), *expected)
            # Rows and columns are rounded in turn: half a level each.
            assert np.abs(resized[colour, time].numpy() - exact).max() < 1.05
    theirs = tv.resize(clip.transpose(0, 1), list(expected), antialias=False).transpose(0, 1)
    assert (resized.int() - theirs.int()).abs().max() <= 1


def test_frames_become_a_clip_rotated_ones_too() -> None:
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    clip = clip_from_frames(np.rot90(frames, axes=(1, 2)))
    assert clip.shape == (3, 2, 6, 4)
    assert clip[1, 1, 0, 2] == frames[1, 2, 5, 1]


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (20, 20), (21, 24)])
def test_three_crops_are_squares_at_start_middle_and_end(height: int, width: int) -> None:
    clip = random_clip_of(height, width)
    side, room = min(height, width), abs(height - width)
    crops = three_crops(clip)
    for crop, offset in zip(crops, (0, room // 2, room), strict=True):
        long_axis = 2 if height > width else 3
        assert torch.equal(crop, clip.narrow(long_axis, offset, side))


def test_center_crop_agrees_with_torchvision() -> None:
    clip = random_clip_of(40, 58)
    assert torch.equal(center_crop(clip, 24), tv.center_crop(clip, [24, 24]))


def test_drawn_augmentations_cover_their_ranges_evenly() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_augmentation(rng, 256, 320, 0.5) for _ in range(6500)]
    counts = np.bincount([draw.short_side - 256 for draw in draws])
    assert len(counts) == 65
    # Chi-square with 64 degrees of freedom exceeds 105 once in a thousand.
    assert ((counts - 100) ** 2 / 100).sum() < 105
    assert 0.47 < np.mean([draw.flip for draw in draws]) < 0.53
    positions = np.bincount([int(draw.top * 97) for draw in draws])
    assert len(positions) == 97
    assert not any(draw_augmentation(rng, 8, 8, 0.0).flip for _ in range(50))
    assert all(draw_augmentation(rng, 8, 8, 1.0).flip for _ in range(50))


@settings(deadline=None)
@given(
    st.integers(20, 40),
    st.integers(20, 40),
    st.integers(16, 40),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_augment_is_scale_crop_flip_of_the_whole_clip(h, w, short_side, top, left, flip) -> None:
    clip = random_clip_of(h, w)
    result = augment(clip, Augmentation(short_side, top, left, flip), 16)
    scaled = resize_short_side(clip, short_side).numpy()
    if flip:
        result = result.flip(3)
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (16, 16), axis=(2, 3))
    row, column = int(top * windows.shape[2]), int(left * windows.shape[3])
    np.testing.assert_array_equal(result.numpy(), windows[:, :, row, column])


def test_augmenting_frames_one_by_one_is_augmenting_the_clip() -> None:
    clip = random_clip_of(45, 61, frames=5)
    draw = Augmentation(37, 0.3, 0.9, True)
    singles = [augment(clip[:, t : t + 1], draw, 32) for t in range(5)]
    assert torch.equal(torch.cat(singles, dim=1), augment(clip, draw, 32))


def test_normalize_agrees_with_torchvision() -> None:
    clips = torch.stack([random_clip_of(8, 9), random_clip_of(9, 8).transpose(2, 3)])
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.225, 0.25)
    ours = normalize(clips, mean, std)
    assert ours.dtype == torch.float32
    frames = clips.permute(0, 2, 1, 3, 4).float() / 255
    theirs = tv.normalize(frames, list(mean), list(std)).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
