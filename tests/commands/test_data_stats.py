import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from videogn.cli import main
from videogn.commands.data_stats import Stats, as_json, clips_per_second, describe, plot
from videogn.data.list_checks import VideoList, VideoRecord
from videogn.data.probing import Probe


@pytest.fixture
def video_tree(make_video, tmp_path):
    for name in ("run/a.mp4", "run/b.mp4", "jump/c.mp4"):
        make_video(f"tree/{name}", 10)
    (tmp_path / "tree" / "jump" / "bad.mp4").write_bytes(b"nothing")
    return tmp_path / "tree"


@pytest.mark.dist
def test_command_tells_what_is_there(video_tree, tmp_path, capsys):
    out = tmp_path / "stats"
    assert main(["data", "stats", str(video_tree), "--out", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "videos      4\n" in printed
    assert "classes     2: 2 / 2 / 2 videos" in printed
    assert "frame rate  25 / 25 / 25 fps" in printed
    assert "codecs      h264 (3)" in printed
    assert "1 cannot be read" in printed
    assert "bad.mp4: decode error in the headers" in printed
    assert "clips/s per core" in printed
    found = json.loads((out / "stats.json").read_text())
    assert found["classes"] == {"jump": 2, "run": 2}
    assert list(found["unreadable"]) == [str(video_tree / "jump" / "bad.mp4")]
    assert found["hours_per_epoch"] > 0
    assert imread(out / "stats.png").shape[:2] == (960, 1440)


def many(num_classes: int, clip_seconds: dict[str, float]) -> Stats:
    records = tuple(
        VideoRecord(f"/{label}_{i}", label, f"{label}_{i}")
        for label in range(num_classes)
        for i in range(1 + label % 3)
    )
    names = tuple(f"class {'$' * label}" for label in range(num_classes))
    probes = {r.path: Probe("h264", 320, 240, None, None) for r in records}
    return Stats(VideoList("list", records, names), probes, {}, clip_seconds, True)


def test_pace_is_the_mean_of_cpu_times():
    stats = many(3, {"/0_0": 0.1, "/1_0": 0.3})
    assert clips_per_second(stats) == pytest.approx(5)
    found = as_json(stats)
    assert found["hours_per_epoch"] == pytest.approx(6 / (5 * found["cores"]) / 3600)
    lines = list(describe(stats))
    assert "            fewest class  (1), most class $$ (3)" in lines
    assert any("5.0 clips/s per core" in line and "packet index" in line for line in lines)
    assert not any(line.startswith(("duration", "frame rate")) for line in lines)
    assert any(line.startswith("epoch       less than 0.01 h for") for line in lines)
    slow = list(describe(many(3, {"/0_0": 1e5})))
    hours = 6 * 1e5 / found["cores"] / 3600
    assert any(line.startswith(f"epoch       {hours:.3g} h for") for line in slow)


@pytest.mark.parametrize("num_classes", [1, 5, 60])
def test_plot_of_few_and_many_classes(num_classes: int, tmp_path: Path):
    plot(many(num_classes, {}), tmp_path / "a.png")
    assert imread(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere.txt"], "no such list"), (["{tree}", "--timeout", "0"], "must be above 0")],
)
def test_wrong_arguments_end_in_a_message(video_tree, capsys, words, message):
    assert main(["data", "stats", *(word.format(tree=video_tree) for word in words)]) == 2
    assert message in capsys.readouterr().err
