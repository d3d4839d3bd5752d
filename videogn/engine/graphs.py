"""The training pass of a network as two CUDA graphs, for steps that the CPU could not feed.

A step of the paper's network on few clips takes a GPU less time than Python takes to launch its
kernels one by one. A graph launches all of them at once.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videogn.engine.arithmetic import autocast
from videogn.engine.device_memory import is_out_of_memory
from videogn.engine.precise_bn import Buffers
from videogn.errors import first_line

WARMUP_PASSES = 11
"""As many as torch asks for where gradients are exchanged between ranks; a few elsewhere."""


class _Whole(nn.Module):
    """A network whose own ``forward`` stays as it is when this one's is captured."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, T, H, W)."""
        logits: Tensor = self.network(clips)
        return logits


@dataclass(frozen=True)
class Uncaptured:
    """A training pass that could not be captured.

    Attributes:
        reason: one line.
        out_of_memory: whether it is that the device has too little memory.
        sound: whether this process can go on computing on the device.
    """

    reason: str
    out_of_memory: bool
    sound: bool = True


def replayed(network: nn.Module, clips: Tensor, precision: str) -> nn.Module:
    """A network whose forward and backward pass in training are graphs; for clips of one shape.

    The memory of the captured passes stays taken. The network itself is not changed and computes
    as ever, also with other shapes; in evaluation the graphs are not used. Gradients lie in the
    same memory after every backward pass: they must be used up before the next one. Random
    numbers are drawn from the device's generator, which every step seeds for itself.

    Args:
        network: in training mode, with the parts that are not trained in evaluation mode.
        clips: (B, 3, T, H, W) normalised, as all that follow; their values do not matter. The
            graphs read this tensor, and others are copied into it.
        precision: of autocast.

    Raises:
        RuntimeError: the device has too little memory, or an operation cannot be captured. The
            network's buffers and the current stream are what they were; the device's memory may
            not be, see :func:`try_replayed`.
        Exception: others, of whoever compiles kernels.
    """
    _expect_other_streams()
    whole = _Whole(network)
    whole.training = network.training
    buffers = Buffers(network)
    casts = autocast(clips.device, precision, cache_enabled=False)
    try:
        with same_stream(clips.device), casts:
            torch.cuda.make_graphed_callables(whole, (clips,), num_warmup_iters=WARMUP_PASSES)
    finally:
        # Passes before the capture have moved batch norm's statistics.
        buffers.restore()
    return whole


def try_replayed(network: nn.Module, clips: Tensor, precision: str) -> "nn.Module | Uncaptured":
    """:func:`replayed`, or why it cannot be; nothing of the attempt is left then.

    The network's buffers are what they were, it has no gradients, and all memory that was taken
    is the device's again.
    """
    try:
        return replayed(network, clips, precision)
    except Exception as error:  # torch's, Triton's, the C compiler's
        failed = Uncaptured(first_line(error), is_out_of_memory(error))
    # Outside of the handler: the error holds the tensors and graphs of the attempt.
    network.zero_grad(set_to_none=True)
    fault = fault_after(clips.device)
    if fault is None:
        return failed
    return Uncaptured(f"{failed.reason}; then {fault}", failed.out_of_memory, sound=False)


def fault_after(device: torch.device) -> str | None:
    """Free what a failed capture held; what does not work on the device since, None where all does.

    torch before 2.12 could be left as if the capture still went on: then its memory cannot be
    freed, or no random number drawn.
    """
    try:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        torch.rand(1, device=device)
    except Exception as error:
        return first_line(error)
    return None


@contextmanager
def same_stream(device: torch.device) -> Iterator[None]:
    """Leave the current stream as it is: torch stays on the capture's where that cannot end."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


def _expect_other_streams() -> None:
    """Keep torch from warning, in every run, that gradients come from the stream of the capture."""
    tell = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if tell is not None:
        tell(False)
