import json
from pathlib import Path

import pytest

from videogn.engine.experiments import Recipe, batch_sweep, table8, with_seeds
from videogn.engine.image_experiments import table3
from videogn.engine.outcomes import Outcome, entries
from videogn.engine.report.sweep_plot import draw_sweep, has_plot, sweep_figure
from videogn.engine.report.tables import json_table, markdown_table, text_table

OURS = {
    "bn_32x2_b8": (73.0, 90.5),
    "gn_32x2_b8": (73.5, 90.9),
    "gn_64x1_b4": (74.05, 91.05),
}
SWEEP = with_seeds(batch_sweep([Recipe("BN", "a", "bn"), Recipe("GN", "b", "gn")], [8, 2]), [0, 1])
SWEPT = {"bn_b8": (60, 64), "bn_b2": (20, 30), "gn_b8": (61, 61), "gn_b2": (62, 66)}


@pytest.fixture
def ours():
    cells = [cell for cell in table8().cells if cell.name in OURS]
    return entries(table8(), [Outcome(Path(c.name), c, OURS[c.name]) for c in cells])


@pytest.fixture
def swept():
    outcomes = [
        Outcome(Path(cell.name), cell, (SWEPT[cell.name[:-3]][cell.settings["seed"]], 90.0))
        for cell in SWEEP.cells
    ]
    return entries(SWEEP, outcomes)


def words_of(line: str) -> list[str]:
    return [word.strip() for word in line.split("   ") if word.strip()]


def test_table8_has_the_papers_numbers_ours_and_their_differences(ours) -> None:
    lines = text_table(table8(), ours)
    rows = [words_of(line) for line in lines[4:]]
    assert rows == [
        ["BN", "paper", "73.3 / 90.7", "72.1 / 90.0", "73.3 / 90.8"],
        ["ours", "73.00 / 90.50", "-", "-"],
        ["ours - paper", "-0.30 / -0.20", "-", "-"],
        ["GN", "paper", "73.0 / 90.6", "72.8 / 90.6", "74.5 / 91.7"],
        ["ours", "73.50 / 90.90", "-", "74.05 / 91.05"],
        ["ours - paper", "+0.50 / +0.30", "-", "-0.45 / -0.65"],
        ["GN - BN", "paper", "-0.3 / -0.1", "+0.7 / +0.6", "+1.2 / +0.9"],
        ["ours", "+0.50 / +0.40", "-", "-"],
    ]
    assert len({line.index("73.3") for line in lines if "73.3 / 90.7" in line}) == 1


def test_markdown_has_the_same_words(ours) -> None:
    lines = markdown_table(table8(), ours).splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1
    assert "| BN | paper | 73.3 / 90.7 | 72.1 / 90.0 | 73.3 / 90.8 |" in lines


def test_seeds_stand_together_with_their_spread(swept) -> None:
    table = "\n".join(text_table(SWEEP, swept))
    assert "25.00 / 90.00 ± 7.07 / 0.00 (2)" in table
    assert "paper" not in table
    assert "+39.00 / +0.00" in table


def test_json_has_every_number_and_run(swept) -> None:
    cells = json.loads(json_table(SWEEP, swept))["cells"]
    bn2 = next(cell for cell in cells if (cell["row"], cell["column"]) == ("BN", "2"))
    assert bn2["mean"] == {"top1": 25.0, "top5": 90.0}
    assert bn2["std"]["top1"] == pytest.approx(7.0711)
    assert [run["top1"] for run in bn2["runs"]] == [20, 30]
    assert bn2["published"] == {}


def test_the_plot_falls_from_large_to_small_batches_and_shows_every_run(swept) -> None:
    axes = sweep_figure(SWEEP, swept).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "2"]
    assert axes.get_xlabel() == "clips per GPU"
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["BN"] == [38.0, 75.0]
    assert lines["GN"] == [39.0, 36.0]
    marks = [list(line.get_ydata()) for line in axes.lines if line.get_label() not in ("BN", "GN")]
    assert sorted(marks) == sorted([[40, 36], [80, 70], [39, 39], [38, 34]])


def test_a_plot_over_groups_does_not_call_them_batches() -> None:
    assert has_plot(table3())
    assert sweep_figure(table3(), {}).axes[0].get_xlabel() == "number of groups or channels"


def test_the_plot_is_written_and_tables_without_numbers_have_none(swept, tmp_path) -> None:
    draw_sweep(SWEEP, swept, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert has_plot(SWEEP)
    assert not has_plot(table8())
