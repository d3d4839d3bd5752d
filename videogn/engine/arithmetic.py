"""How exactly a device computes, and whether it may try out what is fastest."""

import torch

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Name -> the type that autocast computes convolutions in."""


def dtype_of(precision: str) -> torch.dtype:
    """The type of a precision's tensors: tf32 is a way to compute with float32 ones."""
    return torch.float32 if precision == "tf32" else PRECISIONS[precision]


def autocast(device: torch.device, precision: str, *, cache_enabled: bool = True) -> torch.autocast:
    """bf16 or fp16 autocast of the forward pass, or none.

    Args:
        cache_enabled: whether a weight that is used twice is cast once.
    """
    dtype = dtype_of(precision)
    enabled = dtype != torch.float32
    return torch.autocast(
        device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=cache_enabled
    )


def set_arithmetic(precision: str, *, fixed_shapes: bool) -> None:
    """Set what a GPU's convolutions and products compute in, for this process; of a CPU, nothing.

    By torch's own choice a GPU rounds the factors of float32 convolutions to TF32, whose ten bits
    of mantissa are far from float32: here that has a name of its own.

    Args:
        precision: fp32, tf32, bf16 or fp16. What is not autocast is computed in float32 but for
            tf32.
        fixed_shapes: whether the network will see a few shapes again and again, for each of which
            cuDNN then measures its algorithms once. Which wins may differ from process to
            process, and with it the last bits of what is computed.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = fixed_shapes
