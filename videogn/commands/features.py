"""Write the network's features of every video of a list: the last stage, averaged over its map."""

import argparse
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videogn.commands.options import with_short_forms
from videogn.commands.scoring_job import Job, job_of_file, run_on_ranks
from videogn.commands.test_parts import (
    Prepared,
    add_test_arguments,
    default_folder,
    describe,
    prepare,
)
from videogn.config_files import LoadedConfig
from videogn.distributed import World
from videogn.engine.evaluator import VideoScore, pooled_features
from videogn.engine.test_folder import IDENTITY
from videogn.errors import RunError
from videogn.files import atomic_path, check_writable, printable

FILE = "features.npz"
SHOWN_FAILURES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn features``."""
    add_test_arguments(parser)
    parser.add_argument(
        "--out", metavar="FILE", help=f"where features go; RUN/test/{FILE} unless given"
    )
    parser.add_argument(
        "--views", action="store_true", help="also keep those of every clip and crop by itself"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then put every video through the network."""
    out = Path(arguments.out) if arguments.out else None
    views = bool(arguments.views)
    return run_on_ranks(
        arguments,
        _words(arguments),
        lambda loaded: job_of(loaded, Path(arguments.checkpoint), out, views=views),
    )


def _words(arguments: argparse.Namespace) -> list[str]:
    out = ["--out", arguments.out] if arguments.out else []
    views = ["--views"] if arguments.views else []
    checkpoint = ["--checkpoint", arguments.checkpoint]
    return ["features", arguments.config, *checkpoint, *out, *views, *with_short_forms(arguments)]


def job_of(loaded: LoadedConfig, checkpoint: Path, out: Path | None, *, views: bool) -> Job:
    """The job of a checkpoint, once config, list and checkpoint are found to agree."""
    prepared = prepare(loaded, checkpoint)
    file = out or default_folder(prepared.checkpoint, prepared.config) / FILE
    if file.suffix != ".npz":
        raise RunError(f"{file}: features are written as .npz; name such a file")
    about = describe(prepared)
    identity = {key: about[key] for key in IDENTITY if key != "average"}
    return job_of_file(
        prepared,
        file,
        identity,
        measure_of=pooled_features,
        check=partial(_check_file, file, identity),
        finish=partial(_finish, prepared, file, views),
    )


def _check_file(file: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a file that cannot be written, or holds the features of something else.

    Raises:
        RunError: naming the file and what differs.
    """
    check_writable(file)
    if not file.exists():
        return
    try:
        with np.load(file, allow_pickle=False) as there:
            about = json.loads(str(there["about"]))
            changed = [key for key, value in identity.items() if about.get(key) != value]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{printable(file)}: is no file of features; choose another --out or remove it"
        ) from error
    if changed:
        raise RunError(
            f"{printable(file)}: holds other features; choose another --out or remove it: "
            f"{', '.join(changed)} differ"
        )


def _finish(
    prepared: Prepared, file: Path, views: bool, scored: list[VideoScore], world: World
) -> None:
    """Write the features, where there are any, and say what they are."""
    records = prepared.videos.records
    found = {score.place: score.arrays[0] for score in scored if score.arrays is not None}
    if not found:
        return
    num_clips, num_crops, channels = next(iter(found.values())).shape
    arrays: dict[str, Any] = {
        "video": np.array([record.name for record in records], dtype=np.str_),
        "label": np.array([record.label for record in records], dtype=np.int64),
        "ok": np.array([place in found for place in range(len(records))]),
        "features": _rows(found, len(records), (channels,), lambda array: array.mean((0, 1))),
        "about": np.array(json.dumps(describe(prepared) | {"world_size": world.size})),
    }
    if views:
        shape = (num_clips, num_crops, channels)
        arrays["view_features"] = _rows(found, len(records), shape, lambda array: array)
    with atomic_path(file) as temporary:
        np.savez(temporary, **arrays)
    failed = [score for score in scored if score.arrays is None]
    for score in failed[:SHOWN_FAILURES]:
        name = printable(records[score.place].name)
        print(f"warning: no features of {name}: {printable(score.reason)}")
    if len(failed) > SHOWN_FAILURES:
        print(f"warning: nor of {len(failed) - SHOWN_FAILURES} more, which ok= tells")
    what = f"features of {channels} channels of {len(found)} of {len(records)} videos"
    print(f"wrote {printable(file)}: {what}")


def _rows(
    found: Mapping[int, np.ndarray],
    num_videos: int,
    shape: tuple[int, ...],
    row_of: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """A row of a shape of every video, (N, …) float32; NaN where it failed."""
    rows = np.full((num_videos, *shape), np.nan, np.float32)
    for place, array in found.items():
        rows[place] = row_of(array)
    return rows
