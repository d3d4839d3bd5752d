"""What becomes of a run whose folder, disk, config or lists are not as they should be."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from videogn.cli import main
from videogn.engine.lock import run_lock
from videogn.engine.runs import RunFolder
from videogn.models.weights import read_info, read_weights


@pytest.fixture
def failing(tiny, capsys):
    """Runs ``videogn train`` of the tiny config, which must fail, and returns its message."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main(["train", str(tiny.config), *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("videogn: error:") == 1
        return error

    return run


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own small file system; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoints_before_intact(tiny, mounted: Path, failing) -> None:
    out = mounted / "run"
    words = [f"out={out}", "train.checkpoint_interval=1", "train.keep_checkpoints=99"]
    message = failing(*words, "train.iterations=400", "data.val=''")
    assert "cannot be written: " in message
    assert f"(0 MiB free in {out}" in message
    checkpoints = RunFolder(out).checkpoints
    told: list[str] = []
    newest = checkpoints.newest_sound(told.append)
    assert newest is not None
    assert told == []
    assert not list(checkpoints.folder.glob(".*"))
    # With room again the run goes on.
    iteration = read_weights(newest).training["iteration"]
    more = ["train.keep_checkpoints=2", f"train.iterations={iteration + 1}", "data.val=''"]
    checkpoints.drop_all_but(1)
    assert main(["train", str(tiny.config), *words, *more]) == 0


def test_a_read_only_folder_is_refused_before_anything_is_trained(
    tiny, mounted: Path, failing
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    message = failing(f"out={mounted / 'run'}")
    assert "cannot be written: Read-only file system" in message


def test_a_second_run_into_a_folder_is_refused(tiny, failing, capsys) -> None:
    out = tiny.folder / "run"
    with run_lock(RunFolder(out).lock):
        message = failing(f"out={out}")
        assert f"another run is at work here: process {os.getpid()} on " in message
    assert main(["train", str(tiny.config), f"out={out}"]) == 0


def changed(lines: list[str], change: str) -> list[str]:
    first, *rest = lines
    path, label = first.rsplit(" ", 1)
    return {
        "label": [f"{path} {(int(label) + 1) % 4}", *rest],
        "gone": rest,
        "order": [*rest, first],
    }[change]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("label", r"1 with another label: "),
        ("gone", r"1 gone: "),
        ("order", "the order of its videos differs"),
    ],
)
def test_another_list_is_refused_with_what_differs(tiny, failing, change: str, said: str) -> None:
    out, listed = tiny.folder / "run", tiny.folder / "list.txt"
    listed.write_text(tiny.train_list.read_text())
    words = [f"out={out}", f"data.train={listed}", f"data.root={tiny.train_list.parent}"]
    words += ["data.val=''", "train.iterations=2"]
    assert main(["train", str(tiny.config), *words]) == 0
    before = RunFolder(out).last.read_bytes()
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(changed(lines, change)))
    message = failing(*words, "train.iterations=4")
    assert "data.train is not the list that the run began with" in message
    assert said in message
    assert RunFolder(out).last.read_bytes() == before


def test_the_same_videos_may_have_moved(tiny) -> None:
    out, moved = tiny.folder / "run", tiny.folder / "moved"
    words = ["train", str(tiny.config), f"out={out}", "data.val=''"]
    assert main([*words, "train.iterations=2"]) == 0
    moved.symlink_to(tiny.train_list.parent)
    there = [f"data.train={moved / tiny.train_list.name}", "train.iterations=3"]
    assert main([*words, *there]) == 0
    assert read_weights(RunFolder(out).last).training["iteration"] == 3


def test_a_run_may_be_made_longer_but_not_shorter_than_it_is(tiny, failing) -> None:
    out = tiny.folder / "run"
    words = ["train", str(tiny.config), f"out={out}", "data.val=''"]
    assert main([*words, "train.iterations=4"]) == 0
    assert "has 4 iterations already" in failing(f"out={out}", "train.iterations=3")
    assert main([*words, "train.iterations=6"]) == 0
    assert read_weights(RunFolder(out).last).training["iteration"] == 6


def test_weights_of_other_classes_are_fine_tuned_with_a_fresh_classifier(tiny) -> None:
    first, second = tiny.folder / "first", tiny.folder / "second"
    words = ["train", str(tiny.config), "data.val=''", "train.iterations=1"]
    assert main([*words, f"out={first}"]) == 0
    weights = RunFolder(first).last
    # Nothing is trained but the classifier: the rest stays what it was.
    frozen = 'train.freeze=["blocks.0","blocks.1","blocks.2","blocks.3"]'
    more = [f"model.weights={weights}", "model.num_classes=6", frozen]
    assert main([*words, *more, f"out={second}"]) == 0
    old, new = read_weights(weights).state, read_weights(RunFolder(second).last).state
    assert read_info(RunFolder(second).last).spec.num_classes == 6
    for name, tensor in old.items():
        if name.startswith("blocks.4.proj"):
            assert new[name].shape[0] == 6
        else:
            assert torch.equal(new[name], tensor), name


def test_another_backbone_is_refused(tiny, failing) -> None:
    first = tiny.folder / "first"
    words = ["train", str(tiny.config), "data.val=''", "train.iterations=1"]
    assert main([*words, f"out={first}"]) == 0
    weights = f"model.weights={RunFolder(first).last}"
    message = failing(weights, "model.num_classes=6", "model.width=8", f"out={tiny.folder / 'x'}")
    assert "model.width is 8 but the file has 4" in message
    assert "num_classes" not in message


def test_every_option_of_the_recipe_trains(tiny) -> None:
    """Together, as a user who fine-tunes may have them; each is measured elsewhere."""
    out = tiny.folder / "run"
    options = {
        "train.schedule": "cosine",
        "train.label_smoothing": 0.1,
        "train.mixup_alpha": 0.8,
        "train.cutmix_alpha": 1.0,
        "train.rand_augment": 2,
        "train.clip_norm": 5.0,
        "train.ema_decay": 0.9,
        "train.accumulation": 2,
        "train.precision": "bf16",
        "train.memory_format": "channels_last_3d",
        "train.val_clip": "center",
    }
    words = [f"{key}={value}" for key, value in options.items()]
    assert main(["train", str(tiny.config), f"out={out}", *words]) == 0
    assert main(["test", str(out / "config.yaml"), "--checkpoint", str(out)]) == 0
