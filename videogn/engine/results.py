"""What a test leaves behind: ``results.json`` and ``scores.npz``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from videogn.data.list_checks import VideoRecord
from videogn.engine.evaluator import EvalResult, ScoreTable
from videogn.engine.runs import RunFolder
from videogn.errors import RunError
from videogn.files import atomic_path, check_writable, write_text

RESULTS = "results.json"
SCORES = "scores.npz"
IDENTITY = (
    "checkpoint_sha256",
    "list_sha256",
    "protocol",
    "num_clips",
    "num_crops",
    "num_frames",
    "frame_stride",
    "fps",
    "short_side",
    "crop_size",
    "reader",
    "stream",
    "mean",
    "std",
)
"""Keys of the results that tell which test a folder holds."""


def check_test_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a training run or another test, or cannot be written.

    Raises:
        RunError: naming the folder and what it holds.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: the test folder is a file; choose another --out")
    if RunFolder(folder).holds_run or RunFolder(folder).config.exists():
        raise RunError(
            f"{folder}: holds a training run; choose another --out, such as {folder}/test"
        )
    check_writable(folder / RESULTS)
    if not (folder / RESULTS).exists():
        return
    try:
        old = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        changed = [key for key in IDENTITY if old.get(key) != identity[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder / RESULTS}: cannot be read: {error}; choose another --out"
        ) from error
    if changed:
        lines = "".join(
            f"\n  - {key}: {old.get(key)} there, {identity[key]} now" for key in changed
        )
        raise RunError(f"{folder}: holds another test; choose another --out or remove it:{lines}")


def write_results(
    folder: Path,
    result: EvalResult,
    table: ScoreTable,
    records: Sequence[VideoRecord],
    about: Mapping[str, Any],
) -> None:
    """Write both files, each whole or not at all; ``about`` says what was tested and how."""
    failed = [
        {"path": records[index].name, "reason": reason}
        for index, reason in sorted(table.reasons.items())
    ]
    with atomic_path(folder / SCORES) as temporary:
        np.savez(
            temporary,
            video=np.array([record.name for record in records]),
            label=np.array([record.label for record in records], dtype=np.int64),
            ok=table.ok,
            probs=table.probs,
            clip_probs=table.clip_probs,
            clip_logits=table.clip_logits,
        )
    text = json.dumps({**asdict(result), "failed": failed, **about}, indent=2)
    write_text(folder / RESULTS, text + "\n")
