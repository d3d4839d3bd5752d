import pytest
import torch
import torch.nn.functional as F

from videogn.engine.arithmetic import dtype_of, set_arithmetic


@pytest.fixture(autouse=True)
def _settings_as_before():
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark)
    yield
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_only_tf32_rounds_and_only_fixed_shapes_are_tried_out(precision, fixed_shapes):
    set_arithmetic(precision, fixed_shapes=fixed_shapes)
    rounds = precision == "tf32"
    assert torch.backends.cudnn.allow_tf32 is rounds
    assert torch.backends.cuda.matmul.allow_tf32 is rounds
    assert torch.backends.cudnn.benchmark is fixed_shapes


def test_tf32_is_a_way_to_compute_with_float32():
    assert dtype_of("tf32") is dtype_of("fp32") is torch.float32
    assert dtype_of("bf16") is torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 2e-6), ("tf32", 5e-5, 2e-3)])
def test_fp32_is_float32_on_a_gpu(precision, least, most):
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(2, 64, 4, 28, 28, generator=generator)
    weight = torch.randn(64, 64, 3, 3, 3, generator=generator)
    expected = F.conv3d(clips.double(), weight.double(), padding=1)
    set_arithmetic(precision, fixed_shapes=False)
    found = F.conv3d(clips.cuda(), weight.cuda(), padding=1).cpu().double()
    error = ((found - expected).norm() / expected.norm()).item()
    assert least <= error < most
