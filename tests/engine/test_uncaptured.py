"""A training pass that cannot be captured leaves network and process as they were; on a CPU."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videogn.engine import graphs
from videogn.engine.graphs import Uncaptured, replayed, try_replayed
from videogn.models import i3d

CPU = torch.device("cpu")


class TritonError(Exception):
    """As Triton's own, which are no RuntimeErrors."""


def network_of(norm: str = "bn") -> nn.Module:
    torch.manual_seed(0)
    network = i3d(norm=norm, width=4, depths=(1, 1), num_groups=2, num_classes=3)
    network.train()
    next(network.children()).eval()  # as a part that is not trained
    return network


def clips_of(seed: int) -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


def fail_after_passes(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Capturing that comes as far as torch's does, passes before it included."""

    def capture(model: nn.Module, inputs: tuple[Tensor, ...], **_: Any) -> None:
        for _ in range(2):
            model(*inputs).sum().backward()
        raise error

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)


def step(network: nn.Module) -> Tensor:
    torch.manual_seed(7)
    loss = network(clips_of(1)).square().sum()
    loss.backward()
    return loss.detach()


ERRORS = [
    (RuntimeError("operation not permitted\nCompile with"), "operation not permitted", False),
    (TritonError("out of resource: shared memory"), "out of resource: shared memory", False),
    (AssertionError(), "AssertionError", False),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried", True),
    (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory", True),
    (
        RuntimeError("Triton Error [CUDA]: out of memory"),
        "Triton Error [CUDA]: out of memory",
        True,
    ),
]


@pytest.mark.parametrize(("error", "reason", "out_of_memory"), ERRORS)
def test_a_network_is_what_it_was_before_the_attempt(
    monkeypatch, error: Exception, reason: str, out_of_memory: bool
) -> None:
    network, twin = network_of(), network_of()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    fail_after_passes(monkeypatch, error)
    assert try_replayed(network, clips_of(0), "fp32") == Uncaptured(reason, out_of_memory)
    after = network.state_dict()
    assert any(name.endswith("num_batches_tracked") for name in after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    # It goes on as if nothing had been tried.
    assert torch.equal(step(network), step(twin))
    gradients = zip(network.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in gradients)


def test_tensors_of_the_attempt_are_gone(monkeypatch) -> None:
    seen = []

    def capture(model: nn.Module, inputs: tuple[Tensor, ...], **_: Any) -> None:
        logits = model(*inputs)
        model.round = model  # type: ignore[assignment]  # torch's own refer to themselves too
        seen.extend([weakref.ref(logits), weakref.ref(model)])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    network = network_of()
    assert isinstance(try_replayed(network, clips_of(0), "fp32"), Uncaptured)
    assert [reference() for reference in seen] == [None, None]


def test_a_process_that_can_draw_no_numbers_is_not_sound(monkeypatch) -> None:
    def stuck(*_: object, **__: object) -> Tensor:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    fail_after_passes(monkeypatch, RuntimeError("operation not permitted"))
    monkeypatch.setattr(graphs.torch, "rand", stuck)
    found = try_replayed(network_of("gn"), clips_of(0), "fp32")
    assert isinstance(found, Uncaptured)
    assert not found.sound
    assert found.reason.startswith("operation not permitted; then Offset increment outside")


def test_interrupts_are_no_failures_of_the_capture(monkeypatch) -> None:
    fail_after_passes(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        try_replayed(network_of("gn"), clips_of(0), "fp32")


def test_the_stream_is_that_of_before_whatever_torch_leaves(monkeypatch) -> None:
    current = ["main"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    with (
        pytest.raises(RuntimeError, match="cannot end"),
        graphs.same_stream(torch.device("cuda", 0)),
    ):
        current.append("capture")
        raise RuntimeError("the capture cannot end")
    assert current == ["main", "capture", "main"]


def test_what_is_captured_restores_statistics_too(monkeypatch) -> None:
    def capture(model: nn.Module, inputs: tuple[Tensor, ...], **_: Any) -> None:
        model(*inputs)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    network = network_of()
    before = copy.deepcopy(network.state_dict())
    model = replayed(network, clips_of(0), "fp32")
    assert model is not network
    assert all(torch.equal(network.state_dict()[name], old) for name, old in before.items())
