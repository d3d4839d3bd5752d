from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videogn.errors import UserError
from videogn.models.i3d import INFLATIONS, LAYOUTS, Layout, i3d, minimum_input, temporal_kernels

NORMS = ("bn", "gn")
TINY = {"width": 8, "num_groups": 8, "num_classes": 5}


def on_meta(num_frames=32, size=224, **options):
    """A network and a clip without memory: only shapes are computed."""
    with torch.device("meta"):
        return i3d(**options).eval(), torch.empty(1, 3, num_frames, size, size)


def sizes_of_layers(num_frames, size, **options):
    """(T, H, W) behind conv1, pool1, res2, pool2, res3, res4, res5."""
    network, clip = on_meta(num_frames, size, **options)
    sizes = []
    for block in (network.blocks[0].conv, *network.blocks[:-1]):
        block.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    locations = network.forward_locations(clip)
    return sizes, tuple(locations.shape[2:])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_are_those_of_the_papers_network(norm, layout):
    network, _ = on_meta(norm=norm, layout=layout)
    assert sum(parameter.numel() for parameter in network.parameters()) == 28_043_472
    assert len(network.state_dict()) == {"gn": 161, "bn": 267 + 53}[norm]


def test_names_are_the_same_for_both_norms():
    gn, bn = (dict(on_meta(norm=norm)[0].named_parameters()) for norm in ("gn", "bn"))
    assert {name: p.shape for name, p in gn.items()} == {name: p.shape for name, p in bn.items()}


@pytest.mark.parametrize(
    ("layout", "num_frames", "size", "times", "pixels", "positions"),
    [
        ("nonlocal", 32, 224, (16, 8, 8, 4), (112, 55, 55, 28, 14, 7), (1, 1)),
        ("nonlocal", 64, 224, (32, 16, 16, 8), (112, 55, 55, 28, 14, 7), (1, 1)),
        ("nonlocal", 32, 256, (16, 8, 8, 4), (128, 63, 63, 32, 16, 8), (2, 2)),
        ("nonlocal_paper", 32, 224, (16, 8, 8, 4), (112, 56, 56, 28, 14, 7), (1, 1)),
        ("nonlocal_paper", 64, 256, (32, 16, 16, 8), (128, 64, 64, 32, 16, 8), (2, 2)),
        ("zoo", 8, 224, (8, 8, 8, 4), (112, 56, 56, 28, 14, 7), (1, 1)),
        ("zoo", 8, 256, (8, 8, 8, 4), (128, 64, 64, 32, 16, 8), (2, 2)),
    ],
)
def test_layer_sizes_are_the_tables(layout, num_frames, size, times, pixels, positions):
    sizes, located = sizes_of_layers(num_frames, size, layout=layout)
    conv1, pool1, res2, res3_time = times
    expected_times = [conv1, pool1, res2, *[res3_time] * 4]
    expected_pixels = [*pixels[:3], pixels[2], *pixels[3:]]
    assert sizes == [(t, p, p) for t, p in zip(expected_times, expected_pixels, strict=True)]
    assert located == positions


def test_positions_follow_the_whole_frame():
    _, located = sizes_of_layers(32, 256)
    network, _ = on_meta()
    wide = network.forward_locations(torch.empty(1, 3, 32, 256, 340, device="meta"))
    assert located == (2, 2)
    assert wide.shape == (1, 400, 2, 5)


@pytest.mark.parametrize(
    ("layout", "num_frames", "size", "giga"),
    [
        ("nonlocal", 32, 224, "32.83"),
        ("nonlocal", 64, 224, "65.66"),
        ("nonlocal", 128, 224, "131.32"),
        ("nonlocal", 32, 256, "42.93"),
        ("nonlocal_paper", 32, 224, "33.13"),
        ("zoo", 8, 224, "28.41"),
        ("zoo", 8, 256, "37.11"),
    ],
)
def test_multiply_adds_of_convolutions_and_classifier(layout, num_frames, size, giga):
    network, clip = on_meta(num_frames, size, layout=layout)
    with FlopCounterMode(display=False) as counter:
        network(clip)
    assert f"{counter.get_total_flops() / 2 / 1e9:.2f}" == giga  # torch counts each as two


