import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.commands.shipped import config_file
from videogn.config_files import load_config, to_yaml
from videogn.engine.experiments import Recipe, batch_sweep, table8, with_seeds
from videogn.engine.outcomes import Outcome, check_complete, entries, image_departures, placed
from videogn.engine.report.table8 import settings_of
from videogn.errors import RunError

SWEEP = with_seeds(
    batch_sweep([Recipe("BN", "a", "bn"), Recipe("GN", "b", "gn")], [8, 1]), [0, 1, 2]
)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=3))
def test_means_and_spreads_are_numpys(values) -> None:
    of_place = [cell for cell in SWEEP.cells if cell.place == ("GN", "1")]
    outcomes = [Outcome(Path("r"), c, v) for c, v in zip(of_place, values, strict=False)]
    entry = entries(SWEEP, outcomes)["GN", "1"]
    np.testing.assert_allclose(entry.means, np.mean(values, axis=0), atol=1e-9)
    np.testing.assert_allclose(entry.spreads, np.std(values, axis=0, ddof=1), atol=1e-6)


def test_every_place_has_an_entry_in_the_order_of_the_cells() -> None:
    found = entries(SWEEP, [])
    assert list(found) == [("BN", "8"), ("BN", "1"), ("GN", "8"), ("GN", "1")]
    assert all(entry.means == entry.spreads == () for entry in found.values())


def test_one_run_has_no_spread() -> None:
    cell = SWEEP.cells[0]
    entry = entries(SWEEP, [Outcome(Path("r"), cell, (50.0, 80.0))])[cell.place]
    assert entry.means == (50.0, 80.0)
    assert entry.spreads == ()


def setting(**leaves):
    tree = {"model": {"norm": "gn"}, "clip": {"num_frames": 32, "frame_stride": 2}}
    return settings_of(tree | {"train": {"clips_per_gpu": 8}} | leaves)


def test_a_run_is_placed_by_its_settings() -> None:
    assert placed(table8(), setting(), "r").name == "gn_32x2_b8"


def test_seeds_tell_cells_apart() -> None:
    seed_one = settings_of({"model": {"norm": "gn"}, "train": {"clips_per_gpu": 8}, "seed": 1})
    assert placed(SWEEP, seed_one, "r").name == "gn_b8_s1"


def test_a_run_that_may_be_of_two_rows_is_refused() -> None:
    rows = batch_sweep([Recipe("a", "a", "gn"), Recipe("b", "b", "gn")], [8])
    with pytest.raises(RunError, match="may be a_b8 or b_b8"):
        placed(rows, setting(), "r")


def pretraining(folder: Path, words: list[str], *, images: int, batch: int) -> list[str]:
    shipped = config_file("imagenet/r50_gn_b2")
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config(shipped, words).config))
    start = {"kind": "start", "iteration": 0, "iterations": 7, "global_batch": batch}
    (folder / "log.jsonl").write_text(json.dumps(start) + "\n")
    told = {"num_images": images, "last": {"iteration": 7}, "median": {"top1_error": 24.0}}
    (folder / "pretrain.json").write_text(json.dumps(told))
    return list(image_departures(folder, load_config(shipped).config))


def test_the_papers_training_departs_in_nothing(tmp_path) -> None:
    harmless = ["out=elsewhere", "seed=3", "data.train=a", "data.num_workers=2"]
    assert pretraining(tmp_path / "run", harmless, images=50_000, batch=16) == []


def test_what_is_not_the_papers_imagenet_is_told(tmp_path) -> None:
    words = ["model.num_classes=10", "train.epochs=30"]
    assert pretraining(tmp_path / "run", words, images=360, batch=2) == [
        "model.num_classes is 10; the cell's config has 1000",
        "train.epochs is 30.0; the cell's config has 100.0",
        "360 images to validate on; ImageNet has 50,000",
        "2 images an iteration; the paper has 16, on 8 GPUs",
    ]


def test_numbers_of_a_trainings_middle_are_refused(tmp_path) -> None:
    pretraining(tmp_path / "run", [], images=1, batch=1)
    check_complete(tmp_path / "run", 7)
    with pytest.raises(RunError, match="of iteration 5, and the training has 7"):
        check_complete(tmp_path / "run", 5)
    check_complete(tmp_path / "no log", 5)


def test_a_run_of_no_cell_is_refused_with_what_is_nearest() -> None:
    with pytest.raises(RunError, match=r"of gn_32x2_b8 it differs: train\.clips_per_gpu is 16"):
        placed(table8(), setting(train={"clips_per_gpu": 16}), "r")
