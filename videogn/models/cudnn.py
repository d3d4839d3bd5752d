"""Versions of cuDNN whose 3D convolutions are not to be trusted."""

import torch

WRONG_HALVES = range(90800, 91500)
"""Versions, as torch numbers them, whose 3D convolutions give wrong results in halves."""
WRONG_TF32 = range(91002, 91600)
"""Those with a wrong kernel in TF32; torch keeps away from it from 2.9.1 on."""
HALVES = (torch.bfloat16, torch.float16)


def conv3d_fault(
    dtype: torch.dtype, cudnn_version: int | None, *, tf32: bool = False
) -> str | None:
    """Why 3D convolutions of a type must not be computed by a version of cuDNN.

    2D convolutions and matrix products are not touched (:mod:`videogn.models.views`). torch from
    2.9 on avoids the wrong kernels for contiguous tensors alone, by code that is four times slower.

    Args:
        dtype: that the convolution computes in.
        cudnn_version: ``torch.backends.cudnn.version()``; None where there is no cuDNN.
        tf32: whether float32 may be computed in TF32, and torch does not prevent it.

    Returns:
        One line for people, with the remedy; None where there is no known fault.

    >>> conv3d_fault(torch.bfloat16, 91501) is None
    True
    """
    if cudnn_version is None:
        return None
    shown = f"{cudnn_version // 10000}.{cudnn_version % 10000 // 100}.{cudnn_version % 100}"
    if dtype in HALVES and cudnn_version in WRONG_HALVES:
        return (
            f"3D convolutions in {str(dtype).removeprefix('torch.')} of cuDNN {shown} are wrong or "
            "4 x slower (9.8 to 9.14: pytorch issues 163539 and 166122); install "
            "nvidia-cudnn >= 9.15, or compute them as 2D convolutions"
        )
    if dtype == torch.float32 and tf32 and cudnn_version in WRONG_TF32:
        return (
            f"3D convolutions in TF32 of cuDNN {shown} may be wrong (9.10.2 to 9.15: pytorch pull "
            "request 167024); set torch.backends.cudnn.allow_tf32=False, or compute them as 2D "
            "convolutions"
        )
    return None
