import json
import subprocess
import sys
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_scores import made_up_scores, plain_ranks, write_test

from videogn.cli import main
from videogn.commands.rescore import spaced_clips
from videogn.engine.statistics import accuracy_interval

LABELS = np.random.default_rng(7).integers(6, size=60).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A test of 60 videos, two of them failed, 5 clips, 6 classes."""
    scores = made_up_scores(LABELS, num_classes=6, num_clips=5, failed=[3, 40], levels=3)
    write_test(tmp_path / "run/test", scores)
    return tmp_path / "run/test"


def rescored(folder: Path, average: str = "prob") -> dict:
    return json.loads((folder / f"rescore_{average}.json").read_text())


@given(st.integers(1, 60), st.data())
def test_clips_are_spaced_evenly(total: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, total))
    chosen = spaced_clips(number, total)
    assert len(set(chosen)) == number
    assert list(chosen) == sorted(chosen)
    exact = [Decimal(i * (total - 1)) / (number - 1) for i in range(number)] if number > 1 else []
    exact = exact or [Decimal(total - 1) / 2]
    assert list(chosen) == [int(place.quantize(0, ROUND_HALF_EVEN)) for place in exact]
    if number > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)


def test_spaced_clips_of_ten() -> None:
    assert spaced_clips(1, 10) == (4,)
    assert spaced_clips(2, 10) == (0, 9)
    assert spaced_clips(3, 10) == (0, 4, 9)
    assert spaced_clips(5, 10) == (0, 2, 4, 7, 9)
    assert spaced_clips(10, 10) == tuple(range(10))


@pytest.mark.parametrize("average", ["prob", "logit", "max"])
@pytest.mark.parametrize("seed", range(4))
def test_all_clips_give_what_the_test_gave(tmp_path: Path, average: str, seed: int) -> None:
    """With ties everywhere: a sum in another order would turn some of them."""
    scores = made_up_scores(
        LABELS, num_classes=7, num_clips=10, num_crops=3, failed=[9], seed=seed, levels=2
    )
    results = write_test(tmp_path, scores, average)
    assert main(["rescore", str(tmp_path), "--clips", "10,3"]) == 0
    rows = rescored(tmp_path, average)["rows"]
    assert [row["clips"] for row in rows] == [3, 10]
    assert (rows[1]["top1"], rows[1]["top5"]) == (results["top1"], results["top5"])


@pytest.mark.parametrize("average", ["prob", "logit", "max"])
def test_fewer_clips_equal_plain_loops(tmp_path: Path, average: str) -> None:
    # No ties here: the sums below are of doubles.
    scores = made_up_scores(LABELS, num_classes=6, num_clips=5, failed=[3], levels=100_000)
    write_test(tmp_path, scores)
    assert main(["rescore", str(tmp_path), "--clips", "1,2,4", "--average", average]) == 0
    views = scores.view_logits if average == "logit" else scores.view_probs
    for row, chosen in zip(
        rescored(tmp_path, average)["rows"], ([2], [0, 4], [0, 1, 3, 4]), strict=True
    ):
        assert row["chosen"] == chosen
        videos = []
        for video in views.tolist():
            crops = [crop for clip in chosen for crop in video[clip]]
            together = max if average == "max" else sum
            videos.append([together(values) for values in zip(*crops, strict=True)])
        ranks = plain_ranks(np.array(videos), scores)
        for k in (1, 5):
            right = sum(rank is not None and rank < k for rank in ranks)
            assert row[f"top{k}"] == 100 * right / 60
            assert row[f"top{k}_interval"] == list(accuracy_interval(right, 60))


@pytest.mark.parametrize("name", [".", "scores.npz", ".."])
def test_table_files_and_plot(folder: Path, capsys, name: str) -> None:
    assert main(["rescore", str(folder / name)]) == 0
    printed = capsys.readouterr().out
    written = rescored(folder)
    assert "60 videos (2 failed, counted as wrong), 5 clips x 2 crops, average prob" in printed
    assert [row["clips"] for row in written["rows"]] == [1, 2, 3, 4, 5]
    for row in written["rows"]:
        low, high = row["top1_interval"]
        assert f"{row['top1']:.2f}  {low:.2f} to {high:.2f}" in printed
    assert (written["num_videos"], written["num_failed"]) == (60, 2)
    assert (written["num_clips"], written["num_crops"]) == (5, 2)
    picture = cv2.imread(str(folder / "rescore_prob.png"))
    assert picture.shape == (800, 1800, 3)
    # White, with something blue (top-1) in the left half and orange (top-5) in the right one.
    blue = (picture[:, :, 0].astype(int) - picture[:, :, 2]) > 60
    orange = (picture[:, :, 2].astype(int) - picture[:, :, 0]) > 60
    assert blue[:, :900].sum() > 500
    assert orange[:, 900:].sum() > 500
    assert not blue[:, 900:].any()


def test_a_folder_for_results_and_one_clip(folder: Path, tmp_path: Path) -> None:
    (folder / "results.json").unlink()  # scores are enough
    before = sorted(path.name for path in folder.iterdir())
    words = ["rescore", str(folder), "--clips", "1", "--average", "max"]
    assert main([*words, "--out", str(tmp_path / "new/out")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [
        "rescore_max.json",
        "rescore_max.png",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "1,6"], "6 is not in 1 to 5, the clips of each video in this test"),
        (["--clips", "0"], "0 is not in 1 to 5"),
        (["--clips", "9" * 5000], "is not in 1 to 5"),
        (["--clips", "1,two"], "'two' is no number; give some as 1,3,5,10"),
        (["--clips=-1"], "'-1' is no number"),
        (["--clips", "1,,2"], "'' is no number"),
        (["--clips", "٣"], "is no number"),
        (["--clips", "3,1,3"], "3 is given twice"),
        (["--clips", "3,03"], "3 is given twice"),
        (["--out", "{folder}/scores.npz"], "is no folder that may be written"),
    ],
)
def test_wrong_options_are_one_message(folder: Path, capsys, words, message: str) -> None:
    words = [word.format(folder=folder) for word in words]
    assert main(["rescore", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(folder.glob("rescore*"))


def test_wrong_scores_are_one_message(folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["rescore", str(tmp_path / "absent")]) == 2
    assert "absent: no such folder" in capsys.readouterr().err
    assert main(["rescore", str(tmp_path)]) == 2
    assert "holds no test" in capsys.readouterr().err
    (folder / "scores.npz").write_bytes((folder / "scores.npz").read_bytes()[:2000])
    assert main(["rescore", str(folder)]) == 2
    assert "scores.npz: is no file of scores" in capsys.readouterr().err
    (folder / "scores.npz").unlink()
    assert main(["rescore", str(folder)]) == 2
    assert "scores.npz: no such file" in capsys.readouterr().err


def test_control_characters_are_not_printed(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a\x1b[31m"
    write_test(folder, made_up_scores(LABELS, num_classes=6))
    assert main(["rescore", str(folder), "--clips", "1"]) == 0
    assert main(["rescore", str(folder / "absent\x07")]) == 2
    printed = "".join(capsys.readouterr())
    assert r"a\x1b[31m" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_neither_rescore_nor_compare_needs_torch(folder: Path) -> None:
    script = (
        "import sys; from videogn.cli import main;"
        "codes = main(['rescore', sys.argv[1]]), main(['compare', sys.argv[1], sys.argv[1]]);"
        "sys.exit(codes != (0, 0) or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
