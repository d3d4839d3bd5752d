"""Kernels run on the GPU where there is one, else on the CPU in Triton's interpreter.

Triton reads TRITON_INTERPRET where a kernel is defined and here and there while it runs, so it is
set around every test of this folder and nowhere else: tests that compile for real, in the same
process, do not see it. Kernel modules are imported inside of a test, at the first launch.
"""

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    return DEVICE
