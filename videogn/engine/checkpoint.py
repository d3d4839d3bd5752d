"""Checkpoints: weight files that also hold the optimizer's state and the run's position.

The format is that of every weight file (:mod:`videogn.models.weights`), so whatever loads an
inflated file loads a checkpoint, and its content is checked by a hash. No random state is kept:
every draw of a run is a function of its seed and position.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from videogn.errors import RunError, UserError, WeightError
from videogn.files import atomic_path
from videogn.models.spec import WeightInfo
from videogn.models.weights import (
    AVERAGE_PREFIX,
    OPTIMIZER_PREFIX,
    WeightFile,
    load_into,
    read_training,
    read_weights,
    write_weights,
)

NAME = re.compile(r"iter_(\d{8,})\.safetensors")
LAST = "last.safetensors"


@dataclass(frozen=True)
class Window:
    """What happened since the last progress line.

    Attributes:
        since: iteration of that line.
        sums: the sums of a :class:`~videogn.engine.metrics.Tally` of each rank.
    """

    since: int = 0
    sums: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        iteration: finished iterations.
        global_batch: clips per iteration, which the order of the samples depends on.
        best_top1: best validation accuracy so far, in percent; -1 before the first.
        failed_videos: path and reason of each training video that could not be decoded.
        settled: the last iteration after which all that was due, such as validation, was done.
        window: what the next progress line starts from.
        scaler: state of fp16's loss scale; empty in other precisions.
    """

    iteration: int
    global_batch: int
    best_top1: float = -1.0
    failed_videos: dict[str, str] = field(default_factory=dict)
    settled: int = 0
    window: Window = field(default_factory=Window)
    scaler: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, path: Path, tree: Mapping[str, Any] | None) -> "TrainingState":
        """Read what a checkpoint holds; ``path`` names it in messages.

        Raises:
            WeightError: it holds weights only.
        """
        known = {item.name for item in fields(cls)}
        try:
            values = {key: value for key, value in (tree or {}).items() if key in known}
            window = values.pop("window", {})
            sums = tuple(map(tuple, window.get("sums", ())))
            # Earlier versions saved only when all was done.
            values.setdefault("settled", values["iteration"])
            return cls(**values, window=Window(window.get("since", values["iteration"]), sums))
        except (TypeError, KeyError, AttributeError) as error:
            raise WeightError(
                f"{path}: holds weights but no training state to go on from; "
                "choose another out=, with model.weights= naming this file"
            ) from error


