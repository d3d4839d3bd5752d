import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from videogn.errors import UserError
from videogn.models.i3d import i3d_r50
from videogn.models.norm import NORMS, is_norm, make_norm, norm_parameters

sizes = st.integers(1, 4)


def normalised(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)


def with_random_affine(layer: nn.Module, seed: int) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(size=(2, layer.weight.numel()))
    layer = layer.double()
    layer.weight.data, layer.bias.data = torch.tensor(gamma), torch.tensor(beta)
    return layer, gamma, beta


@settings(deadline=None, max_examples=60)
@given(
    batch=sizes,
    groups=sizes,
    size=sizes,
    extent=st.lists(sizes, min_size=2, max_size=3),
    by_size=st.booleans(),
)
def test_group_norm_is_the_papers_formula(batch, groups, size, extent, by_size):
    assume(batch * size * np.prod(extent) > 1)  # torch refuses statistics of a single value
    channels = groups * size
    x = np.random.default_rng(0).normal(3, 2, size=(batch, channels, *extent))
    factory = (
        make_norm("gn", num_groups=7, channels_per_group=size, dims=len(extent))
        if by_size
        else make_norm("gn", num_groups=groups, dims=len(extent))
    )
    layer, gamma, beta = with_random_affine(factory(channels), 1)

    grouped = x.reshape(batch, groups, size, *extent)
    hat = normalised(grouped, tuple(range(2, grouped.ndim))).reshape(x.shape)
    per_channel = (slice(None), *[None] * len(extent))
    expected = gamma[per_channel] * hat + beta[per_channel]

    np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(2, 4),
    channels=st.integers(1, 5),
    extent=st.lists(sizes, min_size=2, max_size=3),
)
def test_batch_norm_is_the_papers_formula_and_keeps_a_tenth_of_each_batch(batch, channels, extent):
    x = np.random.default_rng(0).normal(3, 2, size=(batch, channels, *extent))
    layer, gamma, beta = with_random_affine(make_norm("bn", dims=len(extent))(channels), 1)
    layer.train()
    out = layer(torch.tensor(x)).detach().numpy()

    axes = (0, *range(2, x.ndim))
    per_channel = (slice(None), *[None] * len(extent))
    expected = gamma[per_channel] * normalised(x, axes) + beta[per_channel]
    np.testing.assert_allclose(out, expected, atol=1e-9)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * x.mean(axes), atol=1e-12)
    np.testing.assert_allclose(
        layer.running_var.numpy(), 0.9 + 0.1 * x.var(axes, ddof=1), atol=1e-12
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_other_clips_change_no_bit_of_a_clips_output_under_gn(dims):
    generator = torch.Generator().manual_seed(0)
    layer = make_norm("gn", num_groups=4, dims=dims)(8)
    clip = torch.randn(1, 8, *[5] * dims, generator=generator)
    outputs = [
        layer(torch.cat([clip, scale * torch.randn(3, 8, *[5] * dims, generator=generator)]))[0]
        for scale in (1, 1000)
    ]
    assert torch.equal(*outputs)


def test_other_clips_do_change_a_clips_output_under_bn():
    layer = make_norm("bn")(8)
    clip, others = torch.randn(1, 8, 2, 3, 3), torch.randn(3, 8, 2, 3, 3)
    outputs = [layer(torch.cat([clip, scale * others]))[0] for scale in (1, 1000)]
    assert not torch.equal(*outputs)


def test_batch_norm_refuses_the_other_dimensionality():
    with pytest.raises(ValueError, match="expected 4D"):
        make_norm("bn", dims=2)(8)(torch.zeros(2, 8, 2, 3, 3))


@pytest.mark.parametrize("channels", [64, 128, 256, 512, 1024, 2048])
def test_thirty_two_groups_are_the_default_and_group_size_wins(channels):
    assert make_norm("gn")(channels).num_groups == 32
    assert make_norm("gn", 32, 16)(channels).num_groups == channels // 16


def test_unknown_norm_is_named_with_the_choices():
    with pytest.raises(UserError, match=r"'gnn'.*bn, gn"):
        make_norm("gnn")


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (24, {"num_groups": 32}, r"24 channels out to 32 groups; set model.channels_per_group=4"),
        (24, {"channels_per_group": 16}, r"24 channels out to groups of 16 channels; set .*=8"),
        (7, {"num_groups": 2}, r"7 channels.*model.channels_per_group=1 or model.num_groups=1"),
    ],
)
def test_channels_that_groups_do_not_divide_are_refused_with_a_remedy(channels, options, message):
    with pytest.raises(UserError, match=message):
        make_norm("gn", **options)(channels)


@given(channels=st.integers(1, 300), groups=st.integers(1, 64))
def test_both_remedies_of_the_refusal_work(channels, groups):
    try:
        make_norm("gn", groups)(channels)
    except UserError as error:
        size, count = (int(word) for word in str(error).replace(" or ", "=").split("=")[1::2])
        assert make_norm("gn", groups, size)(channels).num_groups == channels // size
        assert make_norm("gn", count)(channels).num_groups == count
    else:
        assert channels % groups == 0


@pytest.mark.parametrize("norm", NORMS)
def test_norm_parameters_are_gamma_and_beta_of_all_53_layers(norm):
    with torch.device("meta"):
        network = i3d_r50(norm=norm)
    assert sum(is_norm(module) for module in network.modules()) == 53
    assert sum(parameter.numel() for parameter in norm_parameters(network)) == 53_120
    assert not any(is_norm(m) for m in (nn.Conv3d(1, 1, 1), nn.Linear(1, 1), nn.Sequential()))
    others = (nn.LayerNorm(4), nn.InstanceNorm3d(4, affine=True), nn.SyncBatchNorm(4))
    assert all(is_norm(module) for module in others)