@pytest.mark.parametrize(
    ("norm", "layout", "num_frames", "conv_and_fc", "with_norms"),
    [
        ("bn", "nonlocal", 32, "32.83", "32.97"),
        ("gn", "nonlocal", 32, "32.83", "33.18"),
        ("bn", "nonlocal_paper", 32, "33.13", "33.27"),
        ("bn", "zoo", 8, "28.41", "28.54"),
    ],
)
def test_fvcore_counts_the_tables_operations(norm, layout, num_frames, conv_and_fc, with_norms):
    from fvcore.nn import FlopCountAnalysis

    network = i3d(norm=norm, layout=layout).eval()
    analysis = FlopCountAnalysis(network, torch.zeros(1, 3, num_frames, 224, 224))
    counts = analysis.unsupported_ops_warnings(False).by_operator()
    assert f"{(counts['conv'] + counts['linear']) / 1e9:.2f}" == conv_and_fc
    norms = counts["batch_norm"] + counts["group_norm"]
    assert f"{(counts['conv'] + counts['linear'] + norms) / 1e9:.2f}" == with_norms


def pytorchvideo_i3d():
    from pytorchvideo.models.hub.resnet import i3d_r50 as peer

    return peer(pretrained=False, stem_dim_out=8, model_num_class=5)


def test_zoo_layout_is_pytorchvideos_network(randomise):
    peer = randomise(pytorchvideo_i3d())
    ours = i3d(norm="bn", layout="zoo", width=8, num_classes=5).eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    clip = torch.randn(2, 3, 8, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(clip)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(clip), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(clip[:, :, :, :112, :200]).shape, expected.shape)


def test_zoo_layout_has_pytorchvideos_names_at_full_width():
    from pytorchvideo.models.hub.resnet import i3d_r50 as peer

    with torch.device("meta"):
        expected = peer(pretrained=False).state_dict()
    ours = on_meta(norm="bn", layout="zoo")[0].state_dict()
    assert [(n, t.shape) for n, t in ours.items()] == [(n, t.shape) for n, t in expected.items()]


@pytest.mark.parametrize("norm", NORMS)
def test_initial_weights(norm):
    torch.manual_seed(0)
    network = i3d(norm=norm, width=32)
    last = [m.branch2.norm_c for m in network.modules() if hasattr(m, "branch2")]
    assert len(last) == 16
    assert all(not layer.weight.any() for layer in last)
    others = {m for m in network.modules() if hasattr(m, "eps")} - set(last)
    assert all((layer.weight == 1).all() for layer in others)
    assert all(not layer.bias.any() for layer in (*others, *last))

    head = network.blocks[6].proj
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv3d)):
        fan_out = conv.out_channels * torch.tensor(conv.kernel_size).prod().item()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.08)
        assert conv.bias is None


def test_every_block_starts_as_the_identity():
    network = i3d(**TINY)
    block = network.blocks[3].res_blocks[1]
    clip = torch.rand(1, 64, 4, 5, 5)
    assert torch.equal(block(clip), clip)


