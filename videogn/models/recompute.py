"""Tensors that the backward pass computes again instead of keeping them.

Autograd keeps the inputs of every layer. Where one is cheap to compute from tensors that are kept
anyway, a recipe takes its place: a normalised activation from the convolution's output and the
statistics, and the output of a 1x1x1 convolution from that. The forward pass runs once, unlike
under ``torch.utils.checkpoint``, so nothing of it is paid for twice but what is recomputed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


class Recipe:
    """How to compute a tensor again, bit for bit and in the same layout.

    Args:
        compute: what makes it, of tensors that are kept.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._kept: Tensor | None = None

    def __call__(self, *, keep: bool = False) -> Tensor:
        """The tensor.

        Args:
            keep: whether it is asked for once more; it is held until then.
        """
        made, self._kept = self._kept, None
        if made is None:
            with torch.no_grad():
                made = self._compute()
        if keep:
            self._kept = made
        return made


class _Dropped(NamedTuple):
    """What autograd holds instead of a tensor: its recipe, and which view of it was saved."""

    recipe: Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]


@contextmanager
def dropping(tensor: Tensor, recipe: Recipe) -> Iterator[None]:
    """Operations within keep the recipe in place of the tensor, or of a view of all of it."""
    # Autograd holds the hooks too: they must not hold the tensor.
    whole = (_identity(tensor), tensor.numel())
    del tensor

    def pack(saved: Tensor) -> Tensor | _Dropped:
        if (_identity(saved), saved.numel()) != whole:
            return saved
        return _Dropped(recipe, tuple(saved.shape), saved.stride())

    def unpack(held: Tensor | _Dropped) -> Tensor:
        if isinstance(held, Tensor):
            return held
        return held.recipe().as_strided(held.size, held.stride)

    with saved_tensors_hooks(pack, unpack):
        yield


def _identity(tensor: Tensor) -> int:
    # Not the address, which is 0 for every tensor of the meta device.
    return int(tensor.untyped_storage()._cdata)


def recomputed_block(block: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """The output of a whole block, of which the backward pass has the input alone.

    Args:
        block: what is computed, twice.
        module: whose batch norms are to see the clips once.
    """
    # torch enters autocast again by itself, but not what stands for it on the meta device.
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            stack.enter_context(_statistics_left_alone(module))
            yield

    out: Tensor = checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # a block draws no random numbers
        context_fn=lambda: (nullcontext(), again()),
    )
    return out


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """Batch norms within normalise by their batch and do not add it to their running averages."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, before, strict=True):
        # Not without averages: the same operations have to keep the same tensors.
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
