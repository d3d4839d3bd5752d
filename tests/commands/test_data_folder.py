from pathlib import Path

import pytest

from videogn.commands.data_folder import data_words
from videogn.errors import ConfigError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True)
    return folder


def words(folder: Path, *, tests_on_val: bool = True) -> dict[str, str]:
    found = (word.split("=") for word in data_words(folder, tests_on_val=tests_on_val))
    return {key: str(Path(value).relative_to(folder)) for key, value in found}


def test_class_folder_trees(tmp_path) -> None:
    found = words(make(tmp_path, "train", "val", "test"))
    assert found == {"data.train": "train", "data.val": "val", "data.test": "val"}


def test_a_test_split_is_taken_where_it_has_labels(tmp_path) -> None:
    make(tmp_path, "train", "val", "test")
    assert words(tmp_path, tests_on_val=False)["data.test"] == "test"


def test_lists_come_before_the_folders_of_their_videos(tmp_path) -> None:
    make(tmp_path, "train", "val", "train.csv", "validate.csv")
    assert words(tmp_path) == {
        "data.train": "train.csv",
        "data.val": "validate.csv",
        "data.test": "validate.csv",
    }


def test_annotations_of_cvdf_have_the_data_sets_folder_for_their_root(tmp_path) -> None:
    make(tmp_path, "train", "val", "annotations/train.csv", "annotations/val.csv")
    found = words(tmp_path)
    assert found["data.train"] == "annotations/train.csv"
    assert found["data.root"] == "."


def test_prepared_folders_bring_their_class_names(tmp_path) -> None:
    make(tmp_path, "train/list.txt", "train/class_names.txt", "val/list.txt", "val/class_names.txt")
    found = words(tmp_path)
    assert found["data.train"] == "train/list.txt"
    assert found["data.class_names"] == "train/class_names.txt"
    assert "data.root" not in found


def test_a_split_that_is_named_is_not_looked_for(tmp_path) -> None:
    make(tmp_path, "train", "val.csv", "val.txt")
    given = {"data.val": str(tmp_path / "val.txt")}
    found = data_words(tmp_path, tests_on_val=True, given=given)
    assert found[1:] == [f"data.{split}={tmp_path}/val.txt" for split in ("val", "test")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train"], "has no val split: .* validation .*data.val=PATH"),
        (["val"], "has no train split"),
        (["train", "val.csv", "val.txt"], "val.csv and val.txt may both be the val split"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path, names, message) -> None:
    with pytest.raises(ConfigError, match=message):
        data_words(make(tmp_path, *names), tests_on_val=True)


def test_no_folder(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        data_words(tmp_path / "gone", tests_on_val=True)
