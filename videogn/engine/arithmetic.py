"""How a GPU computes: how exactly, and whether it may try out what is fastest.

These are settings of the whole process. On a CPU they change nothing.
"""

import torch


def set_arithmetic(precision: str, *, fixed_shapes: bool) -> None:
    """Set what a GPU's convolutions and products compute in, for this process.

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
