import json

import pytest

from videogn.cli import main
from videogn.data.annotations import read_videos
from videogn.data.decode import PyAVReader

pytestmark = pytest.mark.dist


@pytest.fixture
def video_list(make_video, tmp_path):
    names = [make_video(f"source/run/{i}.mp4", 8 + i).name for i in range(3)]
    path = tmp_path / "source" / "list.txt"
    path.write_text("".join(f"run/{name} {label}\n" for label, name in enumerate(names)))
    return path


def prepare(video_list, *words):
    out = video_list.parents[1] / "out"
    return main(
        ["data", "prepare", str(video_list), "--out", str(out), "--workers", "1", *words]
    ), out


def test_prepared_list_is_a_list_and_is_made_once(video_list, capsys):
    code, out = prepare(video_list, "--sample", "1")
    assert code == 0
    printed = capsys.readouterr().out
    assert "sample: 1 videos" in printed
    assert "3 videos are prepared: 27 frames" in printed
    records = read_videos(str(out / "list.txt"), num_classes=3).records
    assert [record.name for record in records] == [f"videos/run/{i}.mp4" for i in range(3)]
    assert [PyAVReader(record.path).num_frames for record in records] == [8, 9, 10]
    times = [(out / record.name).stat().st_mtime_ns for record in records]
    assert prepare(video_list, "--sample", "0")[0] == 0
    assert [(out / record.name).stat().st_mtime_ns for record in records] == times
    assert prepare(video_list, "--sample", "0", "--short-side", "32")[0] == 0
    assert PyAVReader(records[0].path).frames([0]).shape == (1, 32, 48, 3)


def test_sample_alone_writes_no_list(video_list, capsys):
    code, out = prepare(video_list, "--sample", "1", "--sample-only")
    assert code == 0
    assert "times as fast" in capsys.readouterr().out
    assert not (out / "list.txt").exists()
    assert json.loads((out / "report.json").read_text())["sample"]["videos"] == 1


def test_bad_videos_are_listed_and_left_out(video_list, capsys):
    (video_list.parent / "run" / "1.mp4").write_bytes(b"nothing")
    code, out = prepare(video_list, "--sample", "0")
    assert code == 1
    assert "1.mp4: decode error" in capsys.readouterr().out
    assert len((out / "list.txt").read_text().splitlines()) == 2
    [failed] = json.loads((out / "report.json").read_text())["failed"]
    assert failed["path"].endswith("1.mp4")
    assert sorted(path.name for path in (out / "videos" / "run").iterdir()) == ["0.mp4", "2.mp4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "must be above 0"),
        (["--short-side", "255"], "must be an even number"),
        (["--crf", "52"], "from 0 to 51"),
        (["--gop", "0"], "must be above 0"),
    ],
)
def test_wrong_arguments_end_in_a_message(video_list, capsys, words, message):
    assert prepare(video_list, *words)[0] == 2
    assert message in capsys.readouterr().err


def test_sources_are_never_overwritten(make_video, tmp_path, capsys):
    make_video("videos/a.mp4", 4)
    path = tmp_path / "some.txt"
    # The name in the list starts at another folder than the output.
    path.write_text("a.mp4 0\n")
    words = [str(path), "--root", str(tmp_path / "videos"), "--out", str(tmp_path)]
    assert main(["data", "prepare", *words]) == 2
    assert "would be overwritten" in capsys.readouterr().err
