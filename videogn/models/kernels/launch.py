"""Which Triton kernels run for a device: compiled ones on CUDA, interpreted ones on a CPU."""

import contextlib
import importlib
import importlib.util
import os
import sys
from contextlib import AbstractContextManager
from types import ModuleType

import torch

_INTERPRET = "TRITON_INTERPRET"


def is_available(device: torch.device | str) -> bool:
    """Whether the kernels run on a device.

    They do on CUDA where Triton is installed, and on a CPU where the environment has
    ``TRITON_INTERPRET=1``: Triton's interpreter, which serves tests and is very slow.
    """
    kind = torch.device(device).type
    if kind == "cpu" and os.environ.get(_INTERPRET) != "1":
        return False
    return kind in ("cpu", "cuda") and importlib.util.find_spec("triton") is not None


def kernels_for(name: str, device: torch.device) -> ModuleType:
    """The module of Triton kernels of a name, for tensors of a device.

    Raises:
        RuntimeError: the device is a CPU and the interpreter is not asked for.
    """
    full_name = f"{__package__}.{name}"
    if device.type == "cuda":
        return sys.modules.get(full_name) or importlib.import_module(full_name)
    if os.environ.get(_INTERPRET) != "1":
        raise RuntimeError(
            f"the fused layers run on CUDA devices, not on {device.type}; "
            f"use plain ones there, or set {_INTERPRET}=1 to run them in Triton's interpreter"
        )
    return sys.modules.get(f"{full_name}_interpreted") or _load_interpreted(full_name)


def _load_interpreted(full_name: str) -> ModuleType:
    """A second copy of a module of kernels, beside the compiled one.

    Triton decides when a kernel is decorated. Its own helpers are decorated while it is imported
    itself, which is done before, compiled: GPUs in this process need them so.
    """
    before = os.environ.pop(_INTERPRET)
    try:
        importlib.import_module("triton.language")
        os.environ[_INTERPRET] = "1"
        source = importlib.util.find_spec(full_name)
        assert source is not None
        assert source.origin is not None
        name = f"{full_name}_interpreted"
        spec = importlib.util.spec_from_file_location(name, source.origin)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        os.environ[_INTERPRET] = before
    sys.modules[name] = module
    return module


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a tensor's device the current one, on whose current stream kernels are launched."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
