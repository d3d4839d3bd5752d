import json
from pathlib import Path

import numpy as np
import pytest
from made_up_scores import made_up_scores, write_test

from videogn.cli import main
from videogn.engine.scores import Scores

LABELS = np.random.default_rng(7).integers(6, size=80).tolist()
NAMES = [f"name {label}" for label in range(6)]


def favour(scores: Scores, share: float, seed: int) -> Scores:
    """Makes a share of the videos right."""
    better = np.random.default_rng(seed).random(len(scores.labels)) < share
    for place in np.flatnonzero(better):
        scores.view_probs[place, :, :, scores.labels[place]] += 2
    return scores


def made(folder: Path, seed: int, share: float, labels=LABELS, failed=(), **results) -> Path:
    scores = made_up_scores(labels, num_classes=6, seed=seed, failed=failed)
    options = {"class_names": NAMES, "num_clips": 3, "checkpoint_sha256": str(seed), **results}
    write_test(folder, favour(scores, share, seed), **options)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A good one inside a run's folder with a failed video, and a poor one."""
    made(tmp_path / "good/test", 1, 0.8, failed=[5])
    return tmp_path / "good", made(tmp_path / "poor", 2, 0.3)


def comparison(*words: object) -> dict:
    out = Path(str(words[0])).parent / "out.json"
    assert main(["compare", *map(str, words), "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_numbers_equal_a_count_by_hand(two) -> None:
    told = comparison(*two)
    results = [
        json.loads((folder / "results.json").read_text()) for folder in (two[0] / "test", two[1])
    ]
    right = []
    for folder in (two[0] / "test", two[1]):
        with np.load(folder / "scores.npz") as scores:
            right.append(
                [
                    bool(ok) and int(np.argmax(row)) == label
                    for ok, row, label in zip(scores["ok"], scores["probs"], LABELS, strict=True)
                ]
            )
    pairs = list(zip(*right, strict=True))
    top1 = told["top1"]
    assert top1["both_right"] == pairs.count((True, True))
    assert top1["only_a_right"] == pairs.count((True, False))
    assert top1["only_b_right"] == pairs.count((False, True))
    assert top1["neither_right"] == pairs.count((False, False))
    assert (told["a"]["top1"], told["b"]["top1"]) == (results[0]["top1"], results[1]["top1"])
    assert (told["a"]["top5"], told["b"]["top5"]) == (results[0]["top5"], results[1]["top5"])
    assert (told["a"]["num_failed"], told["b"]["num_failed"]) == (1, 0)
    assert top1["difference"] == pytest.approx(told["a"]["top1"] - told["b"]["top1"])
    assert told["num_videos"] == 80
    names = [entry["video"] for entry in told["disagreements"]]
    assert names == [f"v{place}.mp4" for place, (a, b) in enumerate(pairs) if a != b]
    for entry in told["disagreements"]:
        place = int(entry["video"][1:-4])
        assert entry["right"] == ("A" if right[0][place] else "B")
        assert entry["label"] == LABELS[place]
    assert {entry["name"] for entry in told["per_class"]} == set(NAMES)


def test_a_better_test_is_told_so_and_an_equal_one_not(two, capsys) -> None:
    good, poor = two
    assert comparison(good, poor)["top1"]["better"] == "A"
    assert comparison(poor, good)["top1"]["better"] == "B"
    capsys.readouterr()
    assert comparison(good, good)["top1"]["better"] is None
    printed = capsys.readouterr().out
    assert "top-1 A - B  +0.00 points, 95% interval +0.00 to +0.00: no difference shown" in printed
    assert "there is no video that only one has right" in printed
    assert "warning" not in printed
    other = made(good.parent / "other", 3, 0.8)
    assert comparison(good, other)["top1"]["better"] is None
    assert "no difference shown" in capsys.readouterr().out


def test_what_is_printed(two, capsys) -> None:
    told = comparison(*two, "--show", 2)
    printed = capsys.readouterr().out
    top1, found = told["top1"], told["disagreements"]
    low, high = top1["interval"]
    assert f"{top1['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}: A" in printed
    assert f"A right  {top1['both_right']:>8} {top1['only_a_right']:>8}\n" in printed
    assert f"p = {top1['mcnemar_p']:.2g} (McNemar, exact): how probable a split" in printed
    assert "1 failed, counted as wrong" in printed
    lines = printed.splitlines()
    first = lines.index(f"videos that only one has right ({len(found)}):") + 1
    for line, entry in zip(lines[first : first + 2], found, strict=False):
        assert line.startswith(f"  {entry['video']}: is name {entry['label']}, A says ")
    assert lines[first + 2].startswith(f"  and {len(found) - 2} more")
    assert comparison(*two, "--show", 0)
    assert "videos that only one has right" not in capsys.readouterr().out.splitlines()


def test_failed_videos_have_no_prediction(tmp_path: Path, capsys) -> None:
    a = made(tmp_path / "a", 1, 1.0, failed=[5])
    b = made(tmp_path / "b", 2, 1.0)
    told = comparison(a, b)
    assert told["disagreements"] == [
        {
            "video": "v5.mp4",
            "occurrence": 0,
            "label": LABELS[5],
            "predicted_a": None,
            "predicted_b": LABELS[5],
            "right": "B",
        }
    ]
    assert "A says nothing: it failed, B says name" in capsys.readouterr().out
    heading, line = (tmp_path / "out.tsv").read_text().splitlines()
    assert heading.split("\t")[0] == "video"
    assert line.split("\t") == ["v5.mp4", "0", str(LABELS[5]), "", str(LABELS[5]), "B"]


def test_lists_that_differ_are_compared_on_what_they_share(tmp_path: Path, capsys) -> None:
    a = made(tmp_path / "a", 1, 0.5)
    b = made(tmp_path / "b", 2, 0.5, labels=LABELS[:70], num_clips=9, list_sha256="x\x1b[2J")
    told = comparison(a, b)
    printed = capsys.readouterr().out
    assert told["num_videos"] == 70
    assert told["only_in_a"] == [f"v{place}.mp4" for place in range(70, 80)]
    assert "warning: only A tested 10 more, which are left out: v70.mp4, " in printed
    assert "  - num_clips: 3 in A, 9 in B\n" in printed
    assert r"  - list_sha256: None in A, x\x1b[2J in B" in printed
    assert "checkpoint_sha256" not in printed


def test_names_cannot_drive_the_terminal(tmp_path: Path, capsys) -> None:
    names = [f"\x1b]0;title\x07{place}\t\u202e.mp4" for place in range(80)]
    for folder, seed in (("a", 1), ("b", 2)):
        scores = made_up_scores(LABELS, num_classes=6, seed=seed, names=names)
        write_test(tmp_path / folder, scores, class_names=["\x1b[31mred"] * 6)
    told = comparison(tmp_path / "a", tmp_path / "b")
    printed = capsys.readouterr().out
    assert told["disagreements"][0]["video"] in names
    assert all(char.isprintable() for char in printed.replace("\n", ""))
    assert all(line.count("\t") == 5 for line in (tmp_path / "out.tsv").read_text().splitlines())


def other_labels(folder: Path) -> None:
    made(folder, 2, 0.3, labels=[5 - label for label in LABELS])


def other_names(folder: Path) -> None:
    scores = made_up_scores(LABELS, num_classes=6, names=[f"w{i}" for i in range(80)])
    write_test(folder, scores)


def other_classes(folder: Path) -> None:
    write_test(folder, made_up_scores(LABELS, num_classes=7))


def no_results(folder: Path) -> None:
    (folder / "results.json").unlink()


def damaged_results(folder: Path) -> None:
    (folder / "results.json").write_text('{"top1": ')


def damaged_scores(folder: Path) -> None:
    (folder / "scores.npz").write_bytes(b"text")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (other_labels, "different labels for 80 of 80 videos: v0.mp4 ("),
        (other_names, "no video in common: theirs are such as v0.mp4 and w0;"),
        (other_classes, "has 6 classes and "),
        (no_results, "poor/results.json: no such file"),
        (damaged_results, "poor/results.json: cannot be read: "),
        (damaged_scores, "poor/scores.npz: is no file of scores"),
    ],
)
def test_tests_that_cannot_be_compared(two, capsys, harm, message: str) -> None:
    harm(two[1])
    assert main(["compare", *map(str, two), "--out", str(two[1] / "out.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (two[1] / "out.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--show", "-1"], "--show -1: must be 0 or more"),
        (["--out", "table.txt"], "--out table.txt: must end in .json"),
        (["--out", "{folder}/results.json/out.json"], "is no folder that may be written"),
    ],
)
def test_wrong_options_are_one_message(two, capsys, words, message: str) -> None:
    words = [word.format(folder=two[1]) for word in words]
    assert main(["compare", *map(str, two), *words]) == 2
    assert message in capsys.readouterr().err
