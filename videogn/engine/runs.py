"""A run's folder: its config, its log and its checkpoints, and whether a command may use it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from videogn.config import Config
from videogn.config_files import differences, from_tree, to_yaml
from videogn.data.list_checks import VideoRecord
from videogn.engine.checkpoint import LAST, Checkpoints
from videogn.errors import RunError
from videogn.files import free_space, write_text
from videogn.models.weights import few

HARMLESS = frozenset(
    {
        # The lists themselves are compared, wherever they are read.
        "data.allow_outside_root",
        "data.format",
        "data.root",
        "data.train",
        "data.val",
        "data.index",  # the same frames; only damage outside of clips is noticed or not
        "data.num_workers",
        "data.pixels",  # the same frames, but for roundings
        "data.prefetch",
        "data.read_timeout",
        "data.test",
        "out",
        "resume",
        "test.average",
        "test.num_clips",
        "test.num_crops",
        "test.precision",
        "test.protocol",
        "test.views_per_pass",
        # Their product is compared; what it is shared among may change.
        "train.accumulation",
        "train.clips_per_gpu",
        "train.checkpoint_interval",
        "train.epochs",  # as iterations
        "train.iterations",  # longer: shorter than what is done is refused
        "train.keep_checkpoints",
        "train.log_interval",
        "train.log_samples",
        "train.max_failed_fraction",
        "train.percentile_layer",
        "train.timeout",
    }
)
"""Keys that may change when a run goes on."""


OWN_NAMES = frozenset(
    {
        "config.yaml",
        "log.jsonl",
        "checkpoints",
        "lists",
        "run.lock",
        "preempted.json",
        "percentiles.png",
    }
)
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
    def lock(self) -> Path:
        """Held while a process trains here."""
        return self.path / "run.lock"

    @property
    def preempted(self) -> Path:
        """Left by a run that a signal stopped and that goes on when it is started again."""
        return self.path / "preempted.json"

    @property
    def checkpoints(self) -> Checkpoints:
        """What the run may go on from."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def percentiles(self) -> Path:
        """Picture of what ``train.percentile_layer`` asks for."""
        return self.path / "percentiles.png"

    def videos(self, key: str) -> Path:
        """The videos of the list ``train`` or ``val`` that the run began with."""
        return self.path / "lists" / f"{key}.jsonl"

    @property
    def last(self) -> Path:
        """Newest checkpoint, with the optimizer's state."""
        return self.checkpoints.folder / LAST

    @property
    def best(self) -> Path:
        """Weights of the best validation so far."""
        return self.checkpoints.folder / "best.safetensors"

    @property
    def holds_run(self) -> bool:
        """Whether a training run has left a checkpoint here.

        Without one there is nothing to lose: a run that failed to start may be started again
        with another config.
        """
        return bool(self.checkpoints.newest_first()) or self.best.exists()


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


def claim(folder: RunFolder, config: Config, lists: Mapping[str, Sequence[VideoRecord]]) -> None:
    """Make ``folder`` the home of ``config``'s run, unless it is already.

    Args:
        lists: the videos of ``train`` and, where there are any, ``val``.

    Raises:
        RunError: as :func:`check_folder` and :func:`check_lists`, or the folder cannot be written.
    """
    check_folder(folder, config)
    check_lists(folder, lists)
    folder.preempted.unlink(missing_ok=True)
    folder.checkpoints.drop_halves()
    if not folder.holds_run:
        folder.log.unlink(missing_ok=True)
        folder.percentiles.unlink(missing_ok=True)
        for key, records in lists.items():
            write_text(folder.videos(key), _listing(records))
    # What may change is written down too: the config is that of the last start.
    write_text(folder.config, to_yaml(config))


def check_lists(folder: RunFolder, lists: Mapping[str, Sequence[VideoRecord]]) -> None:
    """Refuse lists that are not those a run began with.

    Raises:
        RunError: naming what is gone, new, labelled otherwise or in another order.
    """
    if not folder.holds_run:
        return
    for key in ("train", "val"):
        path, new = folder.videos(key), _listing(lists.get(key, ()))
        old = path.read_text(encoding="utf-8") if path.is_file() else None
        # Runs of earlier versions have not written them down.
        if old is None and not any(folder.videos(k).is_file() for k in ("train", "val")):
            return
        if (old or "") != new:
            raise RunError(
                f"{folder.path}: data.{key} is not the list that the run began with: "
                f"{_list_changes(old or '', new)}; restore it, or choose another out="
            )


def _listing(records: Sequence[VideoRecord]) -> str:
    return "".join(json.dumps([record.name, record.label]) + "\n" for record in records)


def _list_changes(old: str, new: str) -> str:
    was, now = (dict(map(json.loads, text.splitlines())) for text in (old, new))
    changes = {
        "gone": [name for name in was if name not in now],
        "new": [name for name in now if name not in was],
        "with another label": [
            f"{name} ({was[name]} -> {label})"
            for name, label in now.items()
            if name in was and was[name] != label
        ],
    }
    told = [f"{len(names)} {what}: {few(names)}" for what, names in changes.items() if names]
    return "; ".join(told) or "the order of its videos differs"


def _check_same_run(folder: RunFolder, config: Config) -> None:
    if config.resume == "never":
        raise RunError(
            f"{folder.path}: holds a run already; choose another out=, or resume=auto to go on"
        )
    if not folder.checkpoints.newest_first():
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

    def cut_after(self, iteration: int, limits: Mapping[str, int]) -> None:
        """Drop what a killed run wrote after its last checkpoint, for it will be written again.

        Args:
            iteration: the checkpoint's.
            limits: earlier iterations for some kinds of entries.
        """
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(self._path, "".join(line for line in lines if _stays(line, iteration, limits)))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one entry."""
        self.write_all([(kind, values)])

    def write_all(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Append several entries."""
        lines = [json.dumps({"kind": kind, **values}, allow_nan=False) for kind, values in entries]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written: {error.strerror}{free_space(self._path)}"
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; a line a killed run left unfinished is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _stays(line: str, iteration: int, limits: Mapping[str, int]) -> bool:
    try:
        entry = json.loads(line)
        return bool(entry.get("iteration", 0) <= limits.get(entry.get("kind"), iteration))
    except (json.JSONDecodeError, AttributeError, TypeError):
        return False
