"""Whether a run's training pass becomes CUDA graphs, and what is said where it does not."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videogn.config import Config
from videogn.distributed import World, gather_over_ranks
from videogn.engine.graphs import Uncaptured, try_replayed
from videogn.engine.memory_plan import MemoryPlan
from videogn.errors import RunError


def captured(
    network: nn.Module,
    clips: Tensor,
    config: Config,
    memory: MemoryPlan,
    world: World,
    report: Callable[[str], None],
) -> nn.Module | None:
    """The network with its training pass as CUDA graphs; None where plain launches have to do.

    ``compute.graphs=auto`` goes on with those, and a line says why. Of the ranks all have graphs
    or none has, so that all add up in one order.

    Args:
        network: in training mode, with the parts that are not trained in evaluation mode.
        clips: (B, 3, T, H, W) as the network is called with; their values do not matter.
        memory: of a step without graphs.

    Raises:
        RunError: a pass cannot be captured, and graphs are asked for or the device is unusable.
    """
    if config.compute.graphs == "on":
        return _demanded(network, clips, config)
    fault = _first(memory.graphs_fault(), world)
    if fault is not None:
        report(f"graphs      not used: {fault}")
        return None
    found = try_replayed(network, clips, config.train.precision)
    mine = found.reason if isinstance(found, Uncaptured) else None
    if isinstance(found, Uncaptured) and not found.sound:
        raise _error(found, config)
    fault = _first(mine, world)
    if isinstance(found, nn.Module) and fault is None:
        return found
    del found
    # Where another rank failed, this one's graphs hold memory, and refer to themselves.
    gc.collect()
    torch.cuda.empty_cache()
    report(f"graphs      not used: a training pass cannot be captured: {fault}")
    return None


def _demanded(network: nn.Module, clips: Tensor, config: Config) -> nn.Module:
    found = try_replayed(network, clips, config.train.precision)
    if isinstance(found, Uncaptured):
        raise _error(found, config)
    return found


def _first(fault: str | None, world: World) -> str | None:
    """The fault of the first rank that has one."""
    faults = [fault] if world.size == 1 else gather_over_ranks(fault)
    return next((each for each in faults if each is not None), None)


def _error(failed: Uncaptured, config: Config) -> RunError:
    if failed.out_of_memory:
        return RunError(
            f"train.clips_per_gpu={config.train.clips_per_gpu}: a training pass ran out of memory "
            "while it was captured as CUDA graphs; set a smaller train.clips_per_gpu, "
            "compute.recompute=act+conv_c or compute.graphs=off"
        )
    return RunError(
        f"a training pass cannot be captured as CUDA graphs here: {failed.reason}; set "
        "compute.graphs=off"
    )
