"""Networks that work in place compute what they did before, and need less memory for it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from videogn.engine.allocations import Allocations
from videogn.models import i3d
from videogn.models.folding import Folded, fold_batch_norms
from videogn.models.fused import FusedBlock, FusedStem
from videogn.models.in_place import (
    InPlaceFolded,
    InPlaceGroupNorm,
    SlicedMaxPool,
    is_sliceable,
    work_in_place,
)
from videogn.models.norm import is_norm
from videogn.models.summary import on_meta
from videogn.models.zoo import zoo_network

LAST = torch.channels_last_3d
VIEW = (8, 32, 32)


def randomised(network: nn.Module) -> nn.Module:
    """With the statistics of training; the last gamma of a block starts at 0."""
    with torch.no_grad():
        for module in network.modules():
            if is_norm(module):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                if hasattr(module, "running_var"):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def tiny(norm: str, layout: str = "zoo") -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        i3d(norm=norm, num_groups=4, width=8, depths=(1, 2), num_classes=5, layout=layout)
    )


def clips(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, *VIEW, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("layout", ["zoo", "nonlocal"])
@pytest.mark.parametrize("norm", ["bn", "gn", "in"])
def test_the_scores_are_those_of_the_plain_network(
    norm: str, layout: str, memory_format: torch.memory_format
) -> None:
    network = tiny(norm, layout)
    exact = copy.deepcopy(network).double()
    names = list(network.state_dict())
    fold_batch_norms(network, VIEW)
    assert work_in_place(network) == 3
    if norm != "bn":
        assert list(network.state_dict()) == names
    network.to(memory_format=memory_format)
    with torch.inference_mode():
        found = network(clips().contiguous(memory_format=memory_format))
        # Once more: nothing that the network keeps was overwritten.
        again = network(clips().contiguous(memory_format=memory_format))
        expected = exact(clips().double())
    assert torch.equal(found, again)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_clips_are_not_overwritten() -> None:
    network, shown = tiny("gn"), clips().contiguous(memory_format=LAST)
    work_in_place(network)
    with torch.inference_mode():
        network(shown)
    assert torch.equal(shown, clips())


def test_what_is_exchanged() -> None:
    network = tiny("bn")
    assert work_in_place(copy.deepcopy(network)) == 0  # it is not folded
    fold_batch_norms(network, VIEW)
    assert work_in_place(network) == 3
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(FusedBlock) == 3
    assert kinds.count(FusedStem) == 1
    assert Folded not in kinds
    # One of the stem, three of each block, and those of the two shortcuts that are convolutions.
    assert kinds.count(InPlaceFolded) == 1 + 3 * 3 + 2
    assert nn.MaxPool3d not in kinds
    assert SlicedMaxPool in kinds


@pytest.mark.parametrize(
    ("arch", "count", "groups"), [("slow_r50", 16, 32), ("r2plus1d_r50", 16, 32), ("x3d_s", 0, 6)]
)
def test_the_zoos_networks_stay_what_they_are(arch: str, count: int, groups: int) -> None:
    """X3D's blocks have swish and squeeze-and-excitation, and keep their form."""
    torch.manual_seed(0)
    network = randomised(zoo_network(arch, norm="gn", num_groups=groups, num_classes=3))
    plain = copy.deepcopy(network)
    assert work_in_place(network) == count
    clip = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    clip = clip.contiguous(memory_format=LAST)
    with torch.inference_mode():
        found, expected = network.features(clip), plain.features(clip)  # type: ignore[operator]
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padded=st.tuples(*[st.booleans()] * 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    memory_format=st.sampled_from([LAST, torch.contiguous_format]),
)
def test_pools_of_slices_give_torchs_bits(
    size: tuple[int, int, int],
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padded: tuple[bool, bool, bool],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    padding = tuple(k // 2 if wanted else 0 for k, wanted in zip(kernel, padded, strict=True))
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=memory_format)
    pool = SlicedMaxPool(kernel, stride, padding)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = pool(x)
    expected = F.max_pool3d(x.float(), kernel, stride, padding)
    assert torch.equal(found.float(), expected)
    if is_sliceable(pool, x):
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=memory_format)


def test_pools_pass_gradients_and_what_is_not_a_number() -> None:
    pool = SlicedMaxPool((1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = torch.randn(1, 2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    mine, truth = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool(mine).sum().backward()
    F.max_pool3d(truth, (1, 3, 3), (1, 2, 2), (0, 1, 1)).sum().backward()
    assert mine.grad is not None
    assert torch.equal(mine.grad, truth.grad)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="too small"):
        SlicedMaxPool((4, 1, 1))(x)
    x[0, 0, 1, 3, 3] = torch.nan
    expected = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(pool(x).isnan(), expected.isnan())


@pytest.mark.parametrize("last", [True, False])
def test_a_norms_input_is_lost_but_not_where_a_gradient_needs_it(last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = InPlaceGroupNorm(4, 8)
    made = torch.randn(2, 8, 3, 4, 5, generator=generator)
    x = made.contiguous(memory_format=LAST if last else torch.contiguous_format)
    residual = torch.randn(x.shape, generator=generator)
    expected = F.relu(F.group_norm(x.double(), 4) + residual.double())
    kept = x.clone(memory_format=torch.preserve_format).requires_grad_()
    found = layer(kept, residual, relu=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(kept, x)
    found.sum().backward()
    truth = x.double().requires_grad_()
    F.relu(F.group_norm(truth, 4) + residual.double()).sum().backward()
    assert kept.grad is not None
    torch.testing.assert_close(kept.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        lost = x.clone(memory_format=torch.preserve_format)
        found = layer(lost, residual, relu=True)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert (found.data_ptr() == lost.data_ptr()) is last


def test_a_pass_takes_less_memory() -> None:
    def peak(network: nn.Module) -> int:
        with torch.inference_mode(), Allocations([]) as allocations:
            on_meta(network)(torch.empty((1, 3, *VIEW), device="meta", memory_format=LAST))
        return int(max(allocations.allocated))

    network = tiny("bn")
    fold_batch_norms(network, VIEW)
    plain = peak(network)
    work_in_place(network)
    assert peak(network) < plain
