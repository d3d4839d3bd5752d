"""What memory a device has, and how errors say that it has too little."""

import psutil
import torch

OUT_OF_MEMORY = ("_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "[CUDA]: out of memory")
"""How cuDNN and cuBLAS, CUDA itself and Triton say it, in errors of no type of its own."""


def available_bytes(device: torch.device) -> int:
    """Memory of the device that is free or already this process's own."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory, by torch or by its libraries."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in OUT_OF_MEMORY
    )


def gib(count: int) -> str:
    """Bytes as text."""
    return f"{count / 2**30:.2f} GiB"
