"""A training run of seconds, for the tests of commands and of launching."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from videogn.data.synthetic import MOTIONS, render_motion_dataset

TINY = """
data: {train: TRAIN, val: VAL, test: VAL, num_workers: 0}
model: {norm: gn, channels_per_group: 2, num_classes: 4, width: 4, depths: [1, 1], dropout: 0.2}
clip: {num_frames: 8, frame_stride: 1, short_side_min: 32, short_side_max: 40, crop_size: 32}
train: {clips_per_gpu: 4, base_batch: 4, base_lr: 0.05, iterations: 6, log_interval: 2,
  val_interval: 3, checkpoint_interval: 2}
test: {num_clips: 3}
"""


@dataclass(frozen=True)
class TinySetup:
    """A config of seconds, and lists of real encoded videos for it."""

    folder: Path
    config: Path
    train_list: Path
    val_list: Path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_data")
    render_motion_dataset(folder, {"train": 3 * len(MOTIONS), "val": 7}, seed=5)
    return folder


def tiny_setup(folder: Path, data: Path) -> TinySetup:
    """The config in ``folder``, of the videos of ``data``."""
    train_list, val_list = data / "motion_train.txt", data / "motion_val.txt"
    config = folder / "tiny.yaml"
    config.write_text(TINY.replace("TRAIN", str(train_list)).replace("VAL", str(val_list)))
    return TinySetup(folder, config, train_list, val_list)


@pytest.fixture
def tiny(tmp_path: Path, tiny_data: Path) -> TinySetup:
    return tiny_setup(tmp_path, tiny_data)
