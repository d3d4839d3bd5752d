import hashlib
import json
import shutil
from pathlib import Path

import pytest

from videogn.cli import main
from videogn.commands import data_check
from videogn.data import checking, processes
from videogn.data.annotations import read_videos

pytestmark = pytest.mark.dist


@pytest.fixture
def videos(make_video, tmp_path):
    """A folder of sound and damaged videos, and the list of them."""
    for i in range(3):
        make_video(f"data/{i}.mp4", 8 + i)
    folder = tmp_path / "data"
    cut = make_video("data/cut.mkv", 10)
    cut.write_bytes(cut.read_bytes()[:-2000])
    (folder / "text.mp4").write_text("nothing")
    shutil.copy(folder / "0.mp4", folder / "copy.mp4")
    lines = ["0.mp4 0", "1.mp4 1", "2.mp4 7", "cut.mkv 0", "text.mp4 2", "copy.mp4 1"]
    lines += ["gone.mp4 2", "1.mp4 x"]
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def state(folder: Path) -> dict:
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def check(*words: object) -> int:
    return main(["data", "check", *map(str, words), "--workers", "1"])


def test_every_fault_is_told_and_the_rest_makes_a_clean_list(videos, tmp_path, capsys):
    before, out, folder = state(videos.parent), tmp_path / "new" / "out", videos.parent
    assert check(videos, "--out", out, "--num-classes", 3) == 1
    assert state(folder) == before
    report = json.loads((out / "report.json").read_text())
    assert list(report) == ["num_files", "num_ok", "files", "summary"]
    assert (report["num_files"], report["num_ok"]) == (8, 2)
    assert [(f["path"], f["reason"]) for f in report["files"]] == [
        (str(folder / "2.mp4"), "label_range"),
        (str(folder / "cut.mkv"), "truncated"),
        (str(folder / "text.mp4"), "unreadable"),
        (str(folder / "copy.mp4"), "duplicate_content"),
        (str(folder / "gone.mp4"), "missing"),
        (str(folder / "1.mp4"), "label_range"),
    ]
    assert str(folder / "0.mp4") in report["files"][3]["detail"]
    assert report["summary"]["label_range"] == {"count": 2, "percent": 25.0}
    clean = read_videos(str(out / "clean.txt"), num_classes=3)
    assert [(r.name, r.label) for r in clean.records] == [
        (str(folder / "0.mp4"), 0),
        (str(folder / "1.mp4"), 1),
    ]
    printed = capsys.readouterr().out
    assert "8 videos: 2 sound, 6 faulty" in printed
    assert "label_range              2    25.00" in printed
    assert "class 2: 2 of 2 (100.0 %)" in printed
    assert f"  - {folder / 'gone.mp4'}: missing: no such file" in printed


def test_a_clean_list_ends_in_0_and_a_second_run_decodes_nothing(
    videos, tmp_path, capsys, monkeypatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert check(videos, "--out", first, "--num-classes", 3) == 1
    assert check(first / "clean.txt", "--out", second) == 0
    assert "2 videos: 2 sound, 0 faulty" in capsys.readouterr().out
    assert json.loads((second / "report.json").read_text()) == {
        "num_files": 2,
        "num_ok": 2,
        "files": [],
        "summary": {},
    }

    def decode_none(work, paths, pool, **options):
        assert list(paths) == []
        return iter(())

    monkeypatch.setattr(processes, "run_all", decode_none)
    progress = (second / "progress.jsonl").read_bytes()
    assert check(first / "clean.txt", "--out", second, "--min-frames", 9) == 1
    assert (second / "progress.jsonl").read_bytes() == progress
    [fault] = json.loads((second / "report.json").read_text())["files"]
    assert (fault["reason"], fault["detail"]) == ("too_short", "8 frames, fewer than 9")


def test_a_tree_names_its_classes(make_video, tmp_path, capsys):
    make_video("tree/run/a.mp4", 5)
    (make_video("tree/sit/b.mp4", 6).parent / "c.mp4").write_text("nothing")
    assert check(tmp_path / "tree", "--out", tmp_path / "out") == 1
    assert "sit: 1 of 2 (50.0 %)" in capsys.readouterr().out


def test_many_faults_are_cut_short():
    verdicts = [checking.Verdict(f"/{i}", 0, "missing", "no such file") for i in range(50)]
    lines = list(data_check.describe(verdicts, ["only"]))
    assert len([line for line in lines if line.startswith("  - ")]) == data_check.MAX_SHOWN
    assert lines[-1] == "  and 30 more"
    assert "  only: 50 of 50 (100.0 %)" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt", "--out", "{folder}/out"], "no such list"),
        (["{folder}/empty.txt", "--out", "{folder}/out"], "names no video"),
        (["{list}", "--out", "{folder}/out", "--workers", "0"], "--workers 0: must be above 0"),
        (["{list}", "--out", "{folder}/out", "--num-classes", "0"], "--num-classes 0"),
        (["{list}", "--out", "{list}"], "no folder that may be written"),
        (["{folder}/clean.txt", "--out", "{folder}"], "would overwrite what is checked"),
    ],
)
def test_wrong_arguments_end_in_a_message(videos, capsys, words, message):
    folder = videos.parent
    (folder / "empty.txt").write_text("\n")
    (folder / "clean.txt").write_text("0.mp4 0\n")
    before = state(folder)
    words = [word.format(list=videos, folder=folder) for word in words]
    assert main(["data", "check", *words]) == 2
    assert message in capsys.readouterr().err
    assert state(folder) == before
