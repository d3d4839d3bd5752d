"""Training and testing a 2D network on a tree of still images, as on ImageNet."""

import json
from pathlib import Path

import pytest
from picture_files import encoded, image_tree, picture

from videogn.cli import main

CONFIG = """
data: {train: TRAIN, val: VAL, test: VAL, num_workers: 0}
model: {arch: resnet50, norm: gn, channels_per_group: 2, num_classes: 3, width: 8,
  depths: [1, 1], dropout: 0.0}
clip: {num_frames: 1, frame_stride: 1, short_side_min: 36, short_side_max: 36, crop_size: 32,
  augmentation: area}
train: {clips_per_gpu: 6, base_batch: 6, base_lr: 0.1, iterations: 12, log_interval: 6,
  val_interval: 12, checkpoint_interval: 12, val_clip: center, color_jitter: 0.2, lighting: 0.05}
test: {protocol: center, num_clips: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    sizes = [(60, 80), (90, 50), (40, 40), (36, 200)]
    train = image_tree(tmp_path / "train", 3, 8, lambda number: sizes[number % 4])
    val = image_tree(tmp_path / "val", 3, 4, lambda number: sizes[number % 4])
    path = tmp_path / "images.yaml"
    path.write_text(CONFIG.replace("TRAIN", str(train)).replace("VAL", str(val)))
    return path


def test_a_tree_of_images_is_trained_on_and_tested(config: Path, capsys) -> None:
    out = config.parent / "run"
    longer = [f"train.{key}=40" for key in ("iterations", "val_interval", "checkpoint_interval")]
    assert main(["train", str(config), f"out={out}", *longer]) == 0
    assert "clips finished as they are read" in capsys.readouterr().out
    words = ["test", str(config), f"out={out}", "--checkpoint", str(out)]
    assert main(words) == 0
    [results] = out.rglob("results.json")
    found = json.loads(results.read_text())
    assert found["num_videos"] == 12
    assert found["num_failed"] == 0
    # Classes differ by their colour alone, which forty steps tell apart.
    assert found["top1"] > 60


def test_the_same_run_twice_has_the_same_weights(config: Path) -> None:
    folders = [config.parent / name for name in ("a", "b")]
    for number, out in enumerate(folders):
        words = ["train.iterations=2", "data.val=''", f"data.num_workers={number}"]
        assert main(["train", str(config), f"out={out}", *words]) == 0
    losses = [
        [line for line in (out / "log.jsonl").read_text().splitlines() if '"loss"' in line]
        for out in folders
    ]
    assert losses[0]
    assert [json.loads(x)["loss"] for x in losses[0]] == [json.loads(x)["loss"] for x in losses[1]]


def test_a_bad_image_is_replaced_in_training_and_counted_in_the_test(config, capsys) -> None:
    folder, out = config.parent, config.parent / "run"
    (folder / "train/n0001/n0001_3.JPEG").write_bytes(b"no image")
    (folder / "val/n0002/n0002_0.JPEG").write_bytes(encoded(picture(), "JPEG")[:300])
    assert main(["train", str(config), f"out={out}", "train.max_failed_fraction=0.5"]) == 0
    told = capsys.readouterr()
    assert "n0001_3.JPEG: no JPEG, PNG or WebP image" in told.out + told.err
    assert main(["test", str(config), f"out={out}", "--checkpoint", str(out)]) in (0, 1)
    [results] = out.rglob("results.json")
    assert json.loads(results.read_text())["num_failed"] == 1


def test_data_commands_take_a_tree_of_images(config: Path, capsys) -> None:
    folder = config.parent
    tree = str(folder / "val")
    (folder / "val/n0002/n0002_0.JPEG").write_bytes(encoded(picture(), "JPEG")[:300])
    assert main(["data", "check", tree, "--out", str(folder / "check"), "--workers", "1"]) == 1
    report = json.loads((folder / "check/report.json").read_text())
    assert (report["num_files"], report["num_ok"]) == (12, 11)
    assert report["files"][0]["reason"] == "truncated"
    assert main(["data", "stats", tree, "--workers", "1"]) == 0
    assert "jpeg (11)" in capsys.readouterr().out
    assert main(["data", "index", tree, "--workers", "1"]) == 0
    assert "an image" in capsys.readouterr().out
    assert main(["data", "show", str(config), "--num", "3", "--out", str(folder / "a.png")]) == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("train.color_jitter=1.5", "train.color_jitter"),
        ("train.lighting=-0.1", "train.lighting"),
        ("clip.augmentation=areal", "did you mean 'area'?"),
        ("data.pixels=device", "clip.augmentation=scale"),
        ("clip.num_frames=2", "clip.num_frames=1"),
        ("model.num_classes=4", "set model.num_classes=3"),
    ],
)
def test_wrong_inputs_give_one_message(word, told, config: Path, capsys) -> None:
    out = config.parent / "run"
    assert main(["train", str(config), f"out={out}", word]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_an_empty_tree_gives_one_message(config: Path, capsys) -> None:
    for path in (config.parent / "train").rglob("*.JPEG"):
        path.unlink()
    assert main(["train", str(config), f"out={config.parent / 'run'}"]) == 2
    assert "names no video" in capsys.readouterr().err
