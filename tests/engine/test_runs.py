import json
from pathlib import Path

import pytest

from videogn.config import Config
from videogn.config_files import from_tree
from videogn.data.list_checks import VideoRecord
from videogn.engine.runs import RunFolder, RunLog, check_folder, claim, read_log
from videogn.errors import RunError

VIDEOS = [VideoRecord(f"/v/{name}.mp4", number, f"{name}.mp4") for number, name in enumerate("abc")]


def begun(path: Path, config: Config) -> RunFolder:
    """A run folder with a checkpoint."""
    folder = RunFolder(path)
    claim(folder, config, {"train": VIDEOS})
    folder.checkpoints.path_of(4).parent.mkdir()
    folder.checkpoints.path_of(4).write_text("")
    return folder


def test_the_same_run_may_come_back(tmp_path: Path) -> None:
    config = from_tree({"seed": 3}, "")
    folder = begun(tmp_path / "run", config)
    assert folder.holds_run
    claim(folder, config, {"train": VIDEOS})


def test_run_without_a_checkpoint_may_be_started_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    claim(folder, from_tree({"seed": 3}, ""), {"train": VIDEOS})
    RunLog(folder.log).write("start", {"iteration": 0})
    claim(folder, from_tree({"seed": 4}, ""), {"train": VIDEOS})
    assert "seed: 4" in folder.config.read_text()
    assert not folder.log.exists()


def test_best_without_last_is_kept(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", from_tree({}, ""))
    folder.checkpoints.path_of(4).rename(folder.best)
    with pytest.raises(RunError, match="no last checkpoint"):
        claim(folder, from_tree({}, ""), {"train": VIDEOS})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"model": {"norm": "bn"}}, "model.norm"),
        ({"train": {"base_lr": 0.5}}, "train.base_lr"),
        ({"model": {"num_classes": 7}}, "model.num_classes"),
    ],
)
def test_another_run_is_refused_with_the_differing_key(
    tmp_path: Path, change: dict, key: str
) -> None:
    folder = begun(tmp_path / "run", from_tree({}, ""))
    before = folder.config.read_bytes()
    with pytest.raises(RunError, match=key):
        claim(folder, from_tree(change, ""), {"train": VIDEOS})
    assert folder.config.read_bytes() == before


def test_harmless_changes_pass(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", from_tree({}, ""))
    check_folder(
        folder,
        from_tree({"data": {"num_workers": 0}, "test": {"num_clips": 3}, "out": "other"}, ""),
    )


def test_never_refuses_a_used_folder(tmp_path: Path) -> None:
    config = from_tree({"resume": "never"}, "")
    folder = begun(tmp_path / "run", config)
    with pytest.raises(RunError, match="resume=auto"):
        claim(folder, config, {"train": VIDEOS})


def test_foreign_files_and_plain_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(RunError, match="no training run"):
        claim(RunFolder(tmp_path), from_tree({}, ""), {"train": VIDEOS})
    with pytest.raises(RunError, match="is a file"):
        claim(RunFolder(tmp_path / "holiday.jpg"), from_tree({}, ""), {"train": VIDEOS})
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_damaged_config_of_a_run_is_one_message(tmp_path: Path) -> None:
    folder = begun(tmp_path, from_tree({}, ""))
    folder.config.write_text("seed: [")
    with pytest.raises(RunError, match=r"config\.yaml"):
        check_folder(folder, from_tree({}, ""))


def test_picture_of_a_start_that_left_no_checkpoint_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.percentiles.write_bytes(b"of a run that is gone")
    claim(folder, from_tree({}, ""), {"train": VIDEOS})
    assert not folder.percentiles.exists()


def test_layer_that_is_looked_at_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    folder = begun(tmp_path, from_tree({}, ""))
    check_folder(folder, from_tree({"train": {"percentile_layer": "features.40"}}, ""))


def test_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write("start", {"iteration": 0})
    for iteration in (10, 20, 30):
        log.write("train", {"iteration": iteration, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"kind": "train", "iter')  # killed while writing
    log.cut_after(20, {})
    assert [entry["iteration"] for entry in read_log(path)] == [0, 10, 20]
    assert all(json.loads(line) for line in path.read_text().splitlines())
