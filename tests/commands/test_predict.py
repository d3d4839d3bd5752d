import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_setup

from videogn.cli import main
from videogn.commands import predict


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("predict")
    setup = tiny_setup(folder, tiny_data)
    assert main(["train", str(setup.config), f"out={folder / 'run'}", "train.iterations=2"]) == 0
    return setup, folder / "run"


@pytest.fixture
def words(trained, tmp_path: Path) -> list[str]:
    run = trained[1]
    config = ["predict", str(run / "config.yaml"), "--checkpoint", str(run)]
    return [*config, "--out", str(tmp_path / "out.csv")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def videos_of(trained) -> list[Path]:
    setup, _ = trained
    names = [line.split()[0] for line in setup.val_list.read_text().splitlines()]
    return [setup.val_list.parent / name for name in names]


def error_of(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("average", ["prob", "max", "logit"])
def test_the_classes_are_those_of_the_test(
    trained, words: list[str], average: str, tmp_path, capsys
) -> None:
    """Of the same videos, from what ``videogn test`` keeps of every view."""
    run, videos = trained[1], videos_of(trained)
    paths = [str(path) for path in videos]
    assert main([*words, "--top", "4", "--average", average, "--videos", *paths]) == 0
    assert f"wrote {tmp_path / 'out.csv'}: 4 classes of 7 videos (0 failed)" in (
        capsys.readouterr().out
    )
    out = tmp_path / "test"
    command = ["test", str(run / "config.yaml"), "--checkpoint", str(run), "--out", str(out)]
    assert main([*command, "--average", average]) == 0
    with np.load(out / "scores.npz") as scores:
        expected = scores["probs"].astype(np.float64)
    if average == "logit":
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    rows = rows_of(tmp_path / "out.csv")
    assert [row["video"] for row in rows] == [path for path in paths for _ in range(4)]
    names = json.loads((out / "results.json").read_text())["class_names"]
    for place, scored in enumerate(expected):
        mine = rows[4 * place : 4 * place + 4]
        order = np.argsort(-scored, kind="stable")
        assert [int(row["label"]) for row in mine] == order.tolist()
        assert [row["rank"] for row in mine] == ["1", "2", "3", "4"]
        np.testing.assert_allclose([float(row["score"]) for row in mine], scored[order], atol=1e-6)
        assert [row["class"] for row in mine] == [names[i] if names else "" for i in order]


def test_folders_are_taken_whole_and_bad_videos_are_told(
    trained, words: list[str], tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "films"
    (folder / "more").mkdir(parents=True)
    good = videos_of(trained)[0]
    shutil.copy(good, folder / "more" / "a.mp4")
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    twice = str(good.parent / ".." / good.parent.name / good.name)
    assert main([*words, "--top", "1", "--videos", str(folder), str(good), twice]) == 0
    rows = rows_of(tmp_path / "out.csv")
    assert [row["video"] for row in rows] == [
        str(folder / "bad.mp4"),
        str(folder / "more" / "a.mp4"),
        str(good),
    ]
    assert rows[0]["reason"]
    assert rows[0]["rank"] == rows[0]["score"] == ""
    assert rows[1]["score"] == rows[2]["score"] != ""
    printed = capsys.readouterr().out
    assert f"{folder / 'bad.mp4'}: failed: " in printed
    assert "1 classes of 3 videos (1 failed)" in printed
    assert not (tmp_path / "out.csv.partial").exists()


def test_names_of_classes(trained, words: list[str], tmp_path: Path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_text("jumping\nsitting\nwalking\nwaving\n")
    video = str(videos_of(trained)[0])
    asked = [*words, "--top", "2", f"data.class_names={names}", "--videos", video]
    assert main(asked) == 0
    rows = rows_of(tmp_path / "out.csv")
    listed = names.read_text().splitlines()
    assert [row["class"] for row in rows] == [listed[int(row["label"])] for row in rows]
    assert f"{video}: {rows[0]['class']} " in capsys.readouterr().out


def test_wrong_inputs_are_one_message(trained, words: list[str], tmp_path: Path, capsys) -> None:
    video = str(videos_of(trained)[0])
    (tmp_path / "empty").mkdir()
    assert "absent.mp4: no such file" in error_of(capsys, *words, "--videos", "absent.mp4")
    message = error_of(capsys, *words, "--videos", tmp_path / "empty")
    assert "a folder without videos" in message
    for top in (0, 5, -1):
        message = error_of(capsys, *words, "--top", top, "--videos", video)
        assert f"--top {top}: a number from 1 to the network's 4 classes" in message
    (tmp_path / "out.csv").write_text("mine")
    message = error_of(capsys, *words, "--videos", video)
    assert "out.csv: is there already; choose another --out or remove it" in message
    assert (tmp_path / "out.csv").read_text() == "mine"
    (tmp_path / "out.csv").unlink()
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    message = error_of(capsys, *words, "--videos", bad)
    assert "none of its 1 videos could be read" in message
    # Mended, the same command reads it.
    bad.write_bytes(Path(video).read_bytes())
    assert main([*words, "--videos", str(bad)]) == 0
    assert rows_of(tmp_path / "out.csv")[0]["rank"] == "1"


def test_a_job_that_ended_early_ends_once_more(
    trained, words: list[str], tmp_path: Path, monkeypatch
) -> None:
    """Killed while it wrote: the scores are kept, and what it wrote is no other's."""
    video = str(videos_of(trained)[0])
    with monkeypatch.context() as patch:
        patch.setattr(predict, "best", None)
        assert main([*words, "--videos", video]) != 0
    assert (tmp_path / "out.csv.partial").exists()
    (tmp_path / "out.csv").write_text("whole or not")
    monkeypatch.setattr(predict, "class_scores", None)  # nothing is scored again
    assert main([*words, "--videos", video]) == 0
    assert rows_of(tmp_path / "out.csv")[0]["video"] == video
    assert not (tmp_path / "out.csv.partial").exists()


@pytest.mark.dist
def test_ranks_write_what_one_process_writes(trained, words: list[str], tmp_path: Path) -> None:
    paths = ["test.precision=fp32", "--videos", *map(str, videos_of(trained))]
    assert main([*words, *paths]) == 0
    out = tmp_path / "two.csv"
    more = [*words[:-2], "--out", str(out), "--gpus", "2", *paths]
    command = [sys.executable, "-m", "videogn", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    alone, together = rows_of(tmp_path / "out.csv"), rows_of(out)
    assert [row["video"] for row in together] == [row["video"] for row in alone]
    scores = [[float(row["score"]) for row in rows] for rows in (alone, together)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
