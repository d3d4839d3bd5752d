"""How torch's allocators ask for memory; told by the environment, before torch looks there."""

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


def let_pages_be_large(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch ask Linux for pages of 2 MiB for large tensors of a CPU, unless the user decides.

    A pass of a network gives its memory back and gets it anew, page after page filled with zeros:
    with pages of 4 KiB up to a fifth of the time that a CPU takes for a view.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
