from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.engine.experiments import Recipe, batch_sweep, table8, with_seeds
from videogn.engine.outcomes import Outcome, entries, placed
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


def test_a_run_of_no_cell_is_refused_with_what_is_nearest() -> None:
    with pytest.raises(RunError, match=r"of gn_32x2_b8 it differs: train\.clips_per_gpu is 16"):
        placed(table8(), setting(train={"clips_per_gpu": 16}), "r")
