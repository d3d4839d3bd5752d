import pytest
import torch
from torch import nn

from videogn.errors import UserError
from videogn.models.build import build_network
from videogn.models.norm import NORMS
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.models.summary import cost_of, meta_network, summarise


def spec_of(arch="i3d_r50", norm="gn", **changes):
    own = ARCHITECTURES[arch]
    values = {
        "num_groups": 2,
        "channels_per_group": None,
        "layout": "nonlocal",
        "num_classes": 5,
        "width": own.width if own.family == "zoo" else 8,
        "depths": own.depths if own.family in ("zoo", "vgg2d") else (1, 1, 1, 1),
        "dropout": 0.5,
        **changes,
    }
    return NetworkSpec(arch=arch, norm=norm, **values)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ["i3d_r50", "resnet50", "vgg16"])
def test_operations_are_fvcores(arch, norm):
    from fvcore.nn import FlopCountAnalysis

    num_frames = 8 if arch == "i3d_r50" else 1
    spec = spec_of(arch, norm)
    network = build_network(spec).eval()
    analysis = FlopCountAnalysis(network, torch.zeros(1, 3, num_frames, 64, 64))
    counts = analysis.unsupported_ops_warnings(False).by_operator()
    cost = cost_of(meta_network(spec), (num_frames, 64, 64))
    assert cost.multiply_adds == counts["conv"] + counts["linear"]
    assert cost.norm_operations == counts["batch_norm"] + counts["group_norm"]


def test_table_is_the_papers():
    own = ARCHITECTURES["i3d_r50"]
    full = spec_of(width=own.width, depths=own.depths, num_groups=32, num_classes=400)
    rows = {row.name: row for row in summarise(full, (32, 224, 224)).rows}
    # The released code's table: kernel, stride, output (C, T, H, W).
    table = {
        "blocks.0.conv": ((5, 7, 7), (2, 2, 2), (64, 16, 112, 112)),
        "blocks.0.pool": ((2, 3, 3), (2, 2, 2), (64, 8, 55, 55)),
        "blocks.1.res_blocks.2.branch2.conv_a": ((3, 1, 1), (1, 1, 1), (64, 8, 55, 55)),
        "blocks.2": ((2, 1, 1), (2, 1, 1), (256, 4, 55, 55)),
        "blocks.3.res_blocks.0.branch2.conv_b": ((1, 3, 3), (1, 2, 2), (128, 4, 28, 28)),
        "blocks.4.res_blocks.5.branch2.conv_c": ((1, 1, 1), (1, 1, 1), (1024, 4, 14, 14)),
        "blocks.5.res_blocks.1.branch2.conv_a": ((3, 1, 1), (1, 1, 1), (512, 4, 7, 7)),
        "blocks.6.proj": ((), (), (400, 1, 1)),
    }
    for name, expected in table.items():
        row = rows[name]
        assert (row.kernel, row.stride, row.output) == expected
    assert sum(row.kind == "Conv3d" for row in rows.values()) == 53
    assert [row.name for row in rows.values()][-1] == "blocks.6.proj"


@pytest.mark.parametrize("arch", ["i3d_r50", "vgg16", "x3d_xs"])
def test_rows_hold_every_parameter_but_those_of_norms(arch):
    clip = {"i3d_r50": (8, 64, 64), "vgg16": (1, 64, 64), "x3d_xs": (4, 160, 160)}[arch]
    summary = summarise(spec_of(arch, "none"), clip)
    assert sum(row.parameters for row in summary.rows) == summary.parameters


def test_frozen_parameters_are_counted_apart():
    summary = summarise(spec_of(norm="frozen_bn"), (8, 64, 64))
    norms = 2 * (8 + sum((8 + 8 + 32 + 32) * 2**stage for stage in range(4)))
    assert summary.parameters - summary.trained_parameters == norms


def test_peak_is_the_largest_layer_with_the_shortcut_that_waits():
    stem = 3 * 8 * 64 * 64 + 8 * 8 * 32 * 32  # the clip and conv1's output
    cost = cost_of(meta_network(spec_of(depths=(1,), layout="zoo")), (8, 64, 64))
    assert cost.peak_bytes == 4 * stem
    # With 8 times the channels the last norm of the first block has more: in and out (4 w channels
    # each) while the block's input (w channels) waits for the shortcut.
    wide = cost_of(meta_network(spec_of(depths=(1,), width=64, layout="zoo")), (8, 64, 64))
    block = 64 * 8 * 16 * 16 * (4 + 4 + 1)
    assert wide.peak_bytes == 4 * max(block, 3 * 8 * 64 * 64 + 64 * 8 * 32 * 32, 2 * 64 * 8 * 32**2)


def test_a_clip_too_small_is_refused():
    with pytest.raises(UserError, match="too small"):
        summarise(spec_of(), (1, 64, 64))


def test_nothing_is_left_on_the_network():
    network = meta_network(spec_of())
    cost_of(network, (8, 64, 64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert isinstance(network, nn.Module)
