"""The kernels of max pooling beside ``F.max_pool3d``."""

import ast
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, library
from torch._subclasses import FakeTensorMode

from videogn.models.i3d import LAYOUTS
from videogn.models.kernels import pool
from videogn.models.kernels.pool import max_pool3d

FORMATS = (torch.contiguous_format, torch.channels_last_3d)
WINDOWS = sorted(
    {(row.pool1_kernel, row.pool1_stride, row.pool1_padding) for row in LAYOUTS.values()}
    | {(row.pool2_kernel, row.pool2_stride, row.pool2_padding) for row in LAYOUTS.values()}
)
"""Kernel, stride and padding of every pool of every layout."""


def distinct(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Values that all differ, also in 16 bits where there are few enough, in random order."""
    order = torch.randperm(prod(size), device=device).view(size)
    return (order - prod(size) // 2).to(dtype)


def both(
    x: Tensor, window: tuple[pool.Extent, pool.Extent, pool.Extent]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Output and gradient of ours and of torch's in float64, for random output gradients."""
    results = []
    grad = None
    for function, dtype in ((max_pool3d, x.dtype), (F.max_pool3d, torch.float64)):
        # Preserves the strides.
        leaf = x.detach().to(dtype).requires_grad_()
        y = function(leaf, *window)
        if grad is None:
            grad = torch.randn_like(y)
        y.backward(grad.to(dtype))
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
    return results[0], results[1]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_the_pools_of_the_layouts(
    window: tuple[pool.Extent, pool.Extent, pool.Extent],
    memory_format: torch.memory_format,
    device: torch.device,
) -> None:
    x = distinct((2, 5, 6, 9, 7), device, torch.float32).to(memory_format=memory_format)
    (y, grad), (expected, expected_grad) = both(x, window)
    assert torch.equal(y.double(), expected)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-6, atol=1e-6)
    assert y.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(3))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(3))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    room = tuple(draw(st.integers(size, 9)) for size in kernel)
    size = (draw(st.integers(1, 2)), draw(st.integers(1, 9)), *room)
    return size, [kernel, stride, padding]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=cases(),
    dtype=st.sampled_from(pool.DTYPES),
    memory_format=st.sampled_from(FORMATS),
    levels=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_any_window_with_ties(
    case: tuple[tuple[int, ...], list[tuple[int, ...]]],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    levels: int,
    seed: int,
    device: torch.device,
) -> None:
    size, window = case
    torch.manual_seed(seed)
    x = torch.randint(-levels, levels, size, device=device).to(dtype)
    (y, grad), (expected, expected_grad) = both(x.to(memory_format=memory_format), window)
    assert torch.equal(y.double(), expected)
    # One rounding of a sum of up to 64 windows, which is made in float32.
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=1e-5)


def test_equal_values_go_to_the_first_of_the_window(device: torch.device) -> None:
    # Rectified features are full of zeros.
    x = torch.zeros(1, 1, 2, 4, 4, device=device, requires_grad=True)
    max_pool3d(x, (2, 2, 2), (2, 2, 2), (0, 0, 0)).sum().backward()
    expected = torch.zeros(2, 4, 4)
    expected[0, ::2, ::2] = 1
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0].cpu(), expected)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_values_that_are_not_finite(value: float, device: torch.device) -> None:
    x = distinct((1, 3, 4, 7, 7), device, torch.float32)
    x[0, 1] = value
    x[0, 2, 1, 3, 2:5] = value
    (y, grad), (expected, expected_grad) = both(x, ((3, 3, 3), (2, 2, 2), (1, 1, 1)))
    torch.testing.assert_close(y.double(), expected, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-6, atol=1e-6)


