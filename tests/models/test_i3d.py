from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videogn.errors import UserError
from videogn.models.build import build_network
from videogn.models.i3d import INFLATIONS, LAYOUTS, Layout, i3d, minimum_input, temporal_kernels
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.models.summary import cost_of

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


# Counted from the released code and configs of each project, in fvcore's convention:
# architecture, layout, frames, size -> parameters, multiply-adds (G) of convolutions and
# classifier, and with the norms' operations as fvcore counts them (BN, GN).
PUBLISHED = [
    ("i3d_r50", "nonlocal", 32, 224, 28_043_472, 32.83, 32.97, 33.18),
    ("i3d_r50", "nonlocal", 64, 224, 28_043_472, 65.66, 65.94, 66.36),
    ("i3d_r50", "nonlocal", 128, 224, 28_043_472, 131.32, 131.88, None),
    ("i3d_r50", "nonlocal", 32, 256, 28_043_472, 42.93, 43.11, None),
    ("i3d_r50", "nonlocal", 64, 256, 28_043_472, 85.85, 86.22, None),
    ("i3d_r50", "nonlocal_paper", 32, 224, 28_043_472, 33.13, 33.27, None),
    ("i3d_r50", "nonlocal_8x8", 8, 224, 28_043_472, 28.11, 28.24, None),
    ("i3d_r50", "nonlocal_8x8", 8, 256, 28_043_472, 36.76, 36.93, None),
    ("i3d_r50", "nonlocal_8x8", 32, 224, 28_043_472, 112.43, 112.95, None),
    ("i3d_r50", "zoo", 8, 224, 28_043_472, 28.41, 28.54, None),
    ("i3d_r50", "zoo", 8, 256, 28_043_472, 37.11, 37.28, None),
    ("i3d_r50", "zoo", 32, 224, 28_043_472, 113.64, 114.16, None),
    ("i3d_r50", "mmaction2", 32, 224, 28_043_472, 33.13, 33.27, None),
    ("i3d_r50", "mmaction2", 32, 256, 28_043_472, 43.27, 43.46, None),
    ("i3d_heavy_r50", "mmaction2_heavy", 32, 224, 33_024_208, 126.8, 127.3, None),
    ("i3d_heavy_r50", "mmaction2_heavy", 32, 256, 33_024_208, 165.6, 166.3, None),
    ("c2d_r50", "nonlocal", 32, 224, 24_327_632, 20.23, 20.37, None),
    ("i3d_r101", "nonlocal", 32, 224, 51_754_192, 51.38, 51.56, None),
    ("c2d_r101", "nonlocal", 32, 224, 43_319_760, 35.08, 35.26, None),
    ("resnet50", "nonlocal", 1, 224, 25_557_032, 4.09, 4.11, 4.14),
]


def published_network(arch, norm, layout):
    own = ARCHITECTURES[arch]
    num_classes = 1000 if own.family == "resnet2d" else 400
    spec = NetworkSpec(arch, norm, 32, None, layout, num_classes, own.width, own.depths, 0.5)
    with torch.device("meta"):
        return build_network(spec).eval()


def agrees(count, published):
    """Whether a count is the published one, give or take its last digit."""
    digits = len(str(published).partition(".")[2])
    return abs(count / 1e9 - published) < 1.5 * 10**-digits


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: "-".join(map(str, row[:4])))
def test_parameters_and_operations_are_the_published_ones(row):
    arch, layout, num_frames, size, parameters, conv_and_fc, *with_norms = row
    for norm, with_norm in zip(("bn", "gn"), with_norms, strict=True):
        if with_norm is None:
            continue
        network = published_network(arch, norm, layout)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        cost = cost_of(network, (num_frames, size, size))
        assert agrees(cost.multiply_adds, conv_and_fc)
        assert agrees(cost.multiply_adds + cost.norm_operations, with_norm)


def test_inflated_middle_kernels_cost_what_the_paper_says():
    # Non-local paper, Table 3 (c): I3D R101 3x3x3 has 1.5 times C2D's parameters and 1.8 times its
    # operations, 3x1x1 has 1.2 and 1.5 times.
    costs = {}
    for arch in ("c2d_r101", "i3d_r101", "i3d_3x3x3_r101"):
        network = published_network(arch, "bn", "nonlocal")
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 224, 224, device="meta"))
        size = sum(p.numel() for p in network.parameters())
        costs[arch] = (size, counter.get_total_flops())
    ratios = {
        arch: tuple(round(a / b, 1) for a, b in zip(cost, costs["c2d_r101"], strict=True))
        for arch, cost in costs.items()
    }
    assert ratios["i3d_3x3x3_r101"] == (1.5, 1.8)
    assert ratios["i3d_r101"] == (1.2, 1.5)


@pytest.mark.parametrize(
    ("arch", "first", "middle"),
    [
        ("i3d_r50", "333 3131 313131 131", "111 1111 111111 111"),
        ("i3d_3x3x3_r50", "111 1111 111111 111", "333 3131 313131 131"),
        ("i3d_heavy_r50", "333 3333 333333 333", "111 1111 111111 111"),
        ("c2d_r50", "111 1111 111111 111", "111 1111 111111 111"),
    ],
)
def test_temporal_sizes_of_the_kernels(arch, first, middle):
    network = published_network(arch, "gn", "nonlocal")
    sizes = {
        name: module.kernel_size[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d)
    }
    assert sizes["blocks.0.conv"] == (1 if arch == "c2d_r50" else 5)
    for layer, expected in (("conv_a", first), ("conv_b", middle), ("conv_c", "1" * 16)):
        found = "".join(str(size) for name, size in sizes.items() if name.endswith(layer))
        assert found == expected.replace(" ", "")
    assert all(size == 1 for name, size in sizes.items() if "branch1" in name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_frames", [8, 32, 64, 128])
def test_layouts_take_every_clip_length(layout, num_frames):
    network, clip = on_meta(num_frames, layout=layout)
    steps = num_frames // (8 if layout in ("nonlocal", "nonlocal_paper", "mmaction2") else 2)
    assert network.features(clip).shape == (1, 2048, steps, 7, 7)
    assert network(clip).shape == (1, 400)


def test_mmaction2s_head_averages_the_whole_map():
    network = i3d(layout="mmaction2", **TINY).eval()
    clip = torch.randn(1, 3, 8, 256, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.features(clip)
        assert features.shape[3:] == (8, 10)
        head = network.blocks[6].proj
        expected = features.mean((2, 3, 4)) @ head.weight.T + head.bias
        torch.testing.assert_close(network(clip), expected)
        assert network.forward_locations(clip).shape[2:] == (1, 1)


def test_five_stages_are_refused():
    with pytest.raises(UserError, match="at most 4 stages"):
        i3d(depths=(1, 1, 1, 1, 1))


def test_unknown_inflation_is_refused():
    with pytest.raises(UserError, match="choose from none, 3x1x1, 3x3x3, 3x1x1_all"):
        i3d(inflation="5x1x1")


def pytorchvideo_i3d():
    from pytorchvideo.models.hub.resnet import i3d_r50 as peer

    return peer(pretrained=False, stem_dim_out=8, model_num_class=5)


def test_zoo_layout_is_pytorchvideos_network(randomise):
    peer = randomise(pytorchvideo_i3d())
    ours = i3d(norm="bn", layout="zoo", width=8, num_classes=5).eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    # In float64: how float32 sums are split among threads moves logits by more than the bound.
    peer, ours = peer.double(), ours.double()
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(2, 3, 8, 224, 224, generator=generator, dtype=torch.float64)
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
