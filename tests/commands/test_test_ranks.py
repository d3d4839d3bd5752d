"""The test on several ranks, told to stop and killed: the results are those of one process."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import drive, forked
from tiny_run import tiny_setup

from videogn.cli import main
from videogn.data.synthetic import render_motion_dataset
from videogn.stopping import EXIT_CODE

pytestmark = [pytest.mark.dist, pytest.mark.slow]

NUM_VIDEOS = 29
"""Of no number of ranks a multiple."""
MARKER = "_test/partial/*.scores"
BAD = (5, 17)
"""Places of videos that cannot be read."""


class Lists:
    """A checkpoint outside of a run's folder, and a list of videos of which two are bad."""

    def __init__(self, folder: Path, data: Path) -> None:
        setup = tiny_setup(folder, data)
        wide = ["model.width=16", "train.iterations=1", "data.val=''"]
        assert main(["train", str(setup.config), f"out={folder}/run", *wide]) == 0
        self.checkpoint = folder / "weights.safetensors"
        shutil.copy(folder / "run" / "checkpoints" / "last.safetensors", self.checkpoint)
        render_motion_dataset(folder / "videos", {"many": NUM_VIDEOS}, seed=8)
        self.list = folder / "videos" / "motion_many.txt"
        for place in BAD:
            name = self.list.read_text().splitlines()[place].split()[0]
            (self.list.parent / name).write_bytes(b"no video")
        self.words = ["test", str(setup.config), "--checkpoint", str(self.checkpoint)]
        self.words += [f"data.test={self.list}", "test.num_clips=10", "test.num_crops=3"]
        # A pass a view, so that a test takes long enough to be interrupted.
        self.words += ["model.width=16", "test.views_per_pass=1"]


@pytest.fixture(scope="module")
def lists(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Lists:
    return Lists(tmp_path_factory.mktemp("lists"), tiny_data)


@pytest.fixture(scope="module")
def whole(lists: Lists, tmp_path_factory: pytest.TempPathFactory):
    """The test on so many ranks that nothing happens to, each made once."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def run(ranks: int) -> Path:
        drive(lists.words, ranks, folder, folder=f"of {ranks}")
        return folder / f"of {ranks}_test"

    return run


def contents(folder: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """The results but for the name of the run, and the other files byte by byte."""
    results = json.loads((folder / "results.json").read_text())
    results["config"].pop("out")
    assert not (folder / "partial").exists()
    files = ((folder / name).read_bytes() for name in ("scores.npz", "thumbnails.npz"))
    return results, *files


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_gives_the_bytes_of_one(whole, ranks: int) -> None:
    one, many = contents(whole(1)), contents(whole(ranks))
    assert many[0].pop("world_size") == ranks
    assert one[0].pop("world_size") == 1
    assert one == many


def test_torchruns_ranks_give_the_bytes_of_one(whole, lists: Lists, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--standalone", "--nproc-per-node=2", "-m", "videogn", *lists.words, f"out={out}"]
    launcher = "from torch.distributed.run import main; main()"
    with forked(launcher, tmp_path, *words, environment={"OMP_NUM_THREADS": "1"}) as torchrun:
        assert torchrun.ended(240) == 0, torchrun.stderr.read_text()
    one, two = contents(whole(1)), contents(tmp_path / "out_test")
    assert (one[0].pop("world_size"), two[0].pop("world_size")) == (1, 2)
    assert one == two


def test_videos_that_failed_are_those_of_the_list(whole, lists: Lists) -> None:
    results = contents(whole(3))[0]
    names = [line.split()[0] for line in lists.list.read_text().splitlines()]
    assert [entry["path"] for entry in results["failed"]] == [names[place] for place in BAD]
    with np.load(whole(3) / "scores.npz") as scores:
        assert np.flatnonzero(~scores["ok"]).tolist() == list(BAD)
        assert scores["view_logits"].shape == (NUM_VIDEOS, 10, 3, 4)
        assert scores["video"].tolist() == names


@pytest.mark.parametrize(
    ("ranks", "signals"), [(1, ["SIGKILL"]), (3, ["SIGKILL"]), (2, ["SIGTERM", "SIGUSR1"])]
)
def test_an_interrupted_test_goes_on_to_the_same_bytes(
    whole, lists: Lists, tmp_path: Path, ranks: int, signals: list[str]
) -> None:
    told = drive(
        lists.words,
        ranks,
        tmp_path,
        times=3,
        signals=signals,
        seconds=1.0,
        marker=MARKER,
    )
    print(told)
    for number in range(told["rounds"]):
        assert contents(tmp_path / f"{number}_test") == contents(whole(ranks))
    printed = (tmp_path / "output.txt").read_text()
    if "SIGTERM" in signals:
        assert [EXIT_CODE] * ranks in [codes for codes, _, _ in told["kills"]]
        assert "the same command goes on from there (exit code 75)" in printed
    assert "goes on" in printed


def test_another_number_of_ranks_goes_on_too(whole, lists: Lists, tmp_path: Path) -> None:
    """Stopped on three ranks, finished on one."""
    order = {"signals": ["SIGTERM"], "seconds": 0.3, "marker": MARKER}
    told = drive(lists.words, 3, tmp_path, times=1, folder="moved", once=True, **order)
    assert told["kills"][0][0] == [EXIT_CODE] * 3
    done = drive(lists.words, 1, tmp_path, folder="moved")
    assert done["kills"] == []
    moved, one = contents(tmp_path / "moved_test"), contents(whole(1))
    assert moved == one
