"""Tested networks as their folders tell of them, read without torch, a network or a video.

Shapes: N videos, K classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from videogn.engine.report.table8 import Setting, settings_of
from videogn.engine.scores import DAMAGE, SCORES
from videogn.engine.statistics import Outcome, ranked
from videogn.engine.test_folder import RESULTS, check_together, read_results, test_folder
from videogn.errors import RunError
from videogn.files import printable

JPEG = b"\xff\xd8\xff"
THUMBNAILS = "thumbnails.npz"
LOG = "log.jsonl"
CONFIG = "config.yaml"
TOLD = {
    "test": {key: key for key in ("protocol", "num_clips", "num_crops", "average")},
    "clip": {
        "num_frames": "num_frames",
        "frame_stride": "frame_stride",
        "fps": "fps",
        "short_side_min": "short_side",
    },
}
"""Section of the config -> its leaves that stand in the results too -> their names there."""


@dataclass(frozen=True)
class VideoScores:
    """Scores of a list in its order; rows of videos that failed are NaN.

    Attributes:
        videos: N names, as they stand in the list.
        labels: (N,) int64.
        ok: (N,) bool, whether the video could be read.
        probs: (N, K) float32, by the average that was tested.
    """

    videos: tuple[str, ...]
    labels: np.ndarray
    ok: np.ndarray
    probs: np.ndarray

    @cached_property
    def outcome(self) -> Outcome:
        """Ranks and predictions of every video."""
        return ranked(self.probs, self.labels, self.ok)


@dataclass(frozen=True)
class Training:
    """What the folder of a training run tells.

    Attributes:
        folder: as it is named in the report.
        config: the config of its last start; empty where it is not there.
        log: the entries of its log.
    """

    folder: Path
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    @property
    def clips_per_gpu(self) -> list[Any]:
        """Clips per GPU from start to start, each change once; none where the log tells nothing."""
        starts = [entry for entry in self.log if entry.get("kind") == "start"]
        told = [entry["clips_per_gpu"] for entry in starts if "clips_per_gpu" in entry]
        return [clips for clips, _ in groupby(told)]


@dataclass(frozen=True)
class TestedRun:
    """One test, and the training it belongs to where that is known.

    Attributes:
        key: short name in the report, such as R1.
        name: as the user named the folder.
        results: what ``results.json`` holds.
        class_names: K names, or None.
        thumbnails: place in the list -> bytes of a JPEG.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    key: str
    name: str
    folder: Path
    results: Mapping[str, Any]
    scores: VideoScores
    class_names: tuple[str, ...] | None
    training: Training | None
    thumbnails: Mapping[int, bytes]

    @property
    def setting(self) -> Setting:
        """Settings of the test, and of the training where the test's own config does not count.

        What a run trained with is what its own folder says: a test may name another config.
        """
        config = _mapping(self.results.get("config"))
        train = dict(_mapping(config.get("train")))
        if self.training is not None:
            train |= _mapping(self.training.config.get("train"))
            if self.training.clips_per_gpu:
                train["clips_per_gpu"] = self.training.clips_per_gpu[-1]
        return settings_of(self._told, {"train": train}, {"test": {"average": "prob"}}, config)

    @property
    def _told(self) -> dict[str, dict[str, Any]]:
        """What ``results.json`` says of the test beside its config."""
        told = {
            section: {leaf: self.results[key] for leaf, key in keys.items() if key in self.results}
            for section, keys in TOLD.items()
        }
        return {section: leaves for section, leaves in told.items() if leaves}

    def class_name(self, label: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[label] if self.class_names else f"class {label}"


def read_run(name: str, key: str) -> TestedRun:
    """Read one test.

    Args:
        name: a test's folder, or that of a training run with a test in it.

    Raises:
        RunError: there is no test, or a file of it is damaged.
    """
    folder = test_folder(name)
    results, scores = _read_results(folder), read_video_scores(folder / SCORES)
    check_together(folder, results, scores.outcome)
    return TestedRun(
        key=key,
        name=name,
        folder=folder,
        results=results,
        scores=scores,
        class_names=_class_names(folder, results, scores.probs.shape[1]),
        training=_training(folder.absolute().parent),
        thumbnails=read_thumbnails(folder / THUMBNAILS),
    )


def _read_results(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of a test, with every number that a report needs.

    Raises:
        RunError: it is absent or damaged.
    """
    results = read_results(folder)
    faults = _faults(results)
    if faults:
        shown = printable(folder / RESULTS)
        raise RunError(
            f"{shown}: is no result of a test: {printable('; '.join(faults))}; test again"
        )
    return results


def _faults(results: Mapping[str, Any]) -> list[str]:
    """What in a ``results.json`` cannot be."""
    percents = [key for key in ("top1", "top5") if not _is_percent(results.get(key))]
    counts = [key for key in ("num_videos", "num_failed") if type(results.get(key)) is not int]
    faults = [f"{key} is {results.get(key)!r}" for key in (*percents, *counts)]
    failed = results.get("failed", [])
    if not isinstance(failed, list) or not all(isinstance(entry, dict) for entry in failed):
        faults.append("failed is no list of videos")
    return faults


def _is_percent(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100  # type: ignore[operator]


def read_video_scores(path: Path) -> VideoScores:
    """What a report needs of a ``scores.npz``; the scores of views stay on the disk.

    Raises:
        RunError: the file is absent or damaged.
    """
    try:
        # Opened here: numpy leaves a file open that it takes for a zip archive and that is none.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("video", "label", "ok", "probs")}
    except FileNotFoundError as error:
        raise RunError(f"{printable(path)}: no such file; `videogn test` writes it") from error
    except (*DAMAGE, KeyError) as error:
        raise RunError(
            f"{printable(path)}: is no file of scores: {printable(error)}; test again"
        ) from error
    wrong = _wrong_arrays(arrays)
    if wrong:
        raise RunError(
            f"{printable(path)}: is no file of scores: {', '.join(wrong)} cannot be; test again"
        )
    return VideoScores(
        videos=tuple(map(str, arrays["video"])),
        labels=arrays["label"],
        ok=arrays["ok"],
        probs=arrays["probs"],
    )


def _wrong_arrays(arrays: Mapping[str, np.ndarray]) -> list[str]:
    kinds = {"video": ("U", 1), "label": ("i", 1), "ok": ("b", 1), "probs": ("f", 2)}
    num_videos = arrays["video"].size
    wrong = [
        name
        for name, (kind, dims) in kinds.items()
        if arrays[name].dtype.kind != kind
        or arrays[name].ndim != dims
        or len(arrays[name]) != num_videos
        or arrays[name].size == 0
    ]
    if wrong:
        return wrong
    labels, probs = arrays["label"], arrays["probs"]
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        wrong.append("label")
    if not np.isfinite(probs[arrays["ok"]]).all():
        wrong.append("probs")
    return wrong


def _class_names(
    folder: Path, results: Mapping[str, Any], num_classes: int
) -> tuple[str, ...] | None:
    names = results.get("class_names")
    if names is None:
        return None
    if len(names) != num_classes:
        shown = printable(folder / RESULTS)
        raise RunError(
            f"{shown}: has {len(names)} class_names and {SCORES} {num_classes} classes; test again"
        )
    return tuple(names)


def read_thumbnails(path: Path) -> dict[int, bytes]:
    """JPEGs by the place of their video in the list; none where there is no file.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            places, data, ends = (file[name] for name in ("place", "data", "end"))
    except FileNotFoundError:
        return {}
    except (*DAMAGE, KeyError) as error:
        raise RunError(
            f"{printable(path)}: is no file of thumbnails: {printable(error)}; remove it"
        ) from error
    kinds = [(array.dtype.kind, array.ndim) for array in (places, data, ends)]
    if kinds != [("i", 1), ("u", 1), ("i", 1)] or len(places) != len(ends):
        raise RunError(
            f"{printable(path)}: is no file of thumbnails: its arrays cannot be; remove it"
        )
    pictures = [data[start:end].tobytes() for start, end in pairwise([0, *ends.tolist()])]
    # Whatever is no JPEG would be shown as a broken picture.
    found = zip(places.tolist(), pictures, strict=True)
    return {place: jpeg for place, jpeg in found if jpeg.startswith(JPEG)}


def _training(folder: Path) -> Training | None:
    """What a folder tells of a training run; None where it is not one's."""
    if not (folder / LOG).is_file():
        return None
    return Training(folder, _read_config(folder / CONFIG), read_entries(folder / LOG))


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}


def read_entries(path: Path) -> list[Mapping[str, Any]]:
    """The entries of a run's log; lines that a killed run left unfinished are passed over.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    entries: list[Mapping[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