def test_strides_of_a_view_and_of_its_gradient(device: torch.device) -> None:
    whole = distinct((2, 6, 5, 12, 10), device, torch.float32)
    x = whole.transpose(3, 4)[:, 1:5, :, ::2, 1:].requires_grad_()
    y = max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    expected = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(y, expected)
    # Strides of 0.
    (grad,) = torch.autograd.grad(y.sum(), x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_one_byte_an_output_is_kept(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    x = distinct((2, 8, 4, 8, 8), device, torch.float32).to(memory_format=memory_format)
    x.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        y = max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert [(tensor.dtype, tensor.shape) for tensor in kept] == [(torch.uint8, y.shape)]


# opcheck looks at the gradients of its own clones.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_the_operators_keep_torchs_rules(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    x = distinct((1, 3, 4, 6, 5), device, torch.float32).to(memory_format=memory_format)
    window = ([2, 3, 3], [2, 2, 2], [0, 1, 1])
    operators = torch.ops.videogn
    library.opcheck(operators.max_pool3d.default, (x.requires_grad_(), *window))
    y, codes = operators.max_pool3d(x.detach(), *window)
    arguments = (torch.randn_like(y), codes, x.shape, *window)
    library.opcheck(operators.max_pool3d_backward.default, arguments)


def test_compiled_without_a_break(device: torch.device) -> None:
    def network(x: Tensor) -> Tensor:
        return max_pool3d(x * 2, (2, 3, 3), (2, 2, 2), (0, 0, 0)).square()

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = distinct((1, 3, 4, 7, 7), device, torch.float32).requires_grad_()
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(grad, expected)


def test_shapes_and_formats_without_running() -> None:
    meta = torch.empty(2, 64, 8, 56, 56, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y = max_pool3d(meta, (2, 1, 1), (2, 1, 1), (0, 0, 0))
    y.sum().backward()
    assert y.shape == (2, 64, 4, 56, 56)
    assert meta.grad is not None
    assert meta.grad.shape == meta.shape
    with FakeTensorMode():
        fake = torch.empty(2, 64, 8, 56, 56).to(memory_format=torch.channels_last_3d)
        pooled = max_pool3d(fake, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert pooled.stride() == (64 * 8 * 28 * 28, 1, 64 * 28 * 28, 64 * 28, 64)


@pytest.mark.parametrize(
    ("size", "window", "fault"),
    [
        ((3, 4, 4, 4), ((1, 2, 2), (1, 2, 2), (0, 0, 0)), "5D"),
        ((1, 1, 9, 9, 9), ((5, 8, 8), (1, 1, 1), (0, 0, 0)), "256"),
        ((1, 1, 9, 9, 9), ((1, 2, 2), (1, 2, 2), (1, 0, 0)), "half"),
        ((1, 1, 1, 9, 9), ((2, 2, 2), (2, 2, 2), (0, 0, 0)), "too small"),
    ],
)
def test_what_it_cannot_do_is_refused(
    size: tuple[int, ...], window: tuple[pool.Extent, pool.Extent, pool.Extent], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        max_pool3d(torch.zeros(size), *window)


def test_triton_is_imported_at_the_first_launch_alone() -> None:
    tree = ast.parse(Path(pool.__file__).read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in at_import if "triton" in ast.unparse(node)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_more_elements_than_32_bits_count(memory_format: torch.memory_format) -> None:
    # 2.6 G elements, 5.3 GB; slices of the end are beyond 2^31.
    size = (14, 64, 16, 448, 416)
    x = torch.empty(size, device="cuda", dtype=torch.bfloat16, memory_format=memory_format)
    x.normal_().requires_grad_()
    window = ((1, 3, 3), (1, 2, 2), (0, 1, 1))
    y = max_pool3d(x, *window)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    last = x.detach()[-1:].float().requires_grad_()
    expected = F.max_pool3d(last, *window)
    (expected_grad,) = torch.autograd.grad(expected.sum(), last)
    assert torch.equal(y[-1:].float(), expected)
    # Ties, of which bf16 normals have many, go to the first in both.
    assert torch.equal(grad[-1:].float(), expected_grad)
