"""Which clips a config trains and validates on."""

import pytest
import torch

from videogn.cli import main
from videogn.commands.setup import train_clips, val_clips
from videogn.config import ClipConfig, Config, DataConfig, TrainConfig
from videogn.data.changed import ChangedClips
from videogn.data.clips import CenterClips, RandomClips

CUDA = torch.device("cuda")  # named, not used


def config_of(pixels: str = "auto", **train) -> Config:
    clip = ClipConfig(
        num_frames=4,
        short_side_min=32,
        short_side_max=40,
        crop_size=32,
        augmentation=train.pop("augmentation", "scale"),
    )
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


FINISHING = [
    {"rand_augment": 2},
    {"color_jitter": 0.4},
    {"lighting": 0.1},
    {"augmentation": "area"},
]


@pytest.mark.parametrize("pixels", ["auto", "cpu"])
@pytest.mark.parametrize("setting", FINISHING, ids=lambda setting: next(iter(setting)))
def test_what_changes_frames_has_them_finished_where_they_are_decoded(pixels, setting) -> None:
    config = config_of(pixels, **setting)
    for clips in (train_clips(config, "train", CUDA), val_clips(config, CUDA)):
        assert isinstance(clips, RandomClips if "augmentation" in setting else ChangedClips)
        assert clips.num_bytes == 4 * 32 * 32 * 3
        assert getattr(clips, "_clips", clips).planar_room == 0
    center = config_of(pixels, val_clip="center", **setting)
    assert isinstance(val_clips(center, CUDA), CenterClips)


@pytest.mark.parametrize("setting", FINISHING, ids=lambda setting: next(iter(setting)))
def test_what_changes_frames_is_refused_on_the_device(setting, tiny, capsys) -> None:
    out = tiny.folder / "run"
    [(name, value)] = setting.items()
    word = f"{'clip' if name == 'augmentation' else 'train'}.{name}={value}"
    assert main(["train", str(tiny.config), f"out={out}", word, "data.pixels=device"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert word in said
    assert "data.pixels=device" in said
    assert not out.exists()


def test_magnitude_is_one_of_thirty(tiny, capsys) -> None:
    assert main(["train", str(tiny.config), "train.rand_augment_magnitude=31"]) == 2
    assert "train.rand_augment_magnitude" in capsys.readouterr().err


def test_a_run_trains_on_the_one_and_validates_on_the_other(tiny, capsys) -> None:
    words = ["train.rand_augment=1", "train.val_clip=center", "train.iterations=2"]
    assert main(["train", str(tiny.config), f"out={tiny.folder / 'run'}", *words]) == 0
    assert "clips finished as they are read" in capsys.readouterr().out
