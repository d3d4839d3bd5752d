"""Fused layers are tested in Triton's interpreter on the CPU and, marked gpu, on a CUDA device."""

import numpy as np
import pytest
import torch


def need_interpreter() -> None:
    """Skips a test where Triton is missing, or is too old to loop in its interpreter."""
    triton = pytest.importorskip("triton")
    older = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    if older and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of Triton {triton.__version__} needs numpy<2.4")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernels run; on the CPU, in the interpreter, which is on for this test only."""
    if request.param == "cpu":
        need_interpreter()
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
