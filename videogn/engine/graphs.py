"""The training pass of a network as two CUDA graphs, for steps that the CPU could not feed.

A step of the paper's network on few clips takes a GPU less time than Python takes to launch its
kernels one by one. A graph launches all of them at once.
"""

import torch
from torch import Tensor, nn

from videogn.engine.precise_bn import Buffers
from videogn.engine.validation import autocast

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


def replayed(network: nn.Module, clips: Tensor, precision: str) -> nn.Module:
    """A network whose forward and backward pass in training are graphs; for clips of one shape.

    The memory of the captured passes stays taken. The network itself is not changed and computes
    as ever, also with other shapes; in evaluation the graphs are not used. Gradients lie in the
    same memory after every backward pass: they must be used up before the next one.

    Args:
        network: in training mode, with the parts that are not trained in evaluation mode.
        clips: (B, 3, T, H, W) normalised, as all that follow; their values do not matter.
        precision: of autocast.

    Raises:
        RuntimeError: the device has too little memory, or an operation cannot be captured.
    """
    _expect_other_streams()
    whole = _Whole(network)
    whole.training = network.training
    buffers = Buffers(network)
    casts = autocast(clips.device, precision, cache_enabled=False)
    with casts:
        torch.cuda.make_graphed_callables(whole, (clips,), num_warmup_iters=WARMUP_PASSES)
    buffers.restore()
    return whole


def _expect_other_streams() -> None:
    """Keep torch from warning, in every run, that gradients come from the stream of the capture."""
    tell = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if tell is not None:
        tell(False)
