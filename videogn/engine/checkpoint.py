"""Checkpoints: a weight file that also holds the optimizer's state and the run's position.

The format is that of every weight file (:mod:`videogn.models.weights`), so whatever loads an
inflated file loads a checkpoint. No random state is kept: every draw of a run is a function of
its seed and position.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videogn.errors import WeightError
from videogn.models.spec import WeightInfo
from videogn.models.weights import (
    OPTIMIZER_PREFIX,
    WeightFile,
    load_into,
    read_weights,
    write_weights,
)


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        iteration: finished iterations.
        global_batch: clips per iteration, which the order of the samples depends on.
        best_top1: best validation accuracy so far, in percent; -1 before the first.
        failed_videos: path and reason of each training video that could not be decoded.
    """

    iteration: int
    global_batch: int
    best_top1: float
    failed_videos: dict[str, str]


def save_checkpoint(
    path: Path,
    model: nn.Module,
    info: WeightInfo,
    state: TrainingState,
    optimizer: torch.optim.SGD | None = None,
) -> None:
    """Write a checkpoint whole or not at all; without an optimizer it holds weights only."""
    tensors = dict(model.state_dict())
    if optimizer is not None:
        tensors |= _momentum_of(model, optimizer)
    write_weights(path, tensors, info, training=asdict(state))


def load_checkpoint(
    path: Path, model: nn.Module, info: WeightInfo, optimizer: torch.optim.SGD
) -> TrainingState:
    """Put a run back where its checkpoint was written.

    Raises:
        WeightError: the file is damaged, is of another network or holds no training state.
    """
    file = read_weights(path)
    load_into(model, info.spec, file)
    _restore_momentum(path, file, model, optimizer)
    return _training_state(path, file.training)


def _momentum_of(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    return {
        f"{OPTIMIZER_PREFIX}{name}/momentum_buffer": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def _restore_momentum(
    path: Path, file: WeightFile, model: nn.Module, optimizer: torch.optim.SGD
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in file.optimizer.items():
        name = key.removeprefix(OPTIMIZER_PREFIX).removesuffix("/momentum_buffer")
        if name not in parameters or parameters[name].shape != value.shape:
            raise WeightError(f"{path}: holds momentum for {name!r}, which the network has not")
        parameter = parameters[name]
        # A copy in the parameter's own memory layout, as SGD itself would have made it.
        momentum = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter]["momentum_buffer"] = momentum


def _training_state(path: Path, training: Mapping[str, Any] | None) -> TrainingState:
    try:
        state = TrainingState(**(training or {}))
    except TypeError as error:
        raise WeightError(
            f"{path}: holds weights but no training state to go on from; "
            "choose another out=, with model.weights= naming this file"
        ) from error
    return state
