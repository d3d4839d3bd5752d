"""Fused layers are tested in Triton's interpreter on the CPU and, marked gpu, on a CUDA device."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernels run; on the CPU, in the interpreter, which is on for this test only."""
    if request.param == "cpu":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