def test_pooled_window_is_an_average_over_time_and_seven_pixels():
    head = i3d(**TINY).blocks[6].eval()
    features = torch.randn(2, 256, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    logits = head(features)
    assert logits.shape == (2, 5, 2, 3)
    for row, column in product(range(2), range(3)):
        window = features[:, :, :, row : row + 7, column : column + 7]
        expected = head.proj(window.mean((2, 3, 4)))
        torch.testing.assert_close(logits[:, :, row, column], expected, rtol=1e-4, atol=1e-6)


def test_forward_is_the_mean_over_positions():
    network = i3d(layout="zoo", **TINY).eval()
    clip = torch.randn(1, 3, 4, 260, 240, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        located = network.forward_locations(clip)
        assert located.shape == (1, 5, 3, 2)
        torch.testing.assert_close(network(clip), located.mean((2, 3)))


def test_dropout_acts_in_training_alone():
    network = i3d(**TINY, dropout=0.5)
    clip = torch.randn(1, 3, 16, 56, 56)
    features = network.features(clip)
    head = network.blocks[6]
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


@pytest.mark.parametrize(
    ("layout", "minimum"), [("nonlocal", (7, 5)), ("nonlocal_paper", (1, 1)), ("zoo", (2, 1))]
)
def test_smallest_clip_passes_and_a_smaller_one_is_refused(layout, minimum):
    frames, size = minimum
    assert minimum_input(LAYOUTS[layout]) == minimum
    # Two channels a group: torch refuses statistics of a single value.
    network = i3d(layout=layout, width=16, num_groups=8, num_classes=5).eval()
    assert network(torch.zeros(1, 3, frames, size, size)).shape == (1, 5)
    too_small = [(frames - 1, 32, 32), (frames, size - 1, 32), (frames, 32, size - 1)]
    for shape in (shape for shape in too_small if min(shape) > 0):
        with pytest.raises(UserError, match=f"at least {frames} frames of {size}x{size}"):
            network(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("shape", [(1, 3, 56, 56), (1, 1, 16, 56, 56), (3, 16, 56, 56)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"\(B, 3, T, H, W\)"):
        i3d(**TINY)(torch.zeros(shape))


def test_temporal_kernels_continue_their_pattern():
    kinds = INFLATIONS["3x1x1"]
    assert [[a for a, _ in temporal_kernels(kinds, stage, 5)] for stage in range(4)] == [
        [3, 3, 3, 3, 3],
        [3, 1, 3, 1, 3],
        [3, 1, 3, 1, 3],
        [1, 3, 1, 3, 1],
    ]
    network = i3d(depths=(1, 2, 3, 4), **TINY)
    kernels = {
        name: module.kernel_size[0]
        for name, module in network.named_modules()
        if name.endswith("conv_a")
    }
    assert list(kernels.values()) == [3, 3, 1, 3, 1, 3, 1, 3, 1, 3]


@pytest.mark.parametrize("depths", [(2,), (1, 1), (1, 1, 1)])
def test_fewer_stages_end_in_the_classifier(depths):
    network = i3d(depths=depths, **TINY)
    assert network(torch.zeros(2, 3, 8, 16, 16)).shape == (2, 5)
    assert network.blocks[len(depths) + 2].proj.in_features == 32 * 2 ** (len(depths) - 1)


def test_other_clips_change_no_bit_of_a_clips_logits_under_gn(randomise):
    network = randomise(i3d(**TINY)).train()
    network.blocks[6].dropout.p = 0.0
    generator = torch.Generator().manual_seed(0)
    clip, others = torch.randn(4, 3, 8, 32, 32, generator=generator).split([1, 3])
    outputs = [network(torch.cat([clip, scale * others]))[0] for scale in (1, 100)]
    assert torch.equal(*outputs)


def test_the_64_frame_network_has_the_weights_of_the_32_frame_one(randomise):
    network = randomise(i3d(**TINY))
    short = torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network.features(short).shape[2] == 4
        assert network.features(short.repeat(1, 1, 2, 1, 1)).shape[2] == 8


def test_the_network_compiles_as_one_graph(randomise):
    network = randomise(i3d(**TINY, depths=(1, 1, 1, 1)))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert {type(step) for conv in convs for step in conv.stride} == {int}
    clip = torch.randn(1, 3, 8, 32, 32)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clip), network(clip))


def test_autocast_runs_on_the_cpu():
    network = i3d(**TINY).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert network(torch.zeros(1, 3, 8, 32, 32)).dtype == torch.bfloat16


def test_layout_table_states_every_field():
    assert {"nonlocal", "nonlocal_paper", "zoo"} < set(LAYOUTS)
    assert all(isinstance(layout, Layout) for layout in LAYOUTS.values())
    assert LAYOUTS["nonlocal"].pool1_padding == (0, 0, 0)
