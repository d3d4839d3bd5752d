"""Recipes in place of saved tensors give the same gradients and free what they stand for."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogn.models.recompute import Recipe, dropping, recomputed_block


def test_the_backward_pass_asks_the_recipe_once() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    asked = []

    def compute() -> Tensor:
        asked.append(torch.is_grad_enabled())
        return x.detach().exp()

    y = x.exp().clone()
    with dropping(y, Recipe(compute)):
        out = F.linear(y, weight)
    assert asked == []
    out.sum().backward()
    assert asked == [False]
    torch.testing.assert_close(weight.grad, x.exp().sum(0).expand(4, 3), rtol=0, atol=1e-6)


def test_what_a_recipe_stands_for_is_freed() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y = x.exp().clone()
    gone = weakref.ref(y.untyped_storage())
    with dropping(y, Recipe(lambda: x.detach().exp())):
        out = F.linear(y, torch.randn(4, 3, requires_grad=True))
    del y
    gc.collect()
    assert gone() is None
    assert out.requires_grad


def test_a_view_of_the_tensor_is_recognised() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    weight = torch.randn(7, 3, requires_grad=True)
    y = x.clone(memory_format=torch.preserve_format)
    with dropping(y, Recipe(lambda: x.clone(memory_format=torch.preserve_format))):
        out = F.linear(y.permute(0, 2, 3, 1), weight)
    y.zero_()  # what was saved would now be wrong
    out.sum().backward()
    expected = x.sum((0, 2, 3)).expand(7, 3)
    torch.testing.assert_close(weight.grad, expected)


def test_other_tensors_are_kept_as_they_are() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    other = torch.randn(2, 3)

    def never() -> Tensor:
        raise AssertionError("asked for a tensor that was not saved")

    with dropping(other, Recipe(never)):
        out = (x * x).sum()
    out.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_part_of_a_tensor_is_kept() -> None:
    x = torch.arange(6.0).view(2, 3)
    weight = torch.ones(3, requires_grad=True)

    def never() -> Tensor:
        raise AssertionError("a part is not the whole")

    with dropping(x, Recipe(never)):
        out = (x[1] * weight).sum()
    out.backward()
    torch.testing.assert_close(weight.grad, x[1])


def test_a_kept_tensor_is_given_once_more_and_let_go() -> None:
    made = []

    def compute() -> Tensor:
        made.append(torch.ones(3))
        return made[-1]

    recipe = Recipe(compute)
    first, second, third = recipe(keep=True), recipe(), recipe()
    assert first is second
    assert third is not first
    assert len(made) == 2


@pytest.mark.parametrize("norm", [nn.BatchNorm3d(4), nn.GroupNorm(2, 4)])
def test_a_recomputed_block_learns_as_the_plain_one_and_counts_each_batch_once(norm) -> None:
    block = nn.Sequential(nn.Conv3d(4, 4, 1), norm, nn.ReLU()).train()
    x = torch.randn(2, 4, 2, 3, 3, requires_grad=True)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    results = []
    for compute in (block, lambda clips: recomputed_block(block, block, clips)):
        block.load_state_dict(state)
        block.zero_grad()
        x.grad = None
        compute(x).square().sum().backward()
        grads = [x.grad.clone(), *(p.grad.clone() for p in block.parameters())]
        results.append((grads, {name: v.clone() for name, v in block.state_dict().items()}))
    (plain, plain_state), (again, again_state) = results
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert plain_state.keys() == again_state.keys()
    for name, value in plain_state.items():
        assert torch.equal(value, again_state[name]), name
