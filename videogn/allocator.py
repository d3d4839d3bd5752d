"""How torch's allocator shares out a GPU's memory; told by the environment, before torch asks."""

import os
from collections.abc import MutableMapping

OPTIONS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables of torch's options. Each holds all of them: none may be added to a user's own."""


def let_segments_grow(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch put tensors of all sizes into one growing segment, unless the user sets options.

    Segments of a fixed size cannot be joined where tensors of other sizes follow: captured as CUDA
    graphs, the training pass of the paper's network holds a third more (docs/design/020).
    """
    if not any(name in environment for name in OPTIONS):
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
