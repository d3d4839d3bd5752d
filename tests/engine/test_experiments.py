import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.commands.shipped import config_file
from videogn.config import TrainConfig
from videogn.config_files import load_config, to_tree
from videogn.engine.experiments import Recipe, batch_sweep, keep_epochs, table8, with_seeds
from videogn.engine.plan import make_plan
from videogn.engine.report.table8 import settings_of

PAPER = {
    ("BN", "32 x 2, 8"): (73.3, 90.7),
    ("BN", "32 x 2, 4"): (72.1, 90.0),
    ("BN", "64 x 1, 4"): (73.3, 90.8),
    ("GN", "32 x 2, 8"): (73.0, 90.6),
    ("GN", "32 x 2, 4"): (72.8, 90.6),
    ("GN", "64 x 1, 4"): (74.5, 91.7),
}
KINETICS = 234_643
RECIPES = [Recipe("BN", "a.yaml", "bn"), Recipe("GN", "b.yaml", "gn")]


def test_table8_is_the_papers() -> None:
    experiment = table8()
    assert {cell.place: cell.published for cell in experiment.cells} == PAPER
    assert experiment.rows == ("BN", "GN")
    assert experiment.columns == ("32 x 2, 8", "32 x 2, 4", "64 x 1, 4")


@pytest.mark.parametrize("cell", table8().cells, ids=lambda cell: cell.name)
def test_the_config_of_a_cell_is_that_cell_and_no_other(cell) -> None:
    setting = settings_of(to_tree(load_config(config_file(cell.config)).config))
    assert [other.name for other in table8().cells if other.fits(setting)] == [cell.name]


@pytest.mark.parametrize("gpus", [1, 4, 8, 16])
@pytest.mark.parametrize("cell", table8().cells, ids=lambda cell: cell.name)
def test_table8_sees_as_many_clips_on_any_number_of_gpus(cell, gpus) -> None:
    path = config_file(cell.config)
    train = load_config(path).config.train
    words = list(keep_epochs(train, train.clips_per_gpu * gpus))
    kept = load_config(path, words).config.train
    plan = make_plan(kept, num_videos=KINETICS, world_size=gpus)
    assert plan.iterations * plan.global_batch == 25_600_000
    assert plan.val_interval * plan.global_batch == train.val_interval * train.base_batch
    assert plan.schedule.learning_rate == pytest.approx(0.01 * gpus * train.clips_per_gpu / 64)


@given(
    st.integers(1, 2048),
    st.integers(1, 128),
    st.integers(0, 1000),
    st.integers(1001, 10**6),
)
def test_kept_epochs_are_kept_within_half_a_batch(batch, base, warmup, iterations) -> None:
    train = TrainConfig(base_batch=base, warmup_iterations=warmup, iterations=iterations)
    words = dict(word.split("=") for word in keep_epochs(train, batch))
    for name in ("warmup_iterations", "iterations", "val_interval"):
        count = int(words.get(f"train.{name}", getattr(train, name)))
        wanted = getattr(train, name) * base
        assert count == 1 or abs(count * batch - wanted) <= batch / 2
        assert (count == 0) == (getattr(train, name) == 0)


def test_recipes_of_epochs_have_their_warm_up_changed_alone() -> None:
    train = TrainConfig(epochs=10, val_epochs=1, warmup_iterations=20, base_batch=8)
    assert list(keep_epochs(train, 2)) == ["train.warmup_iterations=80"]


def test_a_sweep_has_every_recipe_at_every_batch_with_every_seed() -> None:
    experiment = with_seeds(batch_sweep(RECIPES, [8, 1]), [0, 3])
    names = [cell.name for cell in experiment.cells]
    assert names == [f"{norm}_b{b}_s{s}" for norm in ("bn", "gn") for b in (8, 1) for s in (0, 3)]
    assert experiment.columns == ("8", "1")
    assert experiment.cells[1].overrides == ["train.clips_per_gpu=8", "seed=3"]
    assert experiment.difference == ("GN", "BN")


def test_a_sweep_of_other_rows_shows_no_difference() -> None:
    assert batch_sweep([RECIPES[0]], [8]).difference is None
