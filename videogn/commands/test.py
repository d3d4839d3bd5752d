"""Run the multi-clip test from a checkpoint and write its scores."""

import argparse
from functools import partial
from pathlib import Path

from videogn.commands.options import add_short_forms, with_short_forms
from videogn.commands.scoring_job import Job, run_on_ranks
from videogn.commands.test_parts import (
    Prepared,
    add_test_arguments,
    default_folder,
    describe,
    prepare,
)
from videogn.config_files import LoadedConfig
from videogn.distributed import World
from videogn.engine.evaluator import VideoScore, class_scores
from videogn.engine.journal import Journal
from videogn.engine.results import EvalResult, check_test_folder, write_results
from videogn.engine.test_folder import IDENTITY, RESULTS
from videogn.files import printable

PARTIAL = "partial"
SHOWN_FAILURES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn test``."""
    add_test_arguments(parser)
    add_short_forms(parser, ["average"])
    parser.add_argument("--out", metavar="DIR", help="where results go; RUN/test unless given")


def run(arguments: argparse.Namespace) -> int:
    """Check everything a test needs, then score every video."""
    out = Path(arguments.out) if arguments.out else None
    return run_on_ranks(
        arguments,
        _words(arguments),
        lambda loaded: job_of(loaded, Path(arguments.checkpoint), out),
    )


def _words(arguments: argparse.Namespace) -> list[str]:
    out = ["--out", arguments.out] if arguments.out else []
    checkpoint = ["--checkpoint", arguments.checkpoint]
    return ["test", arguments.config, *checkpoint, *out, *with_short_forms(arguments)]


def job_of(loaded: LoadedConfig, checkpoint: Path, out: Path | None) -> Job:
    """The test of a checkpoint, once config, list, checkpoint and folder are found to agree."""
    prepared = prepare(loaded, checkpoint)
    folder = out or default_folder(prepared.checkpoint, prepared.config)
    about = describe(prepared)
    check = partial(check_test_folder, folder, about)
    check()
    journal = Journal(folder / PARTIAL, {key: about[key] for key in IDENTITY})
    journal.check()
    return Job(
        prepared=prepared,
        measure_of=class_scores,
        journal=journal,
        lock=folder / "test.lock",
        check=check,
        finish=partial(_finish, prepared, folder),
    )


def _finish(prepared: Prepared, folder: Path, scored: list[VideoScore], world: World) -> None:
    """Write the results and say what they are."""
    about = describe(prepared) | {"world_size": world.size}
    test, records = prepared.config.test, prepared.videos.records
    names = prepared.videos.class_names
    shape = (*prepared.views, prepared.config.model.num_classes)
    result = write_results(folder, scored, records, about, test.average, shape, names)
    failed = [(records[s.place].name, s.reason) for s in scored if s.arrays is None]
    _report(prepared, folder, result, failed)


def _report(
    prepared: Prepared, folder: Path, result: EvalResult, failed: list[tuple[str, str | None]]
) -> None:
    num_clips, num_crops = prepared.views
    if failed:
        print(
            f"warning: {result.num_failed} of {result.num_videos} videos could not be read and "
            "count as wrong:"
        )
        for name, reason in failed[:SHOWN_FAILURES]:
            print(f"  - {printable(name)}: {printable(reason)}")
        if len(failed) > SHOWN_FAILURES:
            print(f"  and {len(failed) - SHOWN_FAILURES} more in {folder / RESULTS}")
    print(
        f"top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  over {result.num_videos} videos "
        f"({result.num_failed} failed), {num_clips} clips x {num_crops} crops, "
        f"protocol {prepared.config.test.protocol}, {prepared.which} weights of "
        f"{prepared.checkpoint}"
    )
    print(f"wrote {printable(folder)}", flush=True)
