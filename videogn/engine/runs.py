"""A run's folder: its config, its log and its checkpoints, and whether a command may use it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from videogn.config import Config
from videogn.config_files import differences, from_tree, to_yaml
from videogn.errors import RunError
from videogn.files import write_text

HARMLESS = frozenset(
    {
        "data.index",  # the same frames; only damage outside of clips is noticed or not
        "data.num_workers",
        "data.pixels",  # the same frames, but for roundings
        "data.prefetch",
        "data.read_timeout",
        "data.test",
        "out",
        "resume",
        "test.num_clips",
        "test.num_crops",
        "test.protocol",
        "test.views_per_pass",
        "train.checkpoint_interval",
        "train.log_interval",
        "train.max_failed_fraction",
    }
)
"""Keys that may change when a run goes on: no weight depends on them."""


OWN_NAMES = frozenset({"config.yaml", "log.jsonl", "checkpoints"})
"""What a run that has not come to its first checkpoint may have left."""


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a training run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """One JSON object per line."""
        return self.path / "log.jsonl"

    @property
    def last(self) -> Path:
        """Newest checkpoint, with the optimizer's state."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """Weights of the best validation so far."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def holds_run(self) -> bool:
        """Whether a training run has left a checkpoint here.

        Without one there is nothing to lose: a run that failed to start may be started again
        with another config.
        """
        return self.last.exists() or self.best.exists()


def check_folder(folder: RunFolder, config: Config) -> None:
    """Refuse a folder that ``config``'s run may not use; nothing is changed.

    Raises:
        RunError: the folder is a file, or holds another run or other files.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise RunError(f"{folder.path}: the run folder out= is a file; choose another out=")
    if folder.holds_run:
        _check_same_run(folder, config)
    elif folder.path.exists():
        foreign = {path.name for path in folder.path.iterdir()} - OWN_NAMES
        if foreign:
            raise RunError(
                f"{folder.path}: holds files that are no training run, such as {min(foreign)}; "
                "choose another out= or empty it"
            )


def claim(folder: RunFolder, config: Config) -> None:
    """Make ``folder`` the home of ``config``'s run, unless it is already.

    Raises:
        RunError: as :func:`check_folder`, or the folder cannot be written.
    """
    check_folder(folder, config)
    if not folder.holds_run:
        folder.log.unlink(missing_ok=True)
        write_text(folder.config, to_yaml(config))


def _check_same_run(folder: RunFolder, config: Config) -> None:
    if config.resume == "never":
        raise RunError(
            f"{folder.path}: holds a run already; choose another out=, or resume=auto to go on"
        )
    if not folder.last.exists():
        raise RunError(
            f"{folder.path}: holds {folder.best.relative_to(folder.path)} and no last checkpoint "
            "to go on from; choose another out="
        )
    try:
        tree = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{folder.config}: cannot be read: {reason}; choose another out=") from error
    old = from_tree(tree or {}, str(folder.config))
    changed = {key: pair for key, pair in differences(old, config).items() if key not in HARMLESS}
    if changed:
        lines = "".join(
            f"\n  - {key}: {was!r} there, {now!r} now" for key, (was, now) in changed.items()
        )
        raise RunError(
            f"{folder.path}: holds another run; choose another out=, or set these back:{lines}"
        )


class RunLog:
    """Appends JSON objects to a run's log, one per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def cut_after(self, iteration: int) -> None:
        """Drop what a killed run wrote after its last checkpoint, for it will be written again."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _iteration_of(line) <= iteration]
        write_text(self._path, "".join(kept))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one entry."""
        line = json.dumps({"kind": kind, **values}, allow_nan=False) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written: {error.strerror}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; a line a killed run left unfinished is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _iteration_of(line: str) -> float:
    try:
        return float(json.loads(line).get("iteration", 0))
    except (json.JSONDecodeError, AttributeError):
        return float("inf")
