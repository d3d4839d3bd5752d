import copy
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from driving import forked
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from videogn.errors import UserError
from videogn.models.i3d import i3d
from videogn.models.norm import (
    NORMS,
    FrozenBatchNorm,
    is_norm,
    make_norm,
    norm_parameters,
    use_native_sync,
)

EPS = 1e-5
WITH_PARAMETERS = [name for name in NORMS if name != "none"]
PER_CLIP = ["gn", "ln", "in"]

sizes = st.integers(1, 4)
extents = st.lists(sizes, min_size=2, max_size=3)


def formula(x, gamma, beta, norm, groups):
    """The paper's section 3.1 written out: the set S_i of every method, the biased variance."""
    batch, channels, *extent = x.shape
    if norm in ("bn", "sync_bn"):
        axes = (0, *range(2, x.ndim))
        sets = x
    else:
        groups = {"gn": groups, "ln": 1, "in": channels}[norm]
        sets = x.reshape(batch, groups, channels // groups, *extent)
        axes = tuple(range(2, sets.ndim))
    size = math.prod(sets.shape[axis] for axis in axes)
    mean = sets.sum(axes, keepdim=True) / size
    variance = ((sets - mean) ** 2).sum(axes, keepdim=True) / size
    hat = ((sets - mean) / torch.sqrt(variance + EPS)).reshape(x.shape)
    per_channel = (None, slice(None), *[None] * len(extent))
    return gamma[per_channel] * hat + beta[per_channel], size


def with_affine(layer, generator):
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator).to(layer.weight)
    layer.bias.data = torch.randn(layer.bias.shape, generator=generator).to(layer.bias)
    return layer


@settings(deadline=None, max_examples=150)
@given(
    norm=st.sampled_from(["bn", "sync_bn", *PER_CLIP]),
    batch=sizes,
    groups=sizes,
    group_size=sizes,
    extent=extents,
    mean=st.sampled_from([0.0, -3.0, 1e3]),
    by_size=st.booleans(),
)
def test_outputs_and_gradients_are_the_papers_formula(
    norm, batch, groups, group_size, extent, mean, by_size
):
    generator = torch.Generator().manual_seed(0)
    channels = groups * group_size
    x = mean + torch.randn(batch, channels, *extent, generator=generator, dtype=torch.float64)
    options = {"channels_per_group": group_size} if by_size else {"num_groups": groups}
    layer = with_affine(make_norm(norm, **options, dims=len(extent))(channels).double(), generator)
    gamma, beta = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, set_size = formula(theirs, gamma, beta, norm, groups)
    assume(set_size > 1)  # torch refuses statistics of a single value

    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    output = layer(ours)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()

    # Float64 has 1e-16 of values around 1e3, divided by a standard deviation of 0.003 at least.
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad, gamma.grad, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(layer.bias.grad, beta.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("norm", ["bn", *PER_CLIP])
@pytest.mark.parametrize("extent", [(12, 12), (4, 12, 12)], ids=["2d", "3d"])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_float32_holds_at_large_means(norm, extent, mean):
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(4, 32, *extent, generator=generator)
    layer = with_affine(make_norm(norm, 8, dims=len(extent))(32), generator)
    gamma, beta = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    expected, _ = formula(theirs, gamma, beta, norm, 8)
    weights = torch.randn(x.shape, generator=generator)
    output = layer(ours)
    (output * weights).sum().backward()
    (expected * weights.double()).sum().backward()

    # The standard deviation is 1, so an error of the mean passes on as it is times gamma < 4:
    # a few units in the last place (2**-24) of numbers as large as the mean.
    error = 4 * 8 * 2**-24 * (1 + mean)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=error)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=error)
    # A sum over n values of size about 1, each wrong by that much in some direction.
    n = x.numel() / 32
    torch.testing.assert_close(
        layer.weight.grad.double(), gamma.grad, rtol=0, atol=error * math.sqrt(n) * 4
    )


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(2, 4), channels=st.integers(1, 5), extent=extents)
def test_batch_norm_keeps_running_statistics_of_all_clips(batch, channels, extent):
    x = 5 + torch.randn(batch, channels, *extent, dtype=torch.float64)
    layer = make_norm("bn", dims=len(extent))(channels).double()
    layer(x)
    values = x.transpose(0, 1).reshape(channels, -1)
    count = values.shape[1]
    mean = values.sum(1) / count
    variance = ((values - mean[:, None]) ** 2).sum(1) / (count - 1)  # the running one is unbiased
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance)


