"""The fused network computes and learns what the plain one does, and keeps less for it.

On a CPU the kernels run in Triton's interpreter.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from videogn.engine.allocations import Allocations
from videogn.errors import UserError
from videogn.models import i3d
from videogn.models.execution import Execution
from videogn.models.fused import RECOMPUTE, FusedBlock, FusedGroupNorm, FusedMaxPool, fuse
from videogn.models.kernels.launch import is_available
from videogn.models.norm import is_norm
from videogn.models.zoo import zoo_network

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = (2, 3, 8, 16, 16)


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert is_available(DEVICE)


def tiny(norm: str) -> nn.Module:
    torch.manual_seed(0)
    # No dropout: a GPU draws it otherwise in double precision.
    network = i3d(norm=norm, num_groups=2, width=4, depths=(1, 1), num_classes=5, dropout=0.0)
    with torch.no_grad():
        for module in network.modules():
            # The last gamma of a block starts at 0, which would hide half of the network.
            if is_norm(module):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return network.to(DEVICE).train()


def clips(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(SIZE, dtype=dtype).to(DEVICE)


def learned(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients."""
    logits = network(x)
    (logits * torch.arange(5.0, device=x.device)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in network.named_parameters()}


def double(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double()


@pytest.mark.parametrize(("norm", "last"), [("gn", False), ("gn", True), ("bn", True)])
def test_logits_gradients_and_statistics_are_the_plain_networks(norm: str, last: bool) -> None:
    plain, network = double(tiny(norm)), tiny(norm)
    assert fuse(network) == 2
    assert network.state_dict().keys() == plain.state_dict().keys()
    x = clips()
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        network.to(memory_format=torch.channels_last_3d)
    expected, expected_gradients = learned(plain, x.double())
    logits, gradients = learned(network, x)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    scale = max(float(g.norm()) for g in expected_gradients.values())
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() < 1e-4 * scale, name
    for name, buffer in network.named_buffers():
        wanted = plain.get_buffer(name).double()
        torch.testing.assert_close(buffer.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_evaluation_is_the_plain_networks(norm: str) -> None:
    plain = tiny(norm)
    network = copy.deepcopy(plain)
    fuse(network)
    with torch.inference_mode():
        expected, logits = plain.eval()(clips()), network.eval()(clips())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "ways"), [("gn", RECOMPUTE), ("bn", ("none", "block"))])
def test_no_bit_of_a_step_depends_on_what_is_computed_again(norm, ways) -> None:
    results = []
    for recompute in ways:
        network = tiny(norm)
        fuse(network, recompute)
        logits, gradients = learned(network, clips())
        results.append((logits, gradients, dict(network.named_buffers())))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        for first, second in zip(results[0][1:], other[1:], strict=True):
            for name, tensor in first.items():
                assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_no_bit_depends_on_it_in_halves_and_views_either(norm: str) -> None:
    """As a GPU trains; shortcuts are projected, one of them in steps of two pixels."""
    results = []
    for recompute in RECOMPUTE[:3]:
        form = Execution("fused", "2d", recompute, torch.channels_last_3d)
        network = form.apply(tiny(norm))
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            results.append(learned(network, clips()))
    assert results[0][0].dtype == torch.bfloat16
    for logits, gradients in results[1:]:
        assert torch.equal(logits, results[0][0])
        for name, gradient in gradients.items():
            assert torch.equal(gradient, results[0][1][name]), name


def kept_bytes(network: nn.Module) -> int:
    """What a forward pass leaves to the backward pass, on the meta device."""
    network = copy.deepcopy(network).to("meta")
    with Allocations([*network.parameters(), *network.buffers()]) as allocations:
        logits = network(torch.empty(SIZE, device="meta"))
        assert logits.requires_grad
        return allocations.live


def test_each_way_keeps_less_than_the_one_before() -> None:
    def built(change: Callable[[nn.Module], object]) -> int:
        network = tiny("gn")
        change(network)
        return kept_bytes(network)

    plain = built(lambda network: None)
    kept = [built(lambda network, way=way: fuse(network, way)) for way in RECOMPUTE]
    assert [plain, *kept] == sorted({plain, *kept}, reverse=True)


def test_activations_and_the_outputs_before_the_sum_are_what_is_not_kept() -> None:
    """In a block of C channels at P places: two of C P, then two of 4 C P as well."""
    place = 4 * SIZE[0] * 4 * 4  # bytes of one step of a channel behind the stem and its pool
    found = {}
    for way in ("none", "act", "act+conv_c"):
        torch.manual_seed(0)
        network = i3d(norm="gn", num_groups=2, width=4, depths=(1,), num_classes=5, layout="zoo")
        fuse(network.train(), way)
        found[way] = kept_bytes(network)
    steps = SIZE[2]
    assert found["none"] - found["act"] == 2 * 4 * steps * place
    assert found["act"] - found["act+conv_c"] == 2 * 4 * 4 * steps * place


def test_autocast_keeps_the_lower_precision() -> None:
    network = tiny("gn")
    fuse(network, "act+conv_c")
    types = []
    for module in network.modules():
        if isinstance(module, FusedGroupNorm | FusedBlock):
            module.register_forward_hook(lambda _m, _i, output: types.append(output.dtype))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        logits = network(clips())
    logits.float().sum().backward()
    assert types
    assert set(types) == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_networks_of_another_form_keep_it() -> None:
    network = zoo_network("x3d_xs", norm="bn", num_classes=3)
    names = list(network.state_dict())
    assert fuse(network) == 0
    assert list(network.state_dict()) == names


def test_recomputing_where_nothing_is_recomputed_is_refused() -> None:
    network = zoo_network("x3d_xs", norm="bn", num_classes=3)
    with pytest.raises(UserError, match=r"=block: .* set compute\.recompute=none"):
        Execution(norms="fused", recompute="block").apply(network)
    with pytest.raises(UserError, match=r"compute\.recompute=act"):
        Execution(recompute="act").apply(tiny("gn"))


def test_the_zoos_slow_network_is_fused_whole() -> None:
    network = zoo_network("slow_r50", norm="gn", num_classes=3)
    names = list(network.state_dict())
    assert fuse(network) == 16
    assert list(network.state_dict()) == names
    assert not any(type(module) is nn.GroupNorm for module in network.modules())
    assert any(isinstance(module, FusedMaxPool) for module in network.modules())


def test_a_fused_network_can_be_copied() -> None:
    network = tiny("gn")
    fuse(network, "act")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert float(twin(clips()).abs().sum()) == 0
        assert float(network(clips()).abs().sum()) > 0
