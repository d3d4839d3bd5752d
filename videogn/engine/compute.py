"""Which form of a network is the fastest correct one on a device."""

import functools
from dataclasses import dataclass, replace

import torch

from videogn.config import ComputeConfig
from videogn.engine.arithmetic import dtype_of
from videogn.errors import ConfigError
from videogn.models.cudnn import conv3d_fault
from videogn.models.execution import Execution
from videogn.models.kernels.launch import is_available
from videogn.models.kernels.norm import group_norm
from videogn.models.norm import GROUP_NORMS
from videogn.models.spec import NetworkSpec
from videogn.trying import works

VIDEO_FAMILIES = ("i3d", "zoo")
FUSED_NORMS = ("bn", "gn", "ln", "in")
"""Values of ``model.norm`` that there are kernels for."""


@dataclass(frozen=True)
class Machine:
    """What the choice depends on.

    Attributes:
        cuda: whether the network computes on a GPU.
        kernels: whether Triton kernels run there.
        cudnn: version of cuDNN as torch tells it; None where there is none.
    """

    cuda: bool
    kernels: bool
    cudnn: int | None

    @staticmethod
    def of(device: torch.device) -> "Machine":
        """The machine of a device, whose kernels are tried."""
        machine = Machine.untried(device)
        return replace(machine, kernels=machine.kernels and _kernels_run(device))

    @staticmethod
    def untried(device: torch.device) -> "Machine":
        """The machine of a device as far as can be known without computing on it.

        For processes that start others: a GPU's memory is not touched, and kernels for which a
        compiler is missing are taken for sound.
        """
        cuda = device.type == "cuda"
        version = torch.backends.cudnn.version() if cuda else None  # type: ignore[no-untyped-call]
        return Machine(cuda, is_available(device), version)


@functools.cache
def _kernels_run(device: torch.device) -> bool:
    """Whether the kernels run on a device and are right; tried once, with a warning if not."""

    def relu_of_a_norm() -> bool:
        x = torch.tensor([[-1.0, 1.0]], device=device)
        found = group_norm(x, torch.ones_like(x[0]), torch.zeros_like(x[0]), 1, relu=True)
        return torch.allclose(found, x.relu(), atol=1e-4)

    return works(relu_of_a_norm, "norms are computed by torch's own layers")


A_GPU = Machine(cuda=True, kernels=True, cudnn=None)
"""Any GPU with Triton and a sound cuDNN, for plans made elsewhere."""


def choose_execution(
    compute: ComputeConfig,
    spec: NetworkSpec,
    machine: Machine,
    *,
    precision: str,
    memory_format: str = "auto",
    compiled: bool = False,
) -> Execution:
    """The form that a config asks for; what it leaves open is chosen by measurements.

    Args:
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        memory_format: ``train.memory_format``.
        compiled: whether torch.compile translates the network.

    Raises:
        ConfigError: there are no such kernels here, or cuDNN would compute wrong results.
    """
    video = spec.family in VIDEO_FAMILIES
    norms = _norms(compute, spec, machine, video)
    last = _is_channels_last(memory_format, norms, spec, machine, video)
    convolutions = _convolutions(compute, machine, precision, last=last)
    _check_recompute(compute.recompute, norms, spec, compiled)
    return Execution(
        norms=norms,
        convolutions=convolutions,
        recompute=compute.recompute,
        memory_format=torch.channels_last_3d if last else torch.contiguous_format,
    )


def _norms(compute: ComputeConfig, spec: NetworkSpec, machine: Machine, video: bool) -> str:
    fitting = video and spec.norm in FUSED_NORMS
    if compute.norms == "auto":
        return "fused" if fitting and machine.cuda and machine.kernels else "eager"
    if compute.norms == "fused":
        if not fitting:
            raise ConfigError(
                f"compute.norms=fused: there are kernels for {', '.join(FUSED_NORMS)} of video "
                f"networks, not for model.norm={spec.norm} of model.arch={spec.arch}; set "
                "compute.norms=auto"
            )
        if not machine.kernels:
            raise ConfigError(
                "compute.norms=fused: the kernels need a CUDA device and Triton, of which one is "
                "missing here; set compute.norms=auto"
            )
    return compute.norms


def _is_channels_last(
    memory_format: str, norms: str, spec: NetworkSpec, machine: Machine, video: bool
) -> bool:
    if memory_format != "auto":
        return memory_format == "channels_last_3d"
    # torch's own group norm copies to contiguous and back before each layer.
    suits = norms == "fused" or spec.norm not in GROUP_NORMS
    return video and machine.cuda and suits


def _convolutions(compute: ComputeConfig, machine: Machine, precision: str, *, last: bool) -> str:
    fault = conv3d_fault(dtype_of(precision), machine.cudnn, tf32=precision == "tf32")
    if compute.convolutions in ("2d", "mixed") and not last:
        raise ConfigError(
            f"compute.convolutions={compute.convolutions} works on channels-last tensors, and the "
            "network's are contiguous here; set train.memory_format=channels_last_3d"
        )
    if compute.convolutions in ("3d", "mixed") and fault is not None:
        raise ConfigError(
            f"compute.convolutions={compute.convolutions}: {fault} (compute.convolutions=2d)"
        )
    if compute.convolutions != "auto":
        return compute.convolutions
    if not (last and machine.cuda):
        return "3d"
    return "mixed" if fault is None else "2d"


def _check_recompute(recompute: str, norms: str, spec: NetworkSpec, compiled: bool) -> None:
    if recompute != "none" and spec.family not in VIDEO_FAMILIES:
        raise ConfigError(
            f"compute.recompute={recompute} is for video networks, not model.arch={spec.arch}"
        )
    if recompute != "none" and norms != "fused":
        raise ConfigError(
            f"compute.recompute={recompute} is part of the fused blocks, which are not used here; "
            "set compute.recompute=none, or compute.norms=fused on a GPU"
        )
    if recompute in ("act", "act+conv_c") and compiled:
        raise ConfigError(
            f"compute.recompute={recompute} and train.compile exclude each other: the compiler "
            "chooses by itself what to compute again; set one of them"
        )


def uses_graphs(
    compute: ComputeConfig,
    execution: Execution,
    machine: Machine,
    *,
    accumulation: int,
    compiled: bool,
    watched: bool = False,
) -> bool:
    """Whether the training pass is captured as CUDA graphs.

    Args:
        watched: whether a layer's output is looked at, which a graph does not stop for.

    Raises:
        ConfigError: it is asked for and cannot be.
    """
    fused = machine.cuda and execution.norms == "fused"
    fitting = fused and accumulation == 1 and not compiled and not watched
    if compute.graphs == "auto":
        return fitting
    if compute.graphs == "on" and not fitting:
        raise ConfigError(
            "compute.graphs=on needs a CUDA device, compute.norms=fused, train.accumulation=1, "
            "train.compile=false and no train.percentile_layer; set compute.graphs=auto"
        )
    return compute.graphs == "on"


def replays_passes(compute: ComputeConfig, execution: Execution, machine: Machine) -> bool:
    """Whether passes of a test become CUDA graphs where views of their shape come again."""
    return machine.cuda and execution.norms == "fused" and compute.graphs != "off"