@pytest.mark.parametrize("norm", PER_CLIP)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_other_clips_of_the_batch_change_no_bit(norm, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, 4, 6, 6, generator=generator)
    layer = with_affine(make_norm(norm, 4)(16), generator)
    others = torch.randn(5, 16, 4, 6, 6, generator=generator) * 100 + 1e3
    others[2] = x[2]
    first, second = (layer(clips.to(memory_format=memory_format)) for clips in (x, others))
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[1], second[1])


def test_other_clips_of_the_batch_do_change_batch_norm():
    x = torch.randn(2, 4, 2, 3, 3)
    layer = make_norm("bn")(4)
    assert not torch.allclose(layer(x)[0], layer(torch.stack([x[0], 9 * x[1]]))[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_layer_and_instance_norm_are_their_extremes_of_group_norm(dims):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *[4] * dims, generator=generator)
    ln = with_affine(make_norm("ln", dims=dims)(6), generator)
    one_group = make_norm("gn", 1, dims=dims)(6)
    one_group.load_state_dict(ln.state_dict())
    assert torch.equal(ln(x), one_group(x))
    per_pixel = nn.LayerNorm(x.shape[1:])
    assert ln.weight.shape == (6,)
    assert per_pixel.weight.shape == x.shape[1:]

    instance = with_affine(make_norm("in", dims=dims)(6), generator)
    peer = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](6, affine=True)
    peer.load_state_dict(instance.state_dict())
    torch.testing.assert_close(instance(x), peer(x))
    assert instance(torch.zeros(2, 6, *[1] * dims)).isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_frozen_batch_norm_is_bns_evaluation_in_training_too(dims, mean):
    generator = torch.Generator().manual_seed(0)
    peer = with_affine(make_norm("bn", dims=dims)(5), generator)
    peer.running_mean.copy_(mean + torch.randn(5, generator=generator))
    peer.running_var.copy_(torch.rand(5, generator=generator) + 0.5)
    frozen = make_norm("frozen_bn", dims=dims)(5)
    frozen.load_state_dict(peer.state_dict())  # strictly, but for the counter

    x = mean + torch.randn(3, 5, *[4] * dims, generator=generator)
    shape = (1, 5, *[1] * dims)
    parts = peer.weight, peer.bias, peer.running_mean, peer.running_var
    gamma, beta, mu, var = (part.detach().double().view(shape) for part in parts)
    expected = gamma * (x.double() - mu) / torch.sqrt(var + EPS) + beta
    output = frozen.train()(x)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2**-20 * (1 + mean) * 4)
    assert torch.equal(output, peer.eval()(x))
    assert torch.equal(frozen.running_mean, peer.running_mean)


def test_frozen_batch_norm_passes_gradients_on_and_has_none():
    layer = make_norm("frozen_bn")(3).double()
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    x = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in layer.parameters())


