"""Group norm with channels last on a CPU, against torch's in double precision."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from videogn.models import accurate_gn
from videogn.models.accurate_gn import (
    FORMATS,
    accurate_group_norm,
    add_and_clamp,
    wants_accuracy,
)
from videogn.models.norm import GroupNorm, is_norm, make_norm

SHAPES = [(2, 64, 4, 14, 14), (1, 32, 3, 5, 7), (3, 64, 9, 8), (1, 64, 8, 56, 56)]
MEANS = [0.0, 3.0, 30.0, 1e3, 1e4]
GROUPS = 8


def made(shape: tuple[int, ...], mean: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 1.5 + mean
    # Channels of one group with means and spreads of their own.
    channels = torch.linspace(0.5, 2.0, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    return ((x - mean) * channels + mean + channels).to(dtype)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=FORMATS[x.ndim])


def layer_of(num_channels: int) -> GroupNorm:
    layer = GroupNorm(GROUPS, num_channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(num_channels, generator=generator) + 0.5)
        layer.bias.copy_(torch.randn(num_channels, generator=generator))
    return layer


def exact(x: Tensor, layer: GroupNorm) -> Tensor:
    weight, bias = layer.weight.double(), layer.bias.double()
    return F.group_norm(x.double(), GROUPS, weight, bias, layer.eps)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_hold_at_large_means(shape: tuple[int, ...], mean: float) -> None:
    x, layer = made(shape, mean), layer_of(shape[1])
    with torch.no_grad():
        found = layer(last(x))
        assert found.is_contiguous(memory_format=FORMATS[x.ndim])
        torch.testing.assert_close(found.double(), exact(x, layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
def test_torch_loses_them_there(mean: float) -> None:
    """What this module is for; once this fails, it may go."""
    x, layer = made(SHAPES[-1], mean), layer_of(64)
    with torch.no_grad():
        theirs = F.group_norm(last(x), GROUPS, layer.weight, layer.bias, layer.eps)
    assert (theirs - exact(x, layer)).abs().max() > (5e-6 if mean == 0 else 1e-2)


@pytest.mark.parametrize("mean", [0.0, 100.0, 1e3])
def test_bf16_has_statistics_in_float32(mean: float) -> None:
    x, layer = made(SHAPES[0], mean, torch.bfloat16), layer_of(64)
    with torch.no_grad():
        found = layer(last(x))
    assert found.dtype == torch.bfloat16
    # One rounding of the output.
    torch.testing.assert_close(found.double(), exact(x, layer), rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("mean", MEANS)
def test_gradients_hold_at_large_means(mean: float) -> None:
    x, layer = made(SHAPES[0], mean), layer_of(64)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    truth = x.double().requires_grad_()
    other = layer_of(64).double()
    out = F.group_norm(truth, GROUPS, other.weight, other.bias, other.eps)
    (out * weights).sum().backward()
    mine = last(x).requires_grad_()
    found = layer(mine)
    assert found.is_contiguous(memory_format=FORMATS[5])
    (found * weights).sum().backward()
    torch.testing.assert_close(found.double(), out, rtol=1e-5, atol=1e-5)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)
    for one, two in ((layer.weight, other.weight), (layer.bias, other.bias)):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-4, atol=1e-3)


RESIDUALS = ["none", "last", "contiguous", "bf16"]


@given(
    num_clips=st.integers(1, 3),
    channels=st.sampled_from([8, 24, 64]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 9)),
    mean=st.sampled_from(MEANS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(RESIDUALS),
    relu=st.booleans(),
    overwrite=st.booleans(),
    rows=st.integers(1, 200),
)
def test_residual_and_relu_behind_the_norm(
    num_clips: int,
    channels: int,
    size: tuple[int, int, int],
    mean: float,
    dtype: torch.dtype,
    kind: str,
    relu: bool,
    overwrite: bool,
    rows: int,
) -> None:
    mean = min(mean, 1e3) if dtype == torch.float16 else mean
    x, layer = last(made((num_clips, channels, *size), mean, dtype)), layer_of(channels)
    expected, residual = exact(x, layer), None
    if kind != "none":
        residual = made(tuple(x.shape), 0.0, torch.bfloat16 if kind == "bf16" else dtype)
        residual = residual if kind == "contiguous" else last(residual)
        expected = expected + residual.double()
    expected = expected.relu() if relu else expected
    wide = wants_accuracy(x)
    before = x.clone(memory_format=torch.preserve_format)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(accurate_gn, "BLOCK_BYTES", rows * channels * x.element_size())
        found = accurate_group_norm(
            x,
            GROUPS,
            layer.weight,
            layer.bias,
            layer.eps,
            residual=residual,
            relu=relu,
            overwrite=overwrite,
        )
    assert found.dtype == dtype
    assert torch.equal(found, x) if overwrite else torch.equal(before, x)
    if wide:
        assert found.is_contiguous(memory_format=FORMATS[5])
    # One rounding of the norm's output, and one of the sum.
    rounding = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    atol = 1e-5 if dtype == torch.float32 else 8 * rounding
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=atol)


def test_gradients_go_through_residual_and_relu() -> None:
    x, layer = made(SHAPES[0], 1e3), layer_of(64)
    residual = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    mine, beside = last(x).requires_grad_(), residual.clone().requires_grad_()
    affine = (GROUPS, layer.weight, layer.bias, layer.eps)
    found = accurate_group_norm(mine, *affine, residual=beside, relu=True, overwrite=True)
    found.square().sum().backward()
    truth, other = x.double().requires_grad_(), residual.double().requires_grad_()
    (exact(truth, layer) + other).relu().square().sum().backward()
    assert torch.equal(mine, x)
    for one, two in ((mine, truth), (beside, other)):
        assert one.grad is not None
        assert two.grad is not None
        torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_format", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("relu", [True, False])
def test_sums_are_written_over_their_first_term(
    relu: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accurate_gn, "BLOCK_BYTES", 4 * 64 * 30)
    x, residual = made(SHAPES[0], 0.0), made(SHAPES[0], 0.5)
    place = x.clone(memory_format=memory_format)
    found = add_and_clamp(place, residual, relu)
    assert found.data_ptr() == place.data_ptr()
    assert torch.equal(found, (x + residual).relu() if relu else x + residual)
    assert torch.equal(add_and_clamp(last(x), None, relu), x.relu() if relu else x)


def test_blocks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = last(made((2, 64, 3, 7, 5), 5.0)), layer_of(64)
    with torch.no_grad():
        for block in (64 * 30, 64 * 104, 64 * 105):
            monkeypatch.setattr(accurate_gn, "BLOCK_BYTES", 4 * block)
            torch.testing.assert_close(layer(x).double(), exact(x, layer), rtol=1e-5, atol=1e-5)


def test_a_clip_does_not_depend_on_the_others() -> None:
    x, layer = last(made((3, 64, 2, 7, 7), 0.0)), layer_of(64)
    x[1] += 1e4
    with torch.no_grad():
        together = layer(x)
        for place in range(3):
            assert torch.equal(together[place : place + 1], layer(x[place : place + 1]))


def test_constant_and_broken_inputs() -> None:
    layer = layer_of(64)
    shape = (1, 64, 2, 4, 4)
    with torch.no_grad():
        flat = layer(last(torch.full(shape, 1e4)))
        assert torch.equal(flat, layer.bias.view(1, -1, 1, 1, 1).expand(shape))
        x = last(torch.randn(shape))
        x[0, 3, 1, 2, 2] = torch.nan
        found = layer(x)
    assert found[0, :8].isnan().all()
    assert found[0, 8:].isfinite().all()


def test_contiguous_inputs_take_torchs_path_bit_by_bit() -> None:
    x, layer = made(SHAPES[0], 3.0), layer_of(64)
    theirs = F.group_norm(x, GROUPS, layer.weight, layer.bias, layer.eps)
    assert torch.equal(layer(x), theirs)
    one_place = torch.randn(2, 64, 1, 1, 1)
    assert not wants_accuracy(one_place)
    assert not wants_accuracy(last(one_place))
    assert not wants_accuracy(torch.randn(2, 64))
    assert not wants_accuracy(last(x).to("meta"))
    assert wants_accuracy(last(x))
    assert not wants_accuracy(last(x).double())
    torch.testing.assert_close(layer.double()(last(x).double()), exact(x, layer))


def test_without_gamma_and_beta() -> None:
    x = made(SHAPES[0], 1e3)
    with torch.no_grad():
        found = accurate_group_norm(last(x), GROUPS, None, None, 1e-5)
    torch.testing.assert_close(found.double(), F.group_norm(x.double(), GROUPS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_the_layers_are_group_norms_of_torch(name: str) -> None:
    layer = make_norm(name)(64)
    assert isinstance(layer, nn.GroupNorm)
    assert is_norm(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_full_graph_compiling() -> None:
    x, layer = last(made(SHAPES[0], 1e4)), layer_of(64)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).double(), exact(x, layer), rtol=1e-5, atol=1e-5)
