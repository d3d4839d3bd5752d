"""What the report reads of folders: runs, curves, mistakes."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_folders import (
    config_tree,
    jpeg,
    make_probs,
    write_test,
    write_thumbnails,
    write_training,
)

from videogn.engine.report.curves import drawn
from videogn.engine.report.measures import confusions, mistakes, summary
from videogn.engine.report.reading import TestedRun, read_run
from videogn.errors import RunError


def a_run(folder: Path, **about: object) -> TestedRun:
    config = about.pop("config", config_tree("gn", 32, 2, 4))
    probs = make_probs(np.arange(40) % 400, 400, 70, 0)
    write_test(folder, probs, np.arange(40) % 400, config=config, **about)
    return read_run(str(folder), "R1")


def by_hand(folder: Path, failed: dict[int, str] | None = None) -> TestedRun:
    """Five videos of three classes whose scores are plain to see."""
    probs = np.array(
        [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.1, 0.7], [0.9, 0.05, 0.05], [0.8, 0.1, 0.1]]
    )
    labels = np.array([0, 1, 1, 2, 1])
    write_test(folder, probs, labels, config=config_tree(num_classes=3), failed=failed)
    return read_run(str(folder), "R1")


def test_a_run_stands_for_the_test_of_its_last_weights_else_of_its_best(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run / "test_best", weights="best")
    assert read_run(str(run), "R1").results["weights"] == "best"
    a_run(run / "test", weights="last")
    assert read_run(str(run), "R1").results["weights"] == "last"
    assert read_run(str(run / "test_best"), "R1").results["weights"] == "best"


def test_what_a_run_trained_with_is_what_its_own_folder_says(tmp_path: Path) -> None:
    """The test was started with another config: 4 clips per GPU, one centre clip."""
    trained = config_tree("gn", 32, 2, 8)
    write_training(tmp_path, trained, {100: 50.0})
    named = config_tree("gn", 32, 2, 4)
    named["train"]["val_clip"] = "center"
    run = a_run(tmp_path / "test", config=named)
    assert run.setting("train.clips_per_gpu") == 8
    assert run.setting("train.val_clip") == "augmented"
    assert drawn(run).belongs


def test_results_beside_the_config_count_more_than_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "test", num_crops=3, average="max", protocol="center")
    assert run.setting("test.num_crops") == 3
    assert run.setting("test.average") == "max"
    assert run.setting("test.protocol") == "center"


def test_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    found = mistakes(by_hand(tmp_path / "all").scores, 9)
    # Videos 1 and 2 have equal scores: the list's order decides.
    assert [(m.place, m.label, m.predicted) for m in found] == [
        (3, 2, 0),
        (4, 1, 0),
        (1, 1, 2),
        (2, 1, 2),
    ]
    assert [round(m.score, 2) for m in found] == [0.9, 0.8, 0.7, 0.7]
    assert [round(m.own, 2) for m in found] == [0.05, 0.1, 0.2, 0.1]
    without = mistakes(by_hand(tmp_path / "failed", {3: "truncated"}).scores, 2)
    assert [m.place for m in without] == [4, 1]


def test_mistakes_of_averages_before_softmax_are_told_after_it(tmp_path: Path) -> None:
    logits = np.array([[2.0, 0.0, 0.0], [1.0, 9.0, 9.5], [0.0, 0.0, 4.0]])
    config = config_tree(num_classes=3)
    write_test(tmp_path, logits, np.array([0, 1, 1]), config=config, average="logit")
    found = mistakes(read_run(str(tmp_path), "R1").scores, 9, logits=True)
    # e^4 against 1 and 1, then e^9.5 against e^9 and e^1.
    assert [m.place for m in found] == [2, 1]
    assert [round(m.score, 4) for m in found] == [0.9647, 0.6224]
    assert [round(m.own, 4) for m in found] == [0.0177, 0.3775]


def test_confused_pairs_are_counted_over_videos_that_could_be_read(tmp_path: Path) -> None:
    found = confusions(by_hand(tmp_path / "all").scores, 9)
    assert [(c.label, c.predicted, c.count) for c in found] == [(1, 2, 2), (1, 0, 1), (2, 0, 1)]
    assert found[0].share == pytest.approx(200 / 3)
    failed = confusions(by_hand(tmp_path / "failed", {2: "cut"}).scores, 1)
    assert (failed[0].label, failed[0].count, failed[0].share) == (1, 1, 50.0)


def test_best_case_has_every_failed_video_right(tmp_path: Path) -> None:
    found = summary(by_hand(tmp_path, {3: "cut", 4: "cut"}))
    assert (found.num_tested, found.num_videos) == (3, 5)
    assert found.accuracy[0] == pytest.approx(20)
    assert found.best_case[0] == pytest.approx(60)


def test_the_tests_own_interval_is_taken(tmp_path: Path) -> None:
    own = {"level": 0.95, "resamples": 10_000, "top1": [1.0, 2.0], "top5": [3.0, 4.0]}
    assert summary(a_run(tmp_path / "own", confidence=own)).intervals == ((1, 2), (3, 4))
    for number, other in enumerate(
        [None, 3, {"level": 0.9}, own | {"top1": [1]}, own | {"top5": ["a", 4]}]
    ):
        found = summary(a_run(tmp_path / str(number), confidence=other))
        low, high = found.intervals[0]
        assert low < found.accuracy[0] < high
        assert (low, high) != (1, 2)


def logged(folder: Path, entries: list[object]) -> TestedRun:
    write_training(folder, config_tree("gn", 32, 2, 4), {})
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return a_run(folder / "test")


def test_curve_has_errors_over_epochs(tmp_path: Path) -> None:
    """640 videos, 64 clips an iteration: ten iterations are an epoch; then half the batch."""
    entries = [
        {"kind": "start", "global_batch": 64, "num_videos": 640, "clips_per_gpu": 8},
        {"kind": "val", "iteration": 10, "top1": 25.0},
        {"kind": "train", "iteration": 12, "top1": 99.0},
        '{"kind": "val", "iteration": 15, "to',
        {"kind": "val", "iteration": 20, "top1": 37.5},
        {"kind": "start", "global_batch": 32, "num_videos": 640, "clips_per_gpu": 4},
        {"kind": "val", "iteration": 60, "top1": 50.0},
    ]
    curve = drawn(logged(tmp_path, entries)).curve
    assert curve is not None
    assert curve.epochs == (1, 2, 3)
    assert curve.errors == (75, 62.5, 50)
    assert curve.clips_per_gpu == 4


@pytest.mark.parametrize(
    "entry",
    [
        '{"kind": "val", "iteration": NaN, "top1": 5.0}',
        '{"kind": "val", "iteration": Infinity, "top1": 5.0}',
        {"kind": "val", "iteration": 10, "top1": None},
        {"kind": "val", "iteration": "10", "top1": 5.0},
        {"kind": "val", "iteration": 10, "top1": 101},
        {"kind": "val"},
        [1, 2],
        "null",
        "\x00\x01",
    ],
)
def test_entries_that_cannot_be_are_passed_over(tmp_path: Path, entry: object) -> None:
    start = {"kind": "start", "global_batch": 64, "num_videos": 640, "clips_per_gpu": 4}
    found = drawn(logged(tmp_path, [start, entry]))
    assert found.curve is None
    assert "no validation" in found.why


@pytest.mark.parametrize("start", [{}, {"global_batch": 64, "num_videos": 0}])
def test_no_epochs_without_a_start(tmp_path: Path, start: dict) -> None:
    entries = [{"kind": "start", **start}, {"kind": "val", "iteration": 10, "top1": 25.0}]
    assert drawn(logged(tmp_path, entries)).curve is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"train": {"val_clip": "center"}}, "train.val_clip=center"),
        ({"clip": {"num_frames": 64, "frame_stride": 1}}, "clips of 64 frames"),
        ({"model": {"num_classes": 4}}, "4 classes"),
    ],
)
def test_other_validations_are_no_part_of_figure_7(tmp_path: Path, changes: dict, why: str) -> None:
    config = config_tree("gn", 32, 2, 4)
    for section, values in changes.items():
        config[section] |= values
    write_training(tmp_path, config, {100: 50.0})
    found = drawn(a_run(tmp_path / "test", config=config))
    assert found.curve is not None
    assert not found.belongs
    assert why in found.why


def test_a_test_that_lies_alone_has_no_curve(tmp_path: Path) -> None:
    found = drawn(a_run(tmp_path / "test"))
    assert found.curve is None
    assert "training run" in found.why


def test_thumbnails_that_are_no_pictures_are_left_out(tmp_path: Path) -> None:
    a_run(tmp_path / "test")
    pictures = {3: jpeg(1), 5: b"<svg onload=alert(1)>", 8: jpeg(2)}
    write_thumbnails(tmp_path / "test", pictures)
    run = read_run(str(tmp_path / "test"), "R1")
    assert run.thumbnails == {3: pictures[3], 8: pictures[8]}


def in_odd_compression() -> bytes:
    """An archive whose member is compressed in a way that Python does not know."""
    file = io.BytesIO()
    np.savez(file, video=np.array(["a"]), place=np.array([0]))
    changed = bytearray(file.getvalue())
    for entry in re.finditer(rb"PK\x01\x02", file.getvalue()):
        changed[entry.start() + 10] = 97
    return bytes(changed)


ODD = in_odd_compression()


def damage(folder: Path, name: str, content: bytes | dict) -> None:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    with np.load(path) as file:
        arrays = dict(file) | content
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", b"{", "results.json: cannot be read"),
        ("results.json", b"[1]", "results.json"),
        ("results.json", b'{"top1": NaN}', "top1 is nan"),
        ("results.json", b'{"top1": 101, "top5": true}', "top1 is 101; top5 is True"),
        ("results.json", b"\xff\xfe", "results.json: cannot be read"),
        ("scores.npz", b"PK\x03\x04", "scores.npz: is no file of scores"),
        ("scores.npz", b"", "scores.npz: is no file of scores"),
        ("scores.npz", ODD, "compression method is not supported"),
        ("scores.npz", {"probs": None}, "scores.npz: is no file of scores"),
        ("scores.npz", {"label": np.full(40, 400)}, "label cannot be"),
        ("scores.npz", {"label": np.arange(39)}, "label cannot be"),
        ("scores.npz", {"probs": np.full((40, 400), np.nan, np.float32)}, "probs cannot be"),
        ("scores.npz", {"ok": np.zeros(40, bool)}, "num_videos 40, num_failed 0 in the first"),
        ("scores.npz", {"label": np.full(40, 399)}, "are not of one test: top1"),
        ("thumbnails.npz", b"no", "thumbnails.npz: is no file of thumbnails"),
        ("thumbnails.npz", ODD, "compression method is not supported"),
        ("thumbnails.npz", {"end": np.array([1.5])}, "thumbnails.npz: is no file of thumbnails"),
    ],
)
def test_damaged_files_are_one_message(
    tmp_path: Path, name: str, content: bytes | dict, message: str
) -> None:
    a_run(tmp_path)
    write_thumbnails(tmp_path, {1: jpeg(0)})
    damage(tmp_path, name, content)
    with pytest.raises(RunError) as caught:
        read_run(str(tmp_path), "R1")
    assert message in str(caught.value)
