"""Tell what a list of videos holds, and how fast training clips can be read of it here.

Sizes, rates and durations are what headers say, read without decoding. Clips are timed on a
sample, by the packet index beside the list where there is one.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from videogn.commands.options import (
    add_list,
    add_workers,
    check_positive,
    num_cores,
    read_list,
    watched,
)
from videogn.commands.setup import clips_of
from videogn.config import ClipConfig
from videogn.data.annotations import spread
from videogn.data.index_file import index_path
from videogn.data.list_checks import VideoList, VideoRecord
from videogn.data.opening import VideoOpener
from videogn.data.probing import Probe, clip_seconds, probe
from videogn.data.processes import Pool, run_all
from videogn.files import atomic_path, check_writable, write_text

TIMED_VIDEOS = 8
CLIPS_PER_VIDEO = 3
MAX_SHOWN = 20
MAX_NAMED = 30
"""Classes whose names fit under their bars."""
LEAST_HOURS = 0.01
"""Shorter epochs are only told to be shorter."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data stats``."""
    add_list(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="for stats.json and stats.png")
    add_workers(parser)


@dataclass(frozen=True)
class Stats:
    """Everything that is shown.

    Attributes:
        videos: the list.
        probes: path of each video that has headers -> what they say.
        unreadable: path of each other video -> why.
        clip_seconds: path of each timed video -> CPU seconds of a training clip.
        indexed: whether they were read by a packet index.
    """

    videos: VideoList
    probes: dict[str, Probe]
    unreadable: dict[str, str]
    clip_seconds: dict[str, float]
    indexed: bool

    def class_counts(self) -> dict[str, int]:
        """Videos of each class in label order, by its name or number."""
        counts = Counter(record.label for record in self.videos.records)
        names = self.videos.class_names
        labels = range(len(names)) if names else sorted(counts)
        return {names[label] if names else str(label): counts[label] for label in labels}

    def seconds(self) -> list[float]:
        """Durations that are known."""
        return [p.seconds for p in self.probes.values() if p.seconds is not None]

    def rates(self) -> list[float]:
        """Frame rates that are known."""
        return [float(p.rate) for p in self.probes.values() if p.rate is not None]

    def short_sides(self) -> list[int]:
        """Shorter sides in pixels."""
        return [min(p.width, p.height) for p in self.probes.values()]


def run(arguments: argparse.Namespace) -> int:
    """Probe every video, time some, and print what was found."""
    check_positive(arguments, "workers", "timeout")
    videos = read_list(arguments.list, arguments)
    if arguments.out is not None:
        check_writable(arguments.out / "stats.json")
    stats = collect(videos, index_path(arguments.list), arguments.workers, arguments.timeout)
    print("\n".join(describe(stats)))
    if arguments.out is not None:
        write_text(arguments.out / "stats.json", f"{json.dumps(as_json(stats), indent=1)}\n")
        plot(stats, arguments.out / "stats.png")
        print(f"wrote {arguments.out / 'stats.json'} and stats.png")
    return 0


def collect(videos: VideoList, index: Path, num_workers: int, timeout: float) -> Stats:
    """Probe every video of a list and time training clips of a sample."""
    paths = [record.path for record in videos.records]
    probes: dict[str, Probe] = {}
    unreadable: dict[str, str] = {}
    outcomes = run_all(probe, paths, Pool(num_workers, timeout))
    for path, outcome in watched(outcomes, len(paths), "probed"):
        if isinstance(outcome, Probe):
            probes[path] = outcome
        else:
            unreadable[path] = outcome.reason
    opener = VideoOpener("pyav", index if index.is_file() else None, seek=True)
    sample = spread([r for r in videos.records if r.path in probes], TIMED_VIDEOS)
    return Stats(
        videos=videos,
        probes=_in_order(probes, videos.records),
        unreadable=_in_order(unreadable, videos.records),
        clip_seconds=_timed(sample, opener, timeout),
        indexed=opener.index is not None,
    )


def _in_order(found: dict[str, Any], records: Sequence[VideoRecord]) -> dict[str, Any]:
    return {r.path: found[r.path] for r in records if r.path in found}


def _timed(sample: Sequence[VideoRecord], opener: VideoOpener, timeout: float) -> dict[str, float]:
    function = partial(clip_seconds, clips_of(ClipConfig(), opener), num_clips=CLIPS_PER_VIDEO)
    paths = [record.path for record in sample]
    found = {}
    # One at a time: clips read side by side slow each other down.
    for path, outcome in run_all(function, paths, Pool(1, timeout)):
        if isinstance(outcome, float):
            found[path] = outcome
        else:
            print(f"warning: {path} is not timed: {outcome.reason}", flush=True)
    return found


