"""Compiled and interpreted kernels live side by side in one process, in either order."""

import os
import sys

import pytest
import torch

from videogn.models.kernels.launch import kernels_for

NAME = "norm_triton"


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_each_device_has_its_own_copy(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    # What other tests have loaded is theirs again afterwards.
    for copy in (NAME, f"{NAME}_interpreted"):
        monkeypatch.delitem(sys.modules, f"videogn.models.kernels.{copy}", raising=False)
    kinds = {}
    for kind in (first, "cuda" if first == "cpu" else "cpu"):
        with monkeypatch.context() as patch:
            if kind == "cpu":
                patch.setenv("TRITON_INTERPRET", "1")
            else:
                patch.delenv("TRITON_INTERPRET", raising=False)
            kernels = kernels_for(NAME, torch.device(kind))
            kinds[kind] = type(kernels.partial_stats).__name__
            assert kernels is kernels_for(NAME, torch.device(kind))
            assert os.environ.get("TRITON_INTERPRET") == ("1" if kind == "cpu" else None)
    assert kinds == {"cpu": "InterpretedFunction", "cuda": "JITFunction"}
    # Triton's own helpers are compiled ones, whichever came first.
    assert type(sys.modules["triton.language.standard"].sum).__name__ == "JITFunction"
