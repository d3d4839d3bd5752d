import os
from pathlib import Path

from videogn.data.decode import decode_whole
from videogn.data.encoding import Settings
from videogn.data.list_checks import VideoRecord
from videogn.data.preparing import (
    Done,
    Failed,
    Journal,
    Task,
    output_names,
    prepare,
    prepare_all,
)
from videogn.data.processes import Lost, Pool

SETTINGS = Settings(short_side=64, gop=8, crf=12, preset="ultrafast", tune="fastdecode")


def test_broken_video_fails_and_leaves_nothing(make_video, tmp_path) -> None:
    source = make_video("a.mp4", 40)
    source.write_bytes(source.read_bytes()[:-3000])
    outcome = prepare(Task(str(source), str(tmp_path / "out"), "b.mp4", SETTINGS))
    assert isinstance(outcome, Failed)
    assert outcome.source == str(source)
    assert not list((tmp_path / "out").glob("*"))


def test_output_that_differs_is_removed(make_video, tmp_path, monkeypatch) -> None:
    source = make_video("a.mp4", 10)

    def one_fewer(path):
        found = list(decode_whole(path))
        return iter(found if path == str(source) else found[:-1])

    monkeypatch.setattr("videogn.data.encoding.decode_whole", one_fewer)
    outcome = prepare(Task(str(source), str(tmp_path / "out"), "b.mp4", SETTINGS))
    assert isinstance(outcome, Failed)
    assert "9 of 10 frames" in outcome.reason
    assert not list((tmp_path / "out").iterdir())


def test_journal_knows_what_holds(make_video, tmp_path) -> None:
    source = make_video("a.mp4", 5)
    task = Task(str(source), str(tmp_path), "b.mp4", SETTINGS)
    outcome = prepare(task)
    assert isinstance(outcome, Done)
    Journal(tmp_path).add([outcome])
    with (tmp_path / "prepared.jsonl").open("a") as file:
        file.write('{"name": "b.m')
    assert Journal(tmp_path).find(task) == outcome
    other = task._replace(settings=Settings(32, 8, 12, "ultrafast", "none"))
    assert Journal(tmp_path).find(other) is None
    os.utime(source, ns=(1, 1))
    assert Journal(tmp_path).find(task) is None
    again = prepare(task)
    Journal(tmp_path).add([again])
    assert Journal(tmp_path).find(task) == again
    (tmp_path / "b.mp4").unlink()
    assert Journal(tmp_path).find(task) is None


def test_killed_process_leaves_nothing(tmp_path, monkeypatch) -> None:
    left = [tmp_path / "b.mp4", tmp_path / ".b.mp4.x1y2.mp4"]
    for path in (*left, tmp_path / ".bb.mp4.x1y2.mp4"):
        path.write_bytes(b"half")
    task = Task("/a.mp4", str(tmp_path), "b.mp4", SETTINGS)
    monkeypatch.setattr(
        "videogn.data.processes.run_all", lambda *_, **__: iter([(task, Lost("killed"))])
    )
    outcomes = list(prepare_all([task], Journal(tmp_path), Pool(1, 1.0)))
    assert outcomes == [Failed("/a.mp4", "killed")]
    assert [path.name for path in tmp_path.iterdir()] == [".bb.mp4.x1y2.mp4"]


def test_names_stay_inside_the_folder_and_differ() -> None:
    names = ["run/a.mp4", "run/b.avi", "/far/run/a.mp4", "../run/a.mp4", "c.mp4", "C.mp4"]
    records = [VideoRecord(f"/{i}/run/{Path(n).name}", 0, n) for i, n in enumerate(names)]
    found = list(output_names(records).values())
    assert found[:2] == ["videos/run/a.mp4", "videos/run/b.avi.mp4"]
    assert len({name.lower() for name in found}) == len(names)
    for name in found[2:]:
        assert name.startswith("videos/run/")
        assert ".." not in name