def describe(stats: Stats) -> Iterator[str]:
    """The text table, and the videos that cannot be read."""
    counts = list(stats.class_counts().values())
    yield f"videos      {len(stats.videos.records):,}"
    yield f"classes     {len(counts):,}: {_range(counts, '')} videos (min / median / max)"
    if stats.videos.class_names and min(counts) < max(counts):
        ordered = sorted(stats.class_counts().items(), key=lambda item: item[1])
        (least, few), (most, many) = ordered[0], ordered[-1]
        yield f"            fewest {least} ({few:,}), most {most} ({many:,})"
    if stats.seconds():
        total = sum(stats.seconds()) / 3600
        yield f"duration    {_range(stats.seconds(), ' s')}, {total:,.2f} h in all"
    if stats.rates():
        yield f"frame rate  {_range(stats.rates(), ' fps')}"
    if stats.probes:
        yield f"short side  {_range(stats.short_sides(), ' pixels')}"
        sizes = Counter(f"{p.width}x{p.height}" for p in stats.probes.values())
        yield f"sizes       {_most_common(sizes)}"
        yield f"codecs      {_most_common(Counter(p.codec for p in stats.probes.values()))}"
    yield from _pace(stats)
    if stats.unreadable:
        yield f"warning: {len(stats.unreadable):,} cannot be read:"
        shown = list(stats.unreadable.items())[:MAX_SHOWN]
        yield from (f"  - {path}: {reason}" for path, reason in shown)
        if len(stats.unreadable) > MAX_SHOWN:
            yield f"  and {len(stats.unreadable) - MAX_SHOWN:,} more"


def _pace(stats: Stats) -> Iterator[str]:
    pace = clips_per_second(stats)
    if pace is None:
        return
    clip = ClipConfig()
    how = "by their packet index" if stats.indexed else "without an index"
    cores = num_cores()
    yield (
        f"reading     {pace:.1f} clips/s per core, {pace * cores:.1f} on {cores} cores: "
        f"{clip.num_frames}x{clip.frame_stride} frames, {how}, from CPU time of "
        f"{len(stats.clip_seconds)} videos"
    )
    hours = hours_per_epoch(stats, pace)
    told = f"{hours:.3g}" if hours >= LEAST_HOURS else f"less than {LEAST_HOURS}"
    yield f"epoch       {told} h for one clip of every video, if reading is all there is to do"


def clips_per_second(stats: Stats) -> float | None:
    """Training clips a core reads in a second; None where none was timed."""
    if not stats.clip_seconds:
        return None
    return 1 / max(statistics.mean(stats.clip_seconds.values()), 1e-9)


def hours_per_epoch(stats: Stats, pace: float) -> float:
    """Hours that all cores take to read one clip of every video, at ``pace`` clips/s per core."""
    return len(stats.videos.records) / (pace * num_cores()) / 3600


def _range(values: Sequence[float], unit: str) -> str:
    three = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{value:,.4g}" for value in three) + unit


def _most_common(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(5))
    rest = len(counts) - 5
    return f"{shown} and {rest:,} others" if rest > 0 else shown


def as_json(stats: Stats) -> dict[str, Any]:
    """The same numbers by name, and what is known of every video."""
    pace = clips_per_second(stats)
    return {
        "source": stats.videos.source,
        "videos": len(stats.videos.records),
        "classes": stats.class_counts(),
        "clips_per_second_per_core": pace,
        "cores": num_cores(),
        "hours_per_epoch": None if pace is None else hours_per_epoch(stats, pace),
        "read_by_index": stats.indexed,
        "unreadable": stats.unreadable,
        "probes": {
            path: {
                "codec": p.codec,
                "width": p.width,
                "height": p.height,
                "rate": None if p.rate is None else float(p.rate),
                "seconds": p.seconds,
            }
            for path, p in stats.probes.items()
        },
    }


def plot(stats: Stats, path: Path) -> None:
    """Four panels: videos per class, durations, frame rates and short sides."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    _plot_classes(panels[0, 0], stats.class_counts())
    for axes, values, title, label in (
        (panels[0, 1], stats.seconds(), "duration", "seconds"),
        (panels[1, 0], stats.rates(), "frame rate", "frames per second"),
        (panels[1, 1], stats.short_sides(), "short side", "pixels"),
    ):
        axes.hist(values, bins=_bins(values), color="tab:blue", edgecolor="white")
        axes.set(title=title, xlabel=label, ylabel="videos")
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{stats.videos.source}: {len(stats.videos.records):,} videos, "
        f"{len(stats.unreadable):,} unreadable",
        parse_math=False,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _plot_classes(axes: Any, counts: dict[str, int]) -> None:
    names, values = list(counts), list(counts.values())
    few = len(names) <= MAX_NAMED
    if not few:
        # Hundreds of names cannot be read; how unequal the classes are can.
        values = sorted(values, reverse=True)
    axes.bar(range(len(values)), values, width=0.8 if few else 1.0, color="tab:blue")
    axes.set(title="videos per class", ylabel="videos")
    axes.yaxis.get_major_locator().set_params(integer=True)
    if few:
        long = max(map(len, names)) * len(names) > 60
        rotation, side = (45, "right") if long else (0, "center")
        axes.set_xticks(range(len(names)), [_short(name) for name in names])
        for label in axes.get_xticklabels():
            label.set(rotation=rotation, ha=side, parse_math=False)
    else:
        axes.set_xlabel(f"{len(values):,} classes, most videos first")


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _bins(values: Sequence[float]) -> Any:
    """Edges of 21 bars; round a single value some room, or its bar would be a hair."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-6 * max(1.0, abs(high)):
        low, high = low - 0.1 * abs(low) - 1e-3, high + 0.1 * abs(high) + 1e-3
    return [low + (high - low) * step / 21 for step in range(22)]
