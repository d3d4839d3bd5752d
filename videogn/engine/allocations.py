"""Counting the memory that operations allocate, also on the meta device, which computes nothing."""

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CONVOLUTIONS = ("convolution", "convolution_backward")
"""Kernels that may work on a copy of their tensors in another layout."""

LOWER_PRECISION = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "addmm")
FULL_PRECISION = {
    "cuda": ("group_norm", "layer_norm", "softmax", "log_softmax", "cross_entropy"),
    "cpu": ("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"),
}
"""Functions that autocast calls in the lower precision, and in float32 on each kind of device: of
its lists, what the networks use."""


class Allocations(TorchDispatchMode):
    """Adds up the storages that exist after each operation, but for those of ``held``."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By the storage's own identity: on the meta device every address is 0.
        self._known = {tensor.untyped_storage()._cdata for tensor in held}
        self.live = 0
        self.allocated: list[int] = []
        self.with_workspace: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._add(tensor.untyped_storage())
        workspace = 0
        if func.__name__.partition(".")[0] in CONVOLUTIONS:
            workspace = sum(map(tensor_bytes, _tensors((args, result))))
        self.allocated.append(self.live)
        self.with_workspace.append(self.live + workspace)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._known:
            return
        self._known.add(identity)
        self.live += size
        finalize(storage, self._remove, identity, size)

    def _remove(self, identity: int, size: int) -> None:
        self._known.remove(identity)
        self.live -= size


class MetaAutocast(TorchFunctionMode):
    """Autocast for tensors of the meta device, which torch has none for."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self._types = dict.fromkeys(LOWER_PRECISION, dtype)
        self._types |= dict.fromkeys(FULL_PRECISION[device], torch.float32)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        dtype = self._types.get(getattr(func, "__name__", ""))
        kwargs = kwargs or {}
        if dtype is not None:
            args, kwargs = tree_map(lambda value: _cast(value, dtype), (args, kwargs))
        return func(*args, **kwargs)


def _cast(value: object, dtype: torch.dtype) -> object:
    # torch keeps the cast of a weight for its next use; no network here uses one twice.
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor."""
    return tensor.numel() * tensor.element_size()
