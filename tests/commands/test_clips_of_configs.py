"""Which clips a config trains and validates on."""

import pytest
import torch

from videogn.cli import main
from videogn.commands.setup import train_clips, val_clips
from videogn.config import ClipConfig, Config, DataConfig, TrainConfig
from videogn.data.dataset import CenterClips, RandomClips
from videogn.data.rand_augment import RandAugmentedClips

CUDA = torch.device("cuda")  # named, not used


def config_of(pixels: str = "auto", **train) -> Config:
    clip = ClipConfig(num_frames=4, short_side_min=32, short_side_max=40, crop_size=32)
    return Config(
        DataConfig(train="a", val="a", pixels=pixels), clip=clip, train=TrainConfig(**train)
    )


def test_default_clips_are_random_and_may_be_finished_on_the_device() -> None:
    for clips in (train_clips(config_of(), "train", CUDA), val_clips(config_of(), CUDA)):
        assert isinstance(clips, RandomClips)
        assert clips.planar_room == 1.0


def test_validation_clip_follows_its_key() -> None:
    config = config_of("device", val_clip="center")
    assert isinstance(val_clips(config, CUDA), CenterClips)
    assert isinstance(train_clips(config, "train", CUDA), RandomClips)


@pytest.mark.parametrize("pixels", ["auto", "cpu"])
def test_rand_augment_has_its_frames_finished_where_they_are_decoded(pixels: str) -> None:
    config = config_of(pixels, rand_augment=2)
    for clips in (train_clips(config, "train", CUDA), val_clips(config, CUDA)):
        assert isinstance(clips, RandAugmentedClips)
        assert clips.num_bytes == 4 * 32 * 32 * 3  # no room for more than finished frames
    center = config_of(pixels, rand_augment=2, val_clip="center")
    assert isinstance(val_clips(center, CUDA), CenterClips)


def test_rand_augment_on_the_device_is_refused(tiny, capsys) -> None:
    out = tiny.folder / "run"
    words = ["train", str(tiny.config), f"out={out}", "train.rand_augment=2", "data.pixels=device"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "train.rand_augment=2" in said
    assert "data.pixels=device" in said
    assert not out.exists()


def test_magnitude_is_one_of_thirty(tiny, capsys) -> None:
    assert main(["train", str(tiny.config), "train.rand_augment_magnitude=31"]) == 2
    assert "train.rand_augment_magnitude" in capsys.readouterr().err


def test_a_run_trains_on_the_one_and_validates_on_the_other(tiny, capsys) -> None:
    words = ["train.rand_augment=1", "train.val_clip=center", "train.iterations=2"]
    assert main(["train", str(tiny.config), f"out={tiny.folder / 'run'}", *words]) == 0
    assert "clips finished as they are read" in capsys.readouterr().out
