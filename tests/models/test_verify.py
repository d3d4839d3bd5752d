from dataclasses import replace

import pytest
import torch

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.i3d import LAYOUTS
from videogn.models.inflate import source_name
from videogn.models.sources import read_source
from videogn.models.spec import NetworkSpec
from videogn.models.verify import describe_verification, verify_inflation

SPEC = NetworkSpec("i3d_r50", "gn", 8, None, "nonlocal", 5, 8, (3, 4, 6, 3), 0.5)
UNPADDED = ("nonlocal", "nonlocal_8x8")
KEEPING_TIME = ("zoo", "nonlocal_8x8", "mmaction2_heavy")
SMALL = {"num_frames": 32, "size": 64}


def source_of(tmp_path, randomise, spec=SPEC):
    network = randomise(build_network(replace(spec, arch="resnet50")))
    torch.save(network.state_dict(), tmp_path / "source.pth")
    return read_source(tmp_path / "source.pth")


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_centre_is_exact_against_the_layouts_own_stem_and_mean_is_not(
    tmp_path, randomise, norm, layout
):
    spec = replace(SPEC, norm=norm, layout=layout)
    rows = verify_inflation(source_of(tmp_path, randomise, spec), spec, **SMALL)
    references = 2 if layout in UNPADDED else 1
    assert len(rows) == 2 * references
    exact = [row for row in rows if row.temporal_init == "center" and row.same_function]
    (row,) = exact
    assert row.reference == ("unpadded stem pool" if layout in UNPADDED else "as published")
    assert max(row.per_step) < 1e-4
    assert row.pooled < 1e-4
    assert row.logits < 1e-4
    for other in (row for row in rows if row not in exact):
        assert len(other.per_step) == (16 if layout in KEEPING_TIME else 4)
        assert max(other.per_step) > 1e-2
        assert other.logits > 1e-3


def test_logits_are_compared_by_the_sources_classifier_where_ours_is_fresh(tmp_path, randomise):
    source = source_of(tmp_path, randomise)
    rows = verify_inflation(source, replace(SPEC, num_classes=7), **SMALL)
    kept = verify_inflation(source, SPEC, **SMALL)
    # The 7 x 7 pool is the whole map at this size: both ways are the same mean.
    for row, other in zip(rows, kept, strict=True):
        assert row.logits == pytest.approx(other.logits, rel=1e-3, abs=1e-5)


def test_a_source_without_classifier_or_counters_is_verified(tmp_path, randomise):
    spec = replace(SPEC, norm="bn", depths=(1, 1, 1, 1))
    state = randomise(build_network(replace(spec, arch="resnet50"))).state_dict()
    kept = {
        name: t for name, t in state.items() if not name.startswith("fc.") and "num_b" not in name
    }
    torch.save(kept, tmp_path / "source.pth")
    rows = verify_inflation(read_source(tmp_path / "source.pth"), spec, **SMALL)
    assert min(max(row.per_step) for row in rows) < 1e-5
    assert {row.logits for row in rows} == {None}


@pytest.mark.parametrize("arch", ["i3d_3x3x3_r50", "i3d_heavy_r50"])
def test_other_architectures_are_verified(tmp_path, randomise, arch):
    spec = replace(SPEC, arch=arch, layout="mmaction2", depths=(1, 1, 1, 1))
    rows = verify_inflation(source_of(tmp_path, randomise, spec), spec, **SMALL)
    assert [max(row.per_step) < 1e-4 for row in rows] == [False, True]


@pytest.mark.parametrize("norm", ["sync_bn", "frozen_bn", "ln", "in", "none"])
def test_every_norm_is_verified(tmp_path, randomise, norm):
    spec = replace(SPEC, norm=norm, layout="zoo", depths=(1, 1, 1, 1))
    rows = verify_inflation(source_of(tmp_path, randomise, spec), spec, **SMALL)
    assert [max(row.per_step) < 1e-4 for row in rows] == [False, True]


def test_without_temporal_kernels_both_inits_are_exact_and_nothing_is_excused(tmp_path, randomise):
    spec = replace(SPEC, arch="c2d_r50", layout="zoo", depths=(1, 1, 1, 1))
    rows = verify_inflation(source_of(tmp_path, randomise, spec), spec, **SMALL)
    assert max(max(row.per_step) for row in rows) < 1e-5
    assert "by design" not in describe_verification(rows)


def test_a_tensor_in_the_wrong_place_fails(tmp_path, randomise, monkeypatch):
    block = "blocks.3.res_blocks.2.branch2.norm_"

    def swapped(name):
        places = {"a": "b", "b": "a"}
        if name.startswith(block) and name[len(block)] in places:
            name = block + places[name[len(block)]] + name[len(block) + 1 :]
        return source_name(name)

    monkeypatch.setattr("videogn.models.inflate.source_name", swapped)
    with pytest.raises(WeightError, match=r"verification failed.*nothing was written"):
        verify_inflation(source_of(tmp_path, randomise), SPEC, **SMALL)


def test_the_table_says_what_to_expect(tmp_path, randomise):
    rows = verify_inflation(source_of(tmp_path, randomise), SPEC, **SMALL)
    lines = describe_verification(rows).splitlines()
    assert len({len(line) for line in lines[1:6]}) == 1
    assert [line.split()[0] for line in lines[2:6]] == ["mean", "mean", "center", "center"]
    assert "mean differs by design: zero padding" in lines[6]
    assert "pads its stem pool; this layout, as released, does not" in lines[7]
    paper = verify_inflation(
        read_source(tmp_path / "source.pth"), replace(SPEC, layout="nonlocal_paper"), **SMALL
    )
    assert len(describe_verification(paper).splitlines()) == 5
