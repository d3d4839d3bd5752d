import hashlib
import json
import os
import pickle
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lethal import never_done

from videogn.data import checking, processes, video_files
from videogn.data.checking import Facts, Progress, examine, examine_all, judge, name_fault
from videogn.data.listed import ListedVideo
from videogn.data.processes import Pool
from videogn.errors import DecodeError, UserError

FAULTY_FOOTAGE = {
    "arm_wrestling_truncated.mp4": "truncated",
    "basketball_damaged.mp4": "unreadable",
    "audio_only.mp4": "no_video_stream",
}


def remux(source: Path, target: Path, times: list[int | None]) -> Path:
    """Write packets again, shown 1 s after ``times`` in 1/25 s; those of None are left out."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        new.start_encoding()
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for number, (packet, shown) in enumerate(zip(packets, times, strict=True)):
            if shown is not None:
                packet.time_base, packet.stream = Fraction(1, 25), stream
                packet.pts, packet.dts = shown + 25, number
                new.mux(packet)
    return target


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence) + stream.encode(None))
    return path


def cut(path: Path, percent: int) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])
    return path


def test_facts_of_a_sound_file(make_video):
    path = make_video(num_frames=12)
    facts = examine(str(path))
    assert (facts.code, facts.detail, facts.timestamps) == (None, "", "")
    assert facts.num_frames == 12
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts.size, facts.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("kind", "code", "detail"),
    [
        ("missing", "missing", "no such file"),
        ("folder", "unreadable", "a folder"),
        ("pipe", "unreadable", "not a regular file"),
        ("text", "unreadable", "Invalid data"),
        ("cut mkv", "truncated", "bytes"),
        ("cut mp4", "truncated", "bytes"),
        ("cut mp4 with its index first", "truncated", "truncated"),
        ("sound only", "no_video_stream", "no video stream"),
        ("empty stream", "zero_frames", "no frames"),
        ("concealed", "unreadable", "damaged pictures: hevc: Could not find ref"),
    ],
)
def test_each_damage_has_its_code(kind, code, detail, make_video, tmp_path):
    path = tmp_path / "damaged.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("not a video at all\n" * 100)
    elif kind == "cut mkv":
        path = cut(make_video("cut.mkv"), 60)
    elif kind == "cut mp4":
        path = cut(make_video("cut.mp4"), 60)
    elif kind == "cut mp4 with its index first":
        path = cut(make_video("cut.mp4", container_options={"movflags": "faststart"}), 60)
    elif kind == "sound only":
        path = sound_only(path)
    elif kind == "empty stream":
        path = remux(make_video("a.mkv", 3), tmp_path / "empty.avi", [None] * 3)
    elif kind == "concealed":
        options = {"x265-params": "bframes=0:ref=1:log-level=none"}
        whole = make_video("a.mkv", 8, codec="libx265", **options)
        path = remux(whole, tmp_path / "b.mkv", [0, 1, 2, None, 4, 5, 6, 7])
    facts = examine(str(path))
    assert facts.code == code
    assert detail in facts.detail
    assert str(path) not in facts.detail


@pytest.mark.parametrize(("name", "limit"), [("MAX_SIDE", 95), ("MAX_PIXELS", 64 * 96 - 1)])
def test_too_many_pixels(name, limit, make_video, monkeypatch):
    path = str(make_video(size=(64, 96)))
    assert examine(path).code is None
    monkeypatch.setattr(video_files, name, limit)
    facts = examine(path)
    assert (facts.code, facts.detail) == ("huge", "frames of 96x64 pixels are too large")


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        ([0, 1, 2, 3, 4, 5], ""),
        ([3, 4, 30, 31, 70, 71], ""),
        ([0, 1, 3, 2, 4, 4], "frame 3 is shown at 1.080 s, not after frame 2 at 1.120 s"),
        ([0, 1, 1, 2, 3, 4], "frame 2 is shown at 1.040 s, not after frame 1 at 1.040 s"),
    ],
)
def test_presentation_times_must_rise_but_may_have_holes(times, fault, make_video, tmp_path):
    plain = make_video("plain.mkv", 6, codec="mpeg4", g="1")
    facts = examine(str(remux(plain, tmp_path / "timed.mkv", times)))
    assert (facts.code, facts.timestamps) == (None, fault)


def test_an_examination_leaves_the_log_level(make_video):
    path, level = str(make_video()), av.logging.get_level()
    examine(path)
    assert av.logging.get_level() == level


def test_footage(footage):
    clips = sorted((footage / "clips").iterdir())
    found = {path.name: examine(str(path)) for path in clips}
    assert {name: f.code for name, f in found.items() if f.code} == FAULTY_FOOTAGE
    assert [name for name, facts in found.items() if facts.timestamps] == ["wave_hmdb.avi"]
    labelled = [examine(str(p)) for p in (footage / "ut_interaction" / "val").rglob("*.mp4")]
    assert len(labelled) == 24
    assert not any(facts.code or facts.timestamps for facts in labelled)


def test_decode_errors_keep_their_code_across_processes():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "no frames", "zero_frames")))
    assert (error.path, error.reason, error.code) == ("a.mp4", "no frames", "zero_frames")
    assert DecodeError("a.mp4", "odd").code == "unreadable"


def known(where: Path, path: str) -> Facts | None:
    with closing(Progress(where)) as progress:
        return progress.find(path)


def facts(path: str, **changes) -> Facts:
    plain = {"size": 1, "mtime_ns": 1, "code": None, "detail": "", "num_frames": 9}
    return Facts(**{"path": path, **plain, "sha256": path, "timestamps": "", **changes})


def reasons(entries, found, num_classes=3, min_frames=1):
    by_path = {f.path: f for f in found}
    verdicts = judge(entries, by_path, num_classes=num_classes, min_frames=min_frames)
    assert [v.path for v in verdicts] == [e.path for e in entries]
    return [(v.reason, v.detail) for v in verdicts]


def test_the_gravest_fault_is_told():
    found = facts("/a", code="truncated", detail="cut", timestamps="times")
    assert reasons([ListedVideo("/a", 7)], [found]) == [("truncated", "cut")]
    found = facts("/a", timestamps="times", num_frames=1)
    [(reason, detail)] = reasons([ListedVideo("/a", 7)], [found], min_frames=2)
    assert (reason, detail) == ("label_range", "the label 7 is outside 0 … 2")
    assert reasons([ListedVideo("/a", 0)], [found], min_frames=2) == [("timestamps", "times")]


@pytest.mark.parametrize(
    ("label", "num_classes", "right"),
    [(0, 3, True), (2, 3, True), (3, 3, False), (-1, 3, False), (99, None, True), (-1, None, 0)],
)
def test_label_range(label, num_classes, right):
    [(reason, _)] = reasons([ListedVideo("/a", label)], [facts("/a")], num_classes)
    assert reason == (None if right else "label_range")


def test_a_label_that_cannot_be_read_asks_for_no_file():
    entry = ListedVideo("/a", None, "the label 'x' is not an integer")
    assert reasons([entry], []) == [("label_range", "the label 'x' is not an integer")]


def test_too_short():
    found = [facts("/a", num_frames=7), facts("/b", num_frames=8)]
    told = reasons([ListedVideo("/a", 0), ListedVideo("/b", 0)], found, min_frames=8)
    assert told == [("too_short", "7 frames, fewer than 8"), (None, "")]


def test_duplicates_name_the_sound_one_that_stays():
    found = [facts(f"/{name}", sha256="same") for name in "abc"]
    entries = [ListedVideo("/a", 9), ListedVideo("/b", 1), ListedVideo("/c", 1)]
    told = reasons([*entries, ListedVideo("/c", 2), ListedVideo("/b", 0)], found)
    assert [reason for reason, _ in told] == ["label_range", None, *["duplicate_content"] * 3]
    assert [detail for _, detail in told[2:]] == [
        "same content as /b",
        "same content as /b, which has label 1",
        "stands earlier in the list, with label 1",
    ]


def test_names_that_no_list_can_hold():
    assert name_fault("/größe a.mp4") is None
    assert "line break" in (name_fault("/a\nb.mp4") or "")
    assert "UTF-8" in (name_fault(os.fsdecode(b"/\xff.mp4")) or "")
    [(reason, detail)] = reasons([ListedVideo("/a\nb.mp4", 0)], [])
    assert reason == "unreadable"
    assert "rename" in detail


def test_progress_holds_until_the_file_changes(make_video, tmp_path):
    path, where = make_video(), tmp_path / "progress.jsonl"
    found = examine(str(path))
    with closing(Progress(where)) as progress:
        progress.add([found])
    assert known(where, str(path)) == found
    os.utime(path, ns=(1, 1))
    assert known(where, str(path)) is None
    path.unlink()
    assert known(where, str(path)) is None


@pytest.mark.parametrize("lost", [1, 30, 10**6])
def test_progress_cut_by_a_kill_goes_on(lost, make_video, tmp_path):
    paths, where = [str(make_video(f"{i}.mp4", 3)) for i in range(2)], tmp_path / "progress.jsonl"
    with closing(Progress(where)) as progress:
        for path in paths:
            progress.add([examine(path)])
    content = where.read_bytes()
    where.write_bytes(content[: max(10, len(content) - lost)])
    with closing(Progress(where)) as progress:
        assert (progress.find(paths[0]) is not None) == (lost < 10**6)
        assert (progress.find(paths[1]) is not None) == (lost == 1)
        progress.add([examine(paths[1])])
    assert known(where, paths[1]) == examine(paths[1])


def test_other_files_are_no_progress(tmp_path):
    path = tmp_path / "progress.jsonl"
    for content in (b"\xff\xfe\n", json.dumps({"version": 99}).encode(), b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no progress of a check"):
            Progress(path)
        assert path.read_bytes() == content


@pytest.mark.dist
def test_many_files_are_examined_once(make_video, tmp_path, monkeypatch):
    paths = [str(make_video(f"{i}.mp4", 5 + i)) for i in range(4)]
    bad, missing = tmp_path / "bad.mp4", str(tmp_path / "missing.mp4")
    bad.write_bytes(b"no video" * 99)
    where = tmp_path / "progress.jsonl"
    asked = [*paths, str(bad), missing]
    with closing(Progress(where)) as progress:
        found = {f.path: f for f in examine_all(asked, progress, Pool(2, 60))}
    assert [found[path].num_frames for path in paths] == [5, 6, 7, 8]
    assert found[str(bad)].code == "unreadable"
    assert found[missing].code == "missing"

    def none_left(work, unknown, pool, **options):
        assert list(unknown) == [missing]
        return iter(())

    monkeypatch.setattr(processes, "run_all", none_left)
    with closing(Progress(where)) as progress:
        again = {f.path: f for f in examine_all(asked, progress, Pool(2, 60))}
    assert again == {path: f for path, f in found.items() if path != missing}


@pytest.mark.dist
def test_a_video_that_takes_too_long_is_given_up(make_video, tmp_path, monkeypatch):
    path, where = str(make_video()), tmp_path / "progress.jsonl"
    monkeypatch.setattr(checking, "examine", never_done)
    with closing(Progress(where)) as progress:
        [found] = examine_all([path], progress, Pool(1, 0.5))
    assert (found.code, found.detail) == ("unreadable", "not decoded within 0.5 seconds")
    assert known(where, path) is None
