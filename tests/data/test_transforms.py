import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.transforms import (
    Augmentation,
    center_box,
    draw_area_box,
    draw_augmentation,
    normalize,
    scale_into,
    scaled_size,
    source_box,
    square_boxes,
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
def test_scale_is_bilinear_and_rounds_the_long_side_down(size, short_side, expected) -> None:
    clip = random_clip_of(*size)
    assert scaled_size(*size, short_side) == expected
    images = np.empty((2, *expected, 3), np.uint8)
    for image, source in zip(images, clip.permute(1, 2, 3, 0).numpy(), strict=True):
        scale_into(image, source)
    scaled = torch.from_numpy(images).permute(3, 0, 1, 2)
    assert scaled.dtype == torch.uint8
    assert tuple(scaled.shape) == (3, 2, *expected)
    for colour in range(3):
        for time in range(2):
            exact = bilinear(clip[colour, time].numpy().astype(float), *expected)
            # Rows and columns are rounded in turn: half a level each.
            assert np.abs(scaled[colour, time].numpy() - exact).max() < 1.05
    theirs = tv.resize(clip.transpose(0, 1), list(expected), antialias=False).transpose(0, 1)
    assert (scaled.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (20, 20), (21, 24)])
def test_square_boxes_begin_at_their_places_along_the_longer_side(height: int, width: int) -> None:
    clip = random_clip_of(height, width)
    side, room = min(height, width), abs(height - width)
    places = (0, room, room // 2)
    for box, offset in zip(square_boxes(height, width, places), places, strict=True):
        long_axis = 2 if height > width else 3
        expected = clip.narrow(long_axis, offset, side)
        assert torch.equal(clip[:, :, box.rows, box.columns], expected)


def test_center_box_agrees_with_torchvision() -> None:
    clip = random_clip_of(40, 58)
    box = center_box(40, 58, 24)
    assert torch.equal(clip[:, :, box.rows, box.columns], tv.center_crop(clip, [24, 24]))


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


@given(
    st.integers(20, 400),
    st.integers(20, 400),
    st.integers(256, 320),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_source_box_is_what_scaling_and_cropping_would_use(h, w, short_side, top, left) -> None:
    box = source_box(Augmentation(short_side, top, left, False), h, w, 224)
    assert box.height == box.width
    assert 0 <= box.top <= h - box.height
    assert 0 <= box.left <= w - box.width
    assert box.top % 2 == box.left % 2 == 0
    # The crop's share of the shorter side is that of the scaled frame, to two pixels of the frame.
    expected = 224 / short_side * min(h, w)
    assert abs(box.height - expected) <= 1 or box.height == min(h, w)


def test_every_position_of_the_box_is_drawn_evenly() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_augmentation(rng, 24, 24, 0.5) for _ in range(4000)]
    boxes = [source_box(draw, 24, 30, 16) for draw in draws]
    counts = np.zeros((5, 8))
    for box in boxes:
        counts[box.top // 2, box.left // 2] += 1
    # Chi-square with 39 degrees of freedom exceeds 73 once in a thousand.
    assert ((counts - 100) ** 2 / 100).sum() < 73


def test_box_of_a_crop_larger_than_the_scaled_frame_is_the_whole_side() -> None:
    assert source_box(Augmentation(100, 0.5, 0.5, False), 40, 60, 224) == (0, 10, 40, 40)


@pytest.mark.parametrize("size", [(24, 24), (30, 41), (60, 50)])
@pytest.mark.parametrize("mirror", [False, True])
def test_scaled_into_its_place_and_mirrored(size, mirror) -> None:
    image = random_clip_of(30, 41)[:, 0].permute(1, 2, 0).numpy()
    clip = np.zeros((3, *size, 3), np.uint8)
    scale_into(clip[1], image, mirror=mirror)
    assert not clip[[0, 2]].any()
    expected = np.empty((*size, 3), np.uint8)
    scale_into(expected, image)
    assert np.array_equal(clip[1], expected[:, ::-1] if mirror else expected)


def test_images_of_any_strides_are_scaled() -> None:
    image = random_clip_of(31, 40)[:, 0].permute(1, 2, 0).numpy()
    turned, expected = np.empty((24, 20, 3), np.uint8), np.empty((24, 20, 3), np.uint8)
    scale_into(turned, np.rot90(image))
    scale_into(expected, np.ascontiguousarray(np.rot90(image)))
    assert np.array_equal(turned, expected)


def test_normalized_clips_have_their_colours_first_in_memory() -> None:
    clips = random_clip_of(8, 9).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)[None]
    assert normalize(clips, (0.4,) * 3, (0.2,) * 3).is_contiguous()


def test_normalize_agrees_with_torchvision() -> None:
    clips = torch.stack([random_clip_of(8, 9), random_clip_of(9, 8).transpose(2, 3)])
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.225, 0.25)
    ours = normalize(clips, mean, std)
    assert ours.dtype == torch.float32
    frames = clips.permute(0, 2, 1, 3, 4).float() / 255
    theirs = tv.normalize(frames, list(mean), list(std)).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32))
def test_random_area_lies_in_the_frame_and_in_its_range(height, width, seed) -> None:
    box = draw_area_box(np.random.default_rng(seed), height, width)
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    if box == center_box(height, width, min(height, width)):
        return
    # Sides are rounded to pixels: half of one more or less.
    tall, wide = (np.array([side - 0.5, side + 0.5]) for side in (box.height, box.width))
    assert (tall * wide)[1] >= 0.08 * height * width
    assert (tall * wide)[0] <= height * width
    assert wide[1] / tall[0] >= 3 / 4
    assert wide[0] / tall[1] <= 4 / 3


def test_random_area_has_the_distribution_of_its_definition() -> None:
    """Against a plain loop over its definition, on a frame where few draws do not fit in."""
    rng = np.random.default_rng(1)
    wanted = []
    while len(wanted) < 4000:
        area, aspect = rng.uniform(0.08, 1), rng.uniform(3 / 4, 4 / 3)
        sides = np.sqrt([area * aspect, area / aspect])[:: rng.choice([1, -1])]
        if max(sides) <= 1:
            wanted.append([*sides, *(rng.random(2) * (1 - sides))])
    rng = np.random.default_rng(2)
    boxes = [draw_area_box(rng, 1000, 1000) for _ in range(4000)]
    found = [[b.width / 1000, b.height / 1000, b.left / 1000, b.top / 1000] for b in boxes]
    assert np.allclose(np.mean(found, 0), np.mean(wanted, 0), atol=0.015)
    shares = [np.percentile(values, [5, 25, 50, 75, 95], axis=0) for values in (found, wanted)]
    assert np.allclose(*shares, atol=0.03)


@pytest.mark.parametrize(("height", "width"), [(30, 900), (900, 30)])
def test_a_frame_too_narrow_for_random_area_gives_its_middle_square(height, width) -> None:
    boxes = [draw_area_box(np.random.default_rng(seed), height, width) for seed in range(200)]
    squares = [box for box in boxes if box == center_box(height, width, 30)]
    assert len(squares) > 150
