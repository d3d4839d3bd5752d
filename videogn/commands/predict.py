"""Name what videos without labels show: the classes of the highest scores, by the test's clips."""

import argparse
import csv
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from videogn.commands.options import add_short_forms, with_short_forms
from videogn.commands.scoring_job import Job, job_of_file, partial_folder, run_on_ranks
from videogn.commands.test_parts import (
    Prepared,
    add_test_arguments,
    default_folder,
    describe,
    prepare,
)
from videogn.config_files import LoadedConfig
from videogn.data.list_checks import VideoRecord, videos_under
from videogn.distributed import World
from videogn.engine.evaluator import VideoScore, class_scores
from videogn.engine.scores import Scores
from videogn.engine.statistics import softmax
from videogn.engine.test_folder import IDENTITY
from videogn.errors import ConfigError, RunError
from videogn.files import atomic_path, check_writable, printable

FILE = "predictions.csv"
COLUMNS = ("video", "rank", "label", "class", "score", "reason")
TOP = 5
SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn predict``."""
    add_test_arguments(parser)
    add_short_forms(parser, ["average"])
    parser.add_argument(
        "--videos",
        nargs="+",
        required=True,
        metavar="PATH",
        help="video or image files, and folders of videos, taken whole",
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="classes of each video (5, or all of fewer)"
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"where they are written; RUN/test/{FILE} unless given"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then put every video through the network."""
    out = Path(arguments.out) if arguments.out else None
    return run_on_ranks(
        arguments,
        _words(arguments),
        lambda loaded: job_of(
            loaded, Path(arguments.checkpoint), arguments.videos, out, arguments.top
        ),
    )


def _words(arguments: argparse.Namespace) -> list[str]:
    out = ["--out", arguments.out] if arguments.out else []
    top = [] if arguments.top is None else ["--top", str(arguments.top)]
    options = ["--checkpoint", arguments.checkpoint, *out, *top, *with_short_forms(arguments)]
    return ["predict", arguments.config, *options, "--videos", *arguments.videos]


def job_of(
    loaded: LoadedConfig, checkpoint: Path, paths: Sequence[str], out: Path | None, top: int | None
) -> Job:
    """The job of a checkpoint, once config, videos and checkpoint are found to agree."""
    num_classes = loaded.config.model.num_classes
    top = min(TOP, num_classes) if top is None else top
    if not 1 <= top <= num_classes:
        raise ConfigError(f"--top {top}: a number from 1 to the network's {num_classes} classes")
    prepared = prepare(loaded, checkpoint, records_of(paths))
    file = out or default_folder(prepared.checkpoint, prepared.config) / FILE
    about = describe(prepared)
    return job_of_file(
        prepared,
        file,
        {key: about[key] for key in IDENTITY},
        measure_of=class_scores,
        check=partial(_check_file, file),
        finish=partial(_finish, prepared, file, top),
    )


def _check_file(file: Path) -> None:
    """Refuse a file that cannot be written or is there: it may hold what took hours.

    One beside a journal is of a job that was killed as it ended, which ends once more.

    Raises:
        RunError: naming the file.
    """
    check_writable(file)
    if file.exists() and not partial_folder(file).exists():
        raise RunError(f"{printable(file)}: is there already; choose another --out or remove it")


def records_of(paths: Sequence[str]) -> tuple[VideoRecord, ...]:
    """Videos that are named, and those of folders that are, sorted; each file once.

    Raises:
        ConfigError: one is missing, or a folder holds no video.
    """
    found: dict[str, str] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(map(str, videos_under(path)))
            if not inside:
                raise ConfigError(f"--videos {printable(name)}: a folder without videos")
        elif path.exists():
            inside = [name]
        else:
            raise ConfigError(f"--videos {printable(name)}: no such file or folder")
        for video in inside:
            found.setdefault(os.path.realpath(video), video)
    return tuple(VideoRecord(path=path, label=0, name=path) for path in found.values())


def _finish(
    prepared: Prepared, file: Path, top: int, scored: list[VideoScore], world: World
) -> None:
    """Write the classes of each video, where there are any, and show those of the first."""
    del world
    if all(score.arrays is None for score in scored):
        return
    names = prepared.videos.class_names
    ranked = {score.place: best(score, prepared, top) for score in scored}
    records = prepared.videos.records
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(COLUMNS)
        for score in scored:
            video = printable(records[score.place].name)
            for rank, (label, value) in enumerate(ranked[score.place], start=1):
                rows.writerow((video, rank, label, _name(names, label), f"{value:.6f}", ""))
            if score.arrays is None:
                rows.writerow((video, "", "", "", "", printable(score.reason)))
    for score in scored[:SHOWN]:
        video, classes = printable(records[score.place].name), ranked[score.place]
        told = [f"{_name(names, label) or label} {100 * value:.1f} %" for label, value in classes]
        print(f"{video}: {', '.join(told) or f'failed: {printable(score.reason)}'}")
    if len(scored) > SHOWN:
        print(f"and {len(scored) - SHOWN} more")
    failed = sum(score.arrays is None for score in scored)
    print(f"wrote {printable(file)}: {top} classes of {len(scored)} videos ({failed} failed)")


def best(score: VideoScore, prepared: Prepared, top: int) -> list[tuple[int, float]]:
    """The classes of the highest scores of a video and these, as the test averages its views.

    Those of ``logit`` are put through softmax; none where the video failed.
    """
    if score.arrays is None:
        return []
    logits, probs = (array[None] for array in score.arrays)
    one = Scores(("",), np.zeros(1, np.int64), np.ones(1, bool), logits, probs)
    average = prepared.config.test.average
    found = one.of_videos(average)
    values = (softmax(found) if average == "logit" else found)[0]
    places = np.argsort(-values, kind="stable")[:top]
    return [(int(place), float(values[place])) for place in places]


def _name(names: Sequence[str] | None, label: int) -> str:
    return "" if names is None else names[label]
