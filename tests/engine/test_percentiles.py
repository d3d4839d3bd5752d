"""What is seen of a layer, and the picture of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from videogn.engine.percentiles import (
    check_called,
    find_layer,
    percentile_entry,
    percentiles_of,
    watched,
)
from videogn.engine.report.percentiles import (
    KIND,
    Percentiles,
    draw_percentiles,
    figure6,
    percentiles_in,
    value_range,
)
from videogn.errors import ConfigError, RunError
from videogn.models.execution import Execution
from videogn.models.i3d import i3d
from videogn.models.vgg2d import vgg16

PERCENT = [1, 20, 80, 99]


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=400),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_they_are_numpys(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    expected = np.percentile(tensor.double().numpy(), PERCENT)
    assert percentiles_of(tensor).tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


def test_more_values_than_torch_quantile_takes_in_any_order_of_memory() -> None:
    count = 2**24 + 5
    values = torch.randperm(count, dtype=torch.int32).float()
    # Floats hold whole numbers up to 2^24 exactly; the last few are rounded.
    expected = [p / 100 * (count - 1) for p in PERCENT]
    assert percentiles_of(values).tolist() == pytest.approx(expected, abs=1)
    small = torch.randn(2, 3, 4, 5, 6)
    last = small.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(percentiles_of(small), percentiles_of(last))


def test_conv5_3_of_vgg16_is_features_40_with_every_norm() -> None:
    for norm in ("gn", "bn", "ln", "none"):
        with torch.device("meta"):
            network = vgg16(norm=norm)
        found = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
        assert (len(found), found[-1]) == (13, "features.40")


def test_only_the_first_pass_is_kept_and_before_what_works_in_place() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True))
    first, second = torch.randn(2, 6, 3).unbind()
    with watched(network, "0", keep=True) as seen:
        network(first)
        network(second)
    with torch.no_grad():
        expected = np.percentile(network[0](first).double().numpy(), PERCENT)
    assert expected[0] < 0
    assert seen.calls == 2
    assert seen.values is not None
    assert seen.values.tolist() == pytest.approx(expected.tolist())
    network(first)
    assert seen.calls == 2


def test_no_hook_is_left_where_a_pass_fails() -> None:
    network = nn.Sequential(nn.Linear(3, 8))
    with pytest.raises(RuntimeError), watched(network, "0", keep=True):
        assert len(network[0]._forward_hooks) == 1
        network(torch.zeros(1, 4))
    assert not network[0]._forward_hooks


def test_names_that_are_like_a_wrong_one_are_told() -> None:
    with torch.device("meta"):
        network = vgg16()
    with pytest.raises(ConfigError, match=r"no layer 'feature\.40'; like it are .*features\.40"):
        find_layer(network, "feature.40")
    with pytest.raises(ConfigError, match=r"no layer 'conv5_3'; it has features, features\.0, "):
        find_layer(network, "conv5_3")
    # The whole network has no name that `videogn info` would list.
    with pytest.raises(ConfigError, match="no layer ''"):
        find_layer(network, "")


def test_fused_networks_keep_their_convolutions_and_tell_what_they_lack() -> None:
    form = Execution(norms="fused", convolutions="2d", memory_format=torch.channels_last_3d)
    plain, fused = (i3d(norm="gn", num_groups=2, width=4, depths=(1, 1)) for _ in range(2))
    fused = form.apply(fused)
    convolutions = [n for n, m in plain.named_modules() if isinstance(m, nn.Conv3d)]
    assert len(convolutions) > 4
    for name in convolutions:
        find_layer(fused, name, str(form))
    find_layer(plain, "blocks.0.activation")
    with pytest.raises(ConfigError, match=r"\(fused norms, .*compute\.norms=eager"):
        find_layer(fused, "blocks.0.activation", str(form))


def test_layers_that_are_not_called_or_give_no_floats_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.whole = nn.ReLU(), nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.whole(x.long())
            return x

    network = Odd()
    with watched(network, "idle", keep=True) as seen:
        network(torch.ones(2, 2))
    with pytest.raises(RunError, match=r"percentile_layer=idle: the layer is not called"):
        check_called(seen, "idle")
    with (
        pytest.raises(ConfigError, match="no tensor of floats"),
        watched(network, "whole", keep=False),
    ):
        network(torch.ones(2, 2))
    assert not network.whole._forward_hooks


def test_what_is_not_finite_is_null_in_the_log() -> None:
    values = torch.full((100,), torch.inf)
    values[:50] = torch.arange(50)
    layer = nn.Identity()
    with watched(nn.Sequential(layer), "0", keep=True) as seen:
        layer(values)
    kind, entry = percentile_entry(seen, "0", 7)
    assert kind == KIND
    assert entry == {
        "iteration": 7,
        "layer": "0",
        "values": [pytest.approx(0.99), pytest.approx(19.8), None, None],
    }
    json.dumps(entry, allow_nan=False)


START = {"kind": "start", "iteration": 0, "num_videos": 100, "global_batch": 10}


def entry(iteration: int, shift: float = 0.0, layer: str = "a.b", **change: object) -> dict:
    values = [shift + v for v in (-2.0, -1.0, 1.0, 3.0)]
    return {"kind": KIND, "iteration": iteration, "layer": layer, "values": values, **change}


def test_a_log_is_read_by_epochs_and_the_layer_that_was_seen_last() -> None:
    log = [
        START,
        entry(10, layer="old"),
        entry(20),
        entry(30, values=[1.0, None, 2.0, 3.0]),
        entry(30, 1.0, layer="a.b"),
        {"kind": "val", "iteration": 30, "top1": 5.0},
        entry(40, values=[1.0, 2.0]),
        entry(50, values="abcd"),
        entry(60, layer=None),
        START | {"global_batch": 20},
        entry(35, 2.0),
    ]
    found = percentiles_in(log)
    assert found == Percentiles(
        "a.b", (2.0, 3.0, 7.0), ((-2.0, -1.0, 1.0, 3.0), (-1.0, 0.0, 2.0, 4.0), (0.0, 1.0, 3.0, 5))
    )
    assert percentiles_in([START]) is None


def test_the_figure_has_four_lines_per_run_on_one_axis() -> None:
    ours = percentiles_in([START, entry(10), entry(20, 1.0)])
    theirs = percentiles_in([START, entry(10, 50.0), entry(20, values=[None] * 4)])
    assert ours is not None
    assert theirs is not None
    left, right = figure6([("GN", ours), ("no norm", theirs)]).axes
    for axes in (left, right):
        assert [line.get_label() for line in axes.lines] == ["99 %", "80 %", "20 %", "1 %"]
        assert len({line.get_linestyle() for line in axes.lines}) == 4
        assert axes.get_xlabel() == "epochs"
    assert left.get_ylim() == right.get_ylim() == value_range([ours, theirs])
    assert left.get_ylim()[0] < -2
    assert left.get_ylim()[1] > 53
    assert left.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert left.lines[0].get_ydata().tolist() == [3.0, 4.0]
    assert np.isnan(right.lines[0].get_ydata()[1])
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "99 %", "80 %", "20 %", "1 %"
    ]  # fmt: skip


def written(folder: Path, *entries: dict) -> Path:
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"kind": "percentiles", "it')
    return log


def test_a_picture_is_drawn_of_a_log_with_half_a_line(tmp_path: Path) -> None:
    log, picture, said = written(tmp_path, START, entry(10), entry(20)), tmp_path / "p.png", []
    draw_percentiles(log, picture, said.append)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert said == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "p.png"]


def broken_figure(*_: object) -> None:
    raise ValueError("no fonts\nat all")


@pytest.mark.parametrize("break_it", ["log", "folder", "figure"])
def test_a_picture_that_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch, break_it: str
) -> None:
    log, picture, said = written(tmp_path, START, entry(10)), tmp_path / "p.png", []
    breaks: dict[str, Callable[[], object]] = {
        "log": log.unlink,
        "folder": picture.mkdir,
        "figure": lambda: monkeypatch.setattr(
            "videogn.engine.report.percentiles.figure6", broken_figure
        ),
    }
    breaks[break_it]()
    draw_percentiles(log, picture, said.append)
    [line] = said
    assert line.startswith("warning: p.png is not drawn: ")
    assert "\n" not in line