class Checkpoints:
    """The folder of a run's checkpoints: ``iter_<iteration>``, and ``last``, a link to the newest.

    Args:
        folder: created by the first checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, iteration: int) -> Path:
        """File of the checkpoint after so many iterations."""
        return self.folder / f"iter_{iteration:08}.safetensors"

    def newest_first(self) -> list[Path]:
        """All that a run may go on from, by their iterations and never by the files' times."""
        if not self.folder.is_dir():
            return []
        numbered = {
            int(match[1]): path
            for path in self.folder.iterdir()
            if (match := NAME.fullmatch(path.name))
        }
        paths = [numbered[iteration] for iteration in sorted(numbered, reverse=True)]
        last = self.folder / LAST
        # Runs of earlier versions have one file of that name.
        return paths if not last.is_file() or last.is_symlink() else [*paths, last]

    def newest_sound(self, tell: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose content is what was written; None where there is none.

        Args:
            tell: gets a line on each damaged one.

        Raises:
            RunError: there are some and all are damaged.
        """
        paths, faults = self.newest_first(), []
        for path in paths:
            try:
                TrainingState.from_json(path, read_weights(path).training)
            except UserError as error:
                faults.append(str(error))
                tell(f"warning: {error}; trying the checkpoint before")
            else:
                return path
        if faults:
            lines = "".join(f"\n  - {fault}" for fault in faults)
            raise RunError(
                f"{self.folder}: not one checkpoint can be gone on from; choose another out=, or "
                f"remove the folder to begin anew:{lines}"
            )
        return None

    def peek(self) -> TrainingState | None:
        """What the newest readable checkpoint says of itself; its tensors are not read."""
        for path in self.newest_first():
            try:
                return TrainingState.from_json(path, read_training(path))
            except UserError:
                continue
        return None

    def set_aside_after(self, path: Path) -> None:
        """Rename those newer than the one that is gone on from: they are damaged."""
        for newer in self.newest_first():
            if newer == path:
                return
            newer.replace(newer.with_name(f"{newer.name}.damaged"))

    def point_last_to(self, path: Path) -> None:
        """Make ``last`` stand for a checkpoint."""
        if path.name == LAST:
            return
        with atomic_path(self.folder / LAST) as temporary:
            temporary.unlink()
            temporary.symlink_to(path.name)

    def drop_all_but(self, keep: int) -> None:
        """Remove the oldest, once newer ones are safely on the disk."""
        for path in self.newest_first()[keep:]:
            path.unlink(missing_ok=True)

    def drop_halves(self) -> None:
        """Remove what a killed run left half written; only while nobody else writes here."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*.safetensors"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Trained:
    """Everything whose values training changes.

    Attributes:
        network: not wrapped for several ranks.
        average: exponential moving average of its weights, where wanted.
        scaler: fp16's loss scale; switched off in other precisions.
    """

    network: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    average: AveragedModel | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and tested: the average where there is one."""
        return self.network if self.average is None else self.average.module


def save_checkpoint(
    checkpoints: Checkpoints, trained: Trained, info: WeightInfo, state: TrainingState, keep: int
) -> None:
    """Write a checkpoint whole or not at all, then let go of those older than the last ``keep``.

    Raises:
        RunError: it cannot be written; earlier ones are as they were.
    """
    tensors = dict(trained.network.state_dict()) | _momentum_of(trained)
    if trained.average is not None:
        average = trained.average.module.state_dict()
        tensors |= {AVERAGE_PREFIX + name: tensor for name, tensor in average.items()}
    path = checkpoints.path_of(state.iteration)
    write_weights(path, tensors, info, training=asdict(state))
    checkpoints.point_last_to(path)
    checkpoints.drop_all_but(keep)


def save_weights(path: Path, trained: Trained, info: WeightInfo, state: TrainingState) -> None:
    """Write the weights that are tested, without what going on would need."""
    write_weights(path, trained.evaluated.state_dict(), info, training=asdict(state))


def load_checkpoint(path: Path, trained: Trained, info: WeightInfo) -> TrainingState:
    """Put a run back where its checkpoint was written.

    Raises:
        WeightError: the file is damaged, is of another network or holds no training state.
    """
    file = read_weights(path)
    state = TrainingState.from_json(path, file.training)
    load_into(trained.network, info.spec, file.trained())
    _restore_momentum(file, trained)
    if trained.average is not None:
        load_into(trained.average.module, info.spec, file)
        trained.average.n_averaged.fill_(state.iteration)
    if state.scaler:
        trained.scaler.load_state_dict(dict(state.scaler))
    return state


def _momentum_of(trained: Trained) -> dict[str, Tensor]:
    states = trained.optimizer.state
    return {
        f"{OPTIMIZER_PREFIX}{name}/momentum_buffer": states[parameter]["momentum_buffer"]
        for name, parameter in trained.network.named_parameters()
        if states.get(parameter, {}).get("momentum_buffer") is not None
    }


def _restore_momentum(file: WeightFile, trained: Trained) -> None:
    parameters = dict(trained.network.named_parameters())
    for key, value in file.optimizer.items():
        name = key.removeprefix(OPTIMIZER_PREFIX).removesuffix("/momentum_buffer")
        if name not in parameters or parameters[name].shape != value.shape:
            raise WeightError(
                f"{file.path}: holds momentum for {name!r}, which the network has not"
            )
        parameter = parameters[name]
        # A copy in the parameter's own memory layout, as SGD itself would have made it.
        momentum = torch.empty_like(parameter).copy_(value)
        trained.optimizer.state[parameter]["momentum_buffer"] = momentum
