"""Re-encode a data set so that training clips cost little to read.

Every video becomes an mp4 of small frames with many key frames; its frames keep their number and
their times, which is checked. First a sample is prepared and measured. Interrupted, the command
goes on where it was. Train with ``data.train=DIR/list.txt``.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videogn.commands.options import add_list, add_workers, check_positive, read_list, watched
from videogn.commands.setup import clips_of
from videogn.config import ClipConfig
from videogn.data.annotations import spread
from videogn.data.decode import PyAVReader
from videogn.data.encoding import Settings
from videogn.data.list_checks import VideoList
from videogn.data.preparing import (
    Done,
    Failed,
    Journal,
    Measured,
    Pair,
    Task,
    measure,
    output_names,
    prepare_all,
)
from videogn.data.processes import Pool, run_all
from videogn.errors import RunError
from videogn.files import check_writable, write_text

PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"),
    "veryslow",
)
TUNES = ("fastdecode", "film", "animation", "grain", "none")
MAX_SHOWN = 20
LIST, NAMES, REPORT = "list.txt", "class_names.txt", "report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data prepare``."""
    add_list(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new data set")
    parser.add_argument(
        "--short-side", type=int, default=256, help="in pixels; smaller videos keep theirs"
    )
    parser.add_argument("--gop", type=int, default=16, help="frames between key frames")
    parser.add_argument("--crf", type=int, default=23, help="x264's quality, 0 (best) to 51")
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument("--tune", choices=TUNES, default="fastdecode")
    parser.add_argument("--sample", metavar="N", type=int, default=4, help="videos measured first")
    parser.add_argument("--sample-only", action="store_true", help="stop after the sample")
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare a sample, tell what it gains, prepare the rest; 1 where a video failed."""
    check_positive(arguments, "workers", "timeout")
    settings = _settings(arguments)
    videos = read_list(arguments.list, arguments)
    folder = arguments.out.absolute()
    names = output_names(videos.records)
    _check_out(folder, arguments.list, names)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {path: Task(path, str(folder), name, settings) for path, name in names.items()}
    outcomes = _Outcomes(folder, tasks, Pool(arguments.workers, arguments.timeout))
    sample = [record.path for record in spread(videos.records, arguments.sample)]
    outcomes.prepare(sample)
    gain = _gain(outcomes.measure(sample))
    if gain:
        print(_gain_line(gain), flush=True)
    if not arguments.sample_only:
        outcomes.prepare(list(names))
        _write_list(folder, videos, outcomes.done)
    failed = list(outcomes.failed.values())
    report = _report(settings, outcomes, gain)
    write_text(folder / REPORT, f"{json.dumps(report, indent=1)}\n")
    print("\n".join(_describe(folder, outcomes, arguments.sample_only)))
    return 1 if failed else 0


def _settings(arguments: argparse.Namespace) -> Settings:
    faults = []
    if arguments.short_side < 2 or arguments.short_side % 2:
        faults.append(f"--short-side {arguments.short_side}: must be an even number above 0")
    if arguments.gop < 1:
        faults.append(f"--gop {arguments.gop}: must be above 0")
    if not 0 <= arguments.crf <= 51:
        faults.append(f"--crf {arguments.crf}: must be from 0 to 51")
    if arguments.sample < (1 if arguments.sample_only else 0):
        faults.append(f"--sample {arguments.sample}: must be above 0, or 0 for no sample")
    if faults:
        raise RunError("\n".join(faults))
    return Settings(
        short_side=arguments.short_side,
        gop=arguments.gop,
        crf=arguments.crf,
        preset=arguments.preset,
        tune=arguments.tune,
    )


def _check_out(folder: Path, source: str, names: dict[str, str]) -> None:
    """Refuse a folder where a source would be overwritten.

    Raises:
        RunError: with the file.
    """
    check_writable(folder / REPORT)
    sources = {os.path.realpath(path) for path in (source, *names)}
    targets = (*names.values(), LIST, NAMES, REPORT)
    for target in (os.path.realpath(folder / name) for name in targets):
        if target in sources:
            raise RunError(f"--out {folder}: {target} would be overwritten; choose another folder")


class _Outcomes:
    """What became of the videos so far.

    Attributes:
        done: path of a source -> its prepared video.
        failed: path of a source -> why there is none.
    """

    def __init__(self, folder: Path, tasks: dict[str, Task], pool: Pool) -> None:
        self.done: dict[str, Done] = {}
        self.failed: dict[str, Failed] = {}
        self._folder, self._tasks = folder, tasks
        self._journal, self._pool = Journal(folder), pool

    def prepare(self, paths: Sequence[str]) -> None:
        """Prepare the videos that were not tried yet."""
        tasks = [self._tasks[p] for p in paths if p not in self.done and p not in self.failed]
        outcomes = prepare_all(tasks, self._journal, self._pool)
        for outcome in watched(outcomes, len(tasks), "prepared"):
            if isinstance(outcome, Done):
                self.done[outcome.source] = outcome
            else:
                self.failed[outcome.source] = outcome

    def measure(self, paths: Sequence[str]) -> list[Measured]:
        """Read training clips of those that are prepared, and of their sources."""
        clips = clips_of(ClipConfig(), PyAVReader)
        pairs = [
            Pair(path, str(self._folder / self.done[path].name), clips)
            for path in paths
            if path in self.done
        ]
        # One at a time: clips read side by side slow each other down.
        outcomes = run_all(measure, pairs, self._pool._replace(num_workers=1))
        found = []
        for pair, outcome in outcomes:
            if isinstance(outcome, Measured):
                found.append(outcome)
            else:
                print(f"warning: {pair.source} is not measured: {outcome.reason}", flush=True)
        return found


def _gain(sample: Sequence[Measured]) -> dict[str, float]:
    """Medians over the sample, and the ratio of all its bytes; empty where there is none."""
    if not sample:
        return {}
    source = statistics.median(item.source_seconds for item in sample)
    prepared = statistics.median(item.prepared_seconds for item in sample)
    return {
        "videos": len(sample),
        "source_cpu_seconds_per_clip": source,
        "prepared_cpu_seconds_per_clip": prepared,
        "gain": source / max(prepared, 1e-9),
        "bytes_ratio": sum(item.prepared_bytes for item in sample)
        / sum(item.source_bytes for item in sample),
    }


def _gain_line(gain: dict[str, float]) -> str:
    clip = ClipConfig()
    return (
        f"sample: {gain['videos']} videos: a training clip of {clip.num_frames}x"
        f"{clip.frame_stride} frames, read by its packets, takes "
        f"{1000 * gain['source_cpu_seconds_per_clip']:.0f} ms of CPU from the source, "
        f"{1000 * gain['prepared_cpu_seconds_per_clip']:.0f} ms prepared: {gain['gain']:.2f} times "
        f"as fast, with {gain['bytes_ratio']:.2f} times the bytes"
    )


def _write_list(folder: Path, videos: VideoList, done: dict[str, Done]) -> None:
    lines = [
        f"{done[record.path].name} {record.label}\n"
        for record in videos.records
        if record.path in done
    ]
    write_text(folder / LIST, "".join(lines))
    if videos.class_names:
        write_text(folder / NAMES, "".join(f"{name}\n" for name in videos.class_names))


def _report(settings: Settings, outcomes: _Outcomes, gain: dict[str, float]) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "prepared": len(outcomes.done),
        "frames": sum(done.frames for done in outcomes.done.values()),
        "source_bytes": sum(done.size for done in outcomes.done.values()),
        "prepared_bytes": sum(done.bytes for done in outcomes.done.values()),
        "sample": gain,
        "failed": [
            {"path": failed.source, "reason": failed.reason} for failed in outcomes.failed.values()
        ],
    }


def _describe(folder: Path, outcomes: _Outcomes, sample_only: bool) -> Iterator[str]:
    done, failed = list(outcomes.done.values()), list(outcomes.failed.values())
    before, after = sum(item.size for item in done), sum(item.bytes for item in done)
    yield (
        f"{len(done):,} videos are prepared: {sum(item.frames for item in done):,} frames, "
        f"{before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB now"
    )
    if failed:
        yield f"{len(failed):,} failed{'' if sample_only else f' and are not in {LIST}'}:"
        yield from (f"  - {item.source}: {item.reason}" for item in failed[:MAX_SHOWN])
        if len(failed) > MAX_SHOWN:
            yield f"  and {len(failed) - MAX_SHOWN:,} more in {folder / REPORT}"
    if not sample_only:
        yield f"wrote {folder / LIST}; `videogn data index {folder / LIST}` is the next step"
