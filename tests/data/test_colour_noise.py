import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from videogn.data.colour_noise import ColourNoise

CHANGES = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)


def clip(frames: int = 1, low: int = 90, high: int = 160) -> np.ndarray:
    return np.random.default_rng(5).integers(low, high, (frames, 20, 30, 3), dtype=np.uint8)


def changed(images: np.ndarray, seed: int, jitter: float, lighting: float) -> np.ndarray:
    images = images.copy()
    ColourNoise(jitter, lighting)(images, np.random.default_rng(seed))
    return images


@pytest.mark.parametrize("seed", range(8))
def test_jitter_is_torchvisions_where_nothing_is_cut_off(seed) -> None:
    rng = np.random.default_rng(seed)
    wanted = torch.from_numpy(clip()[0]).permute(2, 0, 1) / 255
    orders = rng.permutation(3)
    for kind in orders:
        wanted = CHANGES[kind](wanted, float(rng.uniform(0.7, 1.3)))
    wanted = (255 * wanted).permute(1, 2, 0).numpy()
    # torchvision's grey has rounded shares.
    assert np.abs(changed(clip(), seed, 0.3, 0)[0] - wanted).max() < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_lighting_is_alexnets(seed) -> None:
    shares = np.random.default_rng(seed).normal(0, 0.1, 3)
    values = (0.2175, 0.0188, 0.0045)
    vectors = (
        (-0.5675, -0.5808, -0.5836),
        (0.7192, -0.0045, -0.6948),
        (0.4009, -0.8140, 0.4203),
    )
    found = changed(clip(), seed, 0, 0.1).astype(float) - clip()
    for colour in range(3):
        added = sum(shares[i] * values[i] * vectors[i][colour] for i in range(3))
        assert np.all(np.abs(found[..., colour] - 255 * added) <= 0.5 + 1e-3)


def test_lighting_follows_jitter() -> None:
    both, jitter = (changed(clip(), 3, 0.2, share).astype(float) for share in (0.1, 0))
    added = (both - jitter).reshape(-1, 3)
    assert np.ptp(added, axis=0).max() <= 1
    assert np.abs(added).max() > 1


def test_all_frames_go_through_one_map() -> None:
    """A colour that two frames share is the same in both, whatever else they show."""
    images = clip(3)
    images[1:] //= 2
    images[:, 0, 0] = (30, 140, 220)
    found = changed(images, 1, 0.4, 0.1)
    assert np.all(found[:, 0, 0] == found[0, 0, 0])
    assert not np.array_equal(found[0, 0, 0], (30, 140, 220))


def test_what_leaves_the_range_is_cut_off() -> None:
    images = clip(1, 0, 256)
    images[0, 0, :2] = [[0, 0, 0], [255, 255, 255]]
    seeds = [changed(images, seed, 1.0, 0.5) for seed in range(20)]
    assert {0, 255} <= set(np.stack(seeds).ravel().tolist())
    # A white pixel made darker stays grey without lighting: nothing wraps round.
    for seed in range(20):
        white = changed(images, seed, 0.4, 0)[0, 0, 1]
        assert np.ptp(white) <= 1
        assert white.min() > 100


def test_nothing_asked_for_changes_nothing() -> None:
    assert np.array_equal(changed(clip(1, 0, 256), 0, 0, 0), clip(1, 0, 256))
