"""Max pooling that keeps one byte per output for the backward pass, neither input nor output.

``videogn::max_pool3d`` and ``videogn::max_pool3d_backward`` run on CUDA devices, and on the CPU
in Triton's interpreter. PyTorch's own keeps its input and eight bytes per output.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, library

from videogn.models.kernels.launch import kernels_for, on_device

Extent = tuple[int, int, int]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_WINDOW = 256
"""Elements of a window that one byte tells apart."""
TILE = 1024
"""Elements of a program: eight for each thread of four warps."""

_LIBRARY = library.Library("videogn", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "max_pool3d(Tensor x, int[3] kernel, int[3] stride, int[3] padding) -> (Tensor, Tensor)"
)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "max_pool3d_backward(Tensor grad, Tensor codes, SymInt[] size, int[3] kernel, int[3] stride,"
    " int[3] padding) -> Tensor"
)


def max_pool3d(x: Tensor, kernel: Extent, stride: Extent, padding: Extent) -> Tensor:
    """Maxima over windows, as ``F.max_pool3d``; its gradient is deterministic.

    Args:
        x: (N, C, T, H, W), bf16, fp16 or fp32, of any strides. The output is in its memory format.
        kernel: along (T, H, W), likewise ``stride`` and ``padding``. Padding counts as -inf.

    Raises:
        ValueError: an axis or type is missing, the window has more than 256 elements or is padded
            by more than half, or nothing is left.
    """
    _check(x, kernel, stride, padding)
    y: Tensor = torch.ops.videogn.max_pool3d.default(x, kernel, stride, padding)[0]
    return y


def _check(x: Tensor, kernel: Extent, stride: Extent, padding: Extent) -> None:
    if x.ndim != 5 or x.dtype not in DTYPES:
        raise ValueError(f"max_pool3d takes 5D bf16, fp16 or fp32, got {x.dtype} {tuple(x.shape)}")
    if min(*kernel, *stride) < 1 or prod(kernel) > MAX_WINDOW:
        raise ValueError(f"max_pool3d takes windows of 1 to {MAX_WINDOW} elements, got {kernel}")
    if any(not 0 <= pad <= size // 2 for pad, size in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the window {kernel}")
    if min(_output_size(x.shape, kernel, stride, padding)[2:]) < 1:
        raise ValueError(f"{tuple(x.shape)} is too small for windows of {kernel}")


def _output_size(
    size: torch.Size, kernel: Extent, stride: Extent, padding: Extent
) -> tuple[int, ...]:
    places = zip(size[2:], kernel, stride, padding, strict=True)
    return (*size[:2], *((room + 2 * pad - k) // step + 1 for room, k, step, pad in places))


def _format_of(x: Tensor) -> torch.memory_format:
    """Memory format for a tensor beside ``x``, which may have strides of neither kind."""
    if x.is_contiguous() or x.stride(1) != 1:
        return torch.contiguous_format
    return torch.channels_last_3d


def _fake(x: Tensor, kernel: Extent, stride: Extent, padding: Extent) -> tuple[Tensor, Tensor]:
    size = _output_size(x.shape, kernel, stride, padding)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_format_of(x))
    return y, torch.empty_like(y, dtype=torch.uint8)


def _fake_backward(
    grad: Tensor,
    codes: Tensor,
    size: torch.Size,
    kernel: Extent,
    stride: Extent,
    padding: Extent,
) -> Tensor:
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=_format_of(codes))


def _forward(x: Tensor, kernel: Extent, stride: Extent, padding: Extent) -> tuple[Tensor, Tensor]:
    y, codes = _fake(x, kernel, stride, padding)
    if y.numel():
        grid, tile = _tiling(y)
        kernels = kernels_for("pool_triton", x.device)
        with on_device(x.device):
            kernels.forward_kernel[grid](
                x, y, codes, y.shape[1], *x.shape[2:], *y.shape[2:], tile["num_rows"],
                *x.stride(), *y.stride(), *kernel, *stride, *padding,
                tile["channels_last"], tile["rows"], tile["columns"],
            )  # fmt: skip
    return y, codes


def _backward(
    grad: Tensor,
    codes: Tensor,
    size: torch.Size,
    kernel: Extent,
    stride: Extent,
    padding: Extent,
) -> Tensor:
    grad_x = _fake_backward(grad, codes, size, kernel, stride, padding)
    if grad_x.numel():
        grid, tile = _tiling(grad_x)
        kernels = kernels_for("pool_triton", grad.device)
        with on_device(grad.device):
            kernels.backward_kernel[grid](
                grad, codes, grad_x, size[1], *size[2:], *grad.shape[2:], tile["num_rows"],
                *grad.stride(), *codes.stride(), *grad_x.stride(), *kernel, *stride, *padding,
                tile["channels_last"], tile["rows"], tile["columns"],
            )  # fmt: skip
    return grad_x


def _tiling(written: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and tile over the elements of the tensor that a kernel writes."""
    channels_last = not written.is_contiguous()
    num_channels, height, width = written.shape[1], *written.shape[3:]
    num_columns = num_channels if channels_last else height * width
    num_rows = written.numel() // num_columns
    columns = min(256, 1 << (num_columns - 1).bit_length())
    rows = TILE // columns
    grid = (-(-num_rows // rows), -(-num_columns // columns))
    tile = {
        "num_rows": num_rows, "channels_last": channels_last, "rows": rows, "columns": columns
    }  # fmt: skip
    return grid, tile


def _keep_codes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.kernel, ctx.stride, ctx.padding = inputs
    ctx.size = x.shape
    ctx.save_for_backward(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:
    (codes,) = ctx.saved_tensors
    operator = torch.ops.videogn.max_pool3d_backward.default
    return operator(grad, codes, ctx.size, ctx.kernel, ctx.stride, ctx.padding), None, None, None


for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("max_pool3d", _forward, _device)  # type: ignore[no-untyped-call]
    _LIBRARY.impl("max_pool3d_backward", _backward, _device)  # type: ignore[no-untyped-call]
library.register_fake("videogn::max_pool3d", _fake, lib=_LIBRARY)
library.register_fake("videogn::max_pool3d_backward", _fake_backward, lib=_LIBRARY)
library.register_autograd("videogn::max_pool3d", _gradient, setup_context=_keep_codes, lib=_LIBRARY)
