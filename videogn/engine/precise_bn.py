"""BN's stored statistics: precise ones before they are used, and as they were where need be."""

from collections.abc import Callable, Iterable, Iterator

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn

from videogn.distributed import World, sum_over_ranks


class Buffers:
    """The buffers of a network as they were when last kept, at first as they are."""

    def __init__(self, network: nn.Module) -> None:
        self._live = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._live]

    def keep(self) -> None:
        """Remember them."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def restore(self) -> None:
        """Put back what was remembered."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


class _StoppedError(Exception):
    """Ends fvcore's loop."""


def update_statistics(
    network: nn.Module,
    clips: Iterable[Tensor],
    num_batches: int,
    world: World,
    stop: Callable[[], bool],
) -> bool:
    """Replace BN's running averages by statistics of the present weights (fvcore's precise BN).

    Every rank takes those of its own batches, as in training; together they are those of all.

    Args:
        network: in training mode, not wrapped.
        clips: ``num_batches`` batches (B, C, T, H, W), normalised.
        stop: asked before every batch; must answer alike on all ranks.

    Returns:
        Whether it came to its end; the earlier statistics are in place where not.
    """
    layers = get_bn_modules(network)
    live = [(layer.running_mean, layer.running_var) for layer in layers]
    before = [(mean.clone(), var.clone()) for mean, var in live]
    counts = [layer.num_batches_tracked.clone() for layer in layers]
    momenta = [layer.momentum for layer in layers]
    found = before
    try:
        update_bn_stats(network, _until(clips, stop), num_batches)
        found = [_over_ranks(layer.running_mean, layer.running_var, world) for layer in layers]
    except _StoppedError:
        return False
    finally:
        for layer, (mean, var), new, count, momentum in zip(
            layers, live, found, counts, momenta, strict=True
        ):
            # In the tensors that were there: others may hold them.
            layer.running_mean, layer.running_var = mean.copy_(new[0]), var.copy_(new[1])
            layer.num_batches_tracked.copy_(count)
            layer.momentum = momentum
    return True


def _until(clips: Iterable[Tensor], stop: Callable[[], bool]) -> Iterator[Tensor]:
    for batch in clips:
        if stop():
            raise _StoppedError
        yield batch


def _over_ranks(mean: Tensor, var: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Mean and variance of the samples of all ranks, each of which has as many."""
    if world.size == 1:
        return mean, var
    both = sum_over_ranks(torch.stack([mean, var + mean.square()]).double()) / world.size
    return both[0].float(), (both[1] - both[0].square()).float()
