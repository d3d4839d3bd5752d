import re

import pytest
from report_folders import CELLS, config_tree

from videogn.engine.report.table8 import COLUMNS, PUBLISHED, Cell, cell_of, departures, settings_of

# Typed from the paper's Table 8: clip length, clips per GPU -> top-1, top-5.
PAPER = {
    ("bn", 32, 8): (73.3, 90.7),
    ("bn", 32, 4): (72.1, 90.0),
    ("bn", 64, 4): (73.3, 90.8),
    ("gn", 32, 8): (73.0, 90.6),
    ("gn", 32, 4): (72.8, 90.6),
    ("gn", 64, 4): (74.5, 91.7),
}


def changed(**changes: object) -> dict:
    tree = config_tree("gn", 32, 2, 4)
    for name, value in changes.items():
        section, _, leaf = name.partition("__")
        tree[section][leaf] = value
    return tree


def test_published_numbers_are_the_papers() -> None:
    ours = {
        (cell.norm, cell.column.num_frames, cell.column.clips_per_gpu): accuracy
        for cell, accuracy in PUBLISHED.items()
    }
    assert ours == PAPER
    # A frame of two over 64 frames, or each of 64: the same span (non-local paper, section 4.1).
    assert {c.num_frames * c.frame_stride for c in COLUMNS} == {64}


@pytest.mark.parametrize("name", CELLS)
def test_configs_of_the_six_runs_are_the_six_cells(name: str) -> None:
    norm, frames, stride, clips, _ = CELLS[name]
    cell = cell_of(settings_of(config_tree(norm, frames, stride, clips)), "last")
    assert isinstance(cell, Cell)
    assert (cell.norm, cell.column.num_frames, cell.column.clips_per_gpu) == (norm, frames, clips)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model__num_classes": 4}, "4 classes, not the 400 of Kinetics-400"),
        ({"model__arch": "i3d_r101"}, "another network: i3d_r101, layout nonlocal"),
        ({"model__layout": "zoo"}, "another network: i3d_r50, layout zoo"),
        ({"model__norm": "sync_bn"}, "its norm is sync_bn"),
        ({"model__num_groups": 16}, "groups"),
        ({"model__channels_per_group": 16}, "groups"),
        ({"model__width": 32}, "width or depth"),
        ({"model__depths": [1, 1]}, "width or depth"),
        ({"clip__frame_stride": 1}, "32 x 1 frames, 4 clips per GPU"),
        ({"train__clips_per_gpu": 2}, "32 x 2 frames, 2 clips per GPU"),
        ({"clip__num_frames": [64]}, r"no column of \[64\]"),
    ],
)
def test_other_networks_and_tasks_are_no_cell(changes: dict, why: str) -> None:
    found = cell_of(settings_of(changed(**changes)), "last")
    assert isinstance(found, str)
    assert re.search(why, found)


def test_groups_do_not_matter_to_bn() -> None:
    tree = config_tree("bn", 32, 2, 8)
    tree["model"]["channels_per_group"] = 16
    assert isinstance(cell_of(settings_of(tree), "best"), Cell)


def test_inflated_weights_are_no_cell() -> None:
    assert "never trained" in str(cell_of(settings_of(changed()), "inflated"))


@pytest.mark.parametrize("tree", [{}, {"model": None}, {"model": [], "clip": 3}])
def test_a_config_that_is_not_there_is_no_cell(tree: dict) -> None:
    assert "unknown classes" in str(cell_of(settings_of(tree), None))


def test_the_papers_own_recipe_departs_in_nothing() -> None:
    assert departures(settings_of({"test": {"average": "prob"}}, changed()), 19_761) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"test__protocol": "center"}, "test.protocol is center"),
        ({"test__num_clips": 3}, "test.num_clips is 3"),
        ({"test__num_crops": 3}, "test.num_crops is 3"),
        ({"test__average": "max"}, "test.average is max"),
        ({"clip__short_side_min": 224}, "clip.short_side_min is 224"),
        ({"clip__fps": 30.0}, "clip.fps is 30.0"),
        ({"train__mixup_alpha": 0.2}, "train.mixup_alpha is 0.2"),
        ({"train__freeze": ["blocks.0"]}, "train.freeze is ['blocks.0']"),
        ({"model__layout": "nonlocal_paper"}, "model.layout is nonlocal_paper"),
    ],
)
def test_each_departure_is_told(changes: dict, told: str) -> None:
    (sentence,) = departures(settings_of(changed(**changes)), 19_761)
    assert sentence.startswith(told)


def test_another_list_is_told_by_its_length() -> None:
    (sentence,) = departures(settings_of(changed()), 19_760)
    assert "19,760 videos" in sentence