def test_frozen_batch_norm_keeps_the_type_it_is_given():
    x = torch.randn(2, 3, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert make_norm("frozen_bn")(3)(x.bfloat16()).dtype == torch.bfloat16


def test_no_norm_is_the_identity_without_parameters():
    layer = make_norm("none")(7)
    x = torch.randn(2, 7, 1, 2, 2)
    assert torch.equal(layer(x), x)
    assert not list(layer.parameters())


def test_parameter_names_are_the_same_for_every_norm():
    names = {
        norm: {
            name: tuple(p.shape)
            for name, p in nn.ModuleList(
                [make_norm(norm)(64), nn.Conv3d(1, 1, 1)]
            ).named_parameters()
        }
        for norm in WITH_PARAMETERS
    }
    assert all(found == names["gn"] for found in names.values())
    assert names["gn"]["0.weight"] == names["gn"]["0.bias"] == (64,)


@pytest.mark.parametrize("norm", WITH_PARAMETERS)
def test_norm_parameters_are_gamma_and_beta_of_all_53_layers(norm):
    with torch.device("meta"):
        network = i3d(norm=norm)
    assert sum(is_norm(module) for module in network.modules()) == 53
    assert sum(parameter.numel() for parameter in norm_parameters(network)) == 53_120
    assert not any(is_norm(m) for m in (nn.Conv3d(1, 1, 1), nn.Linear(1, 1), nn.Sequential()))
    others = (nn.LayerNorm(4), nn.InstanceNorm3d(4, affine=True), nn.SyncBatchNorm(4))
    assert all(is_norm(module) for module in others)


@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_and_momentum_are_the_papers(norm):
    layer = make_norm(norm)(64)
    assert getattr(layer, "eps", 1e-5) == 1e-5
    assert getattr(layer, "momentum", 0.1) == 0.1
    assert isinstance(layer, FrozenBatchNorm) == (norm == "frozen_bn")


@pytest.mark.parametrize("channels", [64, 128, 256, 512, 1024, 2048])
def test_thirty_two_groups_are_the_default_and_group_size_wins(channels):
    assert make_norm("gn")(channels).num_groups == 32
    assert make_norm("gn", 32, 16)(channels).num_groups == channels // 16


def test_unknown_norm_is_named_with_the_choices():
    with pytest.raises(UserError, match=r"'gnn'.*bn, frozen_bn, sync_bn, gn, ln, in, none"):
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


def sync_rank(rank, folder, x, splits, weights):
    """One process of :func:`test_synchronised_statistics_are_those_of_the_whole_batch`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(splits)
    )
    layer = with_affine(make_norm("sync_bn", dims=x.ndim - 2)(x.shape[1]), torch.Generator())
    layer = layer.to(x.dtype)
    mine = x.split(splits)[rank].clone().requires_grad_()
    output = layer(mine)
    (output * weights.split(splits)[rank]).sum().backward()
    torch.save(
        {
            "output": output.detach(),
            "input grad": mine.grad,
            "weight grad": layer.weight.grad,
            "bias grad": layer.bias.grad,
            "state": layer.state_dict(),
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


SYNC = """
import sys, torch
rank, folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
from test_norm import sync_rank
sync_rank(int(rank), folder, *torch.load(folder + "/given.pt"))
"""


@pytest.mark.dist
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_synchronised_statistics_are_those_of_the_whole_batch(tmp_path, mean):
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(5, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    splits = [3, 2]  # uneven on purpose
    torch.save((x, splits, weights), tmp_path / "given.pt")
    with ExitStack() as stack:
        words = [(rank, tmp_path, Path(__file__).parent) for rank in range(2)]
        ranks = [stack.enter_context(forked(SYNC, tmp_path, *one)) for one in words]
        assert [rank.ended(90) for rank in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    peer = with_affine(make_norm("bn")(4), torch.Generator()).double()
    whole = x.clone().requires_grad_()
    output = peer(whole)
    (output * weights).sum().backward()
    expected = {"output": output.detach(), "input grad": whole.grad}
    for key, value in expected.items():
        torch.testing.assert_close(torch.cat([part[key] for part in found]), value)
    for key, value in (("weight grad", peer.weight.grad), ("bias grad", peer.bias.grad)):
        torch.testing.assert_close(sum(part[key] for part in found), value)
    for part in found:
        for name, value in peer.state_dict().items():
            torch.testing.assert_close(part["state"][name], value)


def test_torchs_own_synchronised_layer_has_the_same_parameters():
    ours = nn.Sequential(nn.Conv3d(3, 4, 1), make_norm("sync_bn")(4))
    names, weight = list(ours.state_dict()), ours[1].weight
    native = use_native_sync(ours)
    assert type(native[1]) is nn.SyncBatchNorm
    assert list(native.state_dict()) == names
    assert native[1].weight is weight  # so that the optimizer keeps it
    plain = nn.Sequential(make_norm("bn")(4))
    assert type(use_native_sync(plain)[0]) is nn.BatchNorm3d


def test_synchronised_norm_alone_is_batch_norm():
    x = torch.randn(3, 4, 2, 3, 3)
    layer = make_norm("sync_bn")(4)
    peer = copy.deepcopy(make_norm("bn")(4))
    torch.testing.assert_close(layer(x), peer(x))
    torch.testing.assert_close(layer.running_var, peer.running_var)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["bn", *PER_CLIP])
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_a_gpu_holds_at_large_means(norm, mean):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(4, 32, 4, 12, 12, generator=generator)
    layer = with_affine(make_norm(norm, 8)(32), generator)
    gamma, beta = (p.detach().double() for p in (layer.weight, layer.bias))
    expected, _ = formula(x.double(), gamma, beta, norm, 8)
    output = layer.cuda()(x.cuda())
    # The bound of the CPU's test, with room for sums in another order.
    error = 4 * 32 * 2**-24 * (1 + mean)
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=error)


def native_rank(rank, folder, x, splits):
    """One process of :func:`test_torchs_own_synchronised_layer_on_gpus`."""
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder}/store", rank=rank, world_size=len(splits)
    )
    layer = nn.Sequential(with_affine(make_norm("sync_bn")(x.shape[1]), torch.Generator()))
    output = use_native_sync(layer.cuda())(x.split(splits)[rank].cuda())
    torch.save(output.detach().cpu(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.dist
def test_torchs_own_synchronised_layer_on_gpus(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    x = torch.randn(5, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mp.spawn(native_rank, (str(tmp_path), x, [3, 2]), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    peer = with_affine(make_norm("bn")(4), torch.Generator())
    torch.testing.assert_close(torch.cat(found), peer(x).detach(), rtol=1e-4, atol=1e-5)
