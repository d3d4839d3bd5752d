"""Decode every video of a list whole and tell which are faulty, and how.

DIR receives report.json with every fault, clean.txt, the list without the faulty videos, and
progress.jsonl, by which an interrupted check goes on where it was. No video is changed. The exit
code is 1 where a fault was found, 0 where there is none.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from videogn.commands.options import add_list, add_workers, check_positive, watched
from videogn.data.checking import (
    REASONS,
    Facts,
    Progress,
    Verdict,
    examine_all,
    judge,
    name_fault,
)
from videogn.data.listed import ListedVideo, list_videos
from videogn.data.processes import Pool
from videogn.errors import RunError
from videogn.files import check_writable, write_text

REPORT, CLEAN, PROGRESS = "report.json", "clean.txt", "progress.jsonl"
MAX_SHOWN = 20
MAX_CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data check``."""
    add_list(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for the report")
    parser.add_argument(
        "--num-classes", metavar="N", type=int, help="default: those that the list names"
    )
    parser.add_argument(
        "--min-frames", metavar="N", type=int, default=1, help="default: %(default)s"
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode what is not yet decoded, and tell and write what was found."""
    check_positive(arguments, "num_classes", "min_frames", "workers", "timeout")
    entries, names = list_videos(
        arguments.list,
        arguments.root,
        format=arguments.format,
        allow_outside_root=arguments.allow_outside_root,
    )
    _check_outputs(arguments.out, arguments.list, entries)
    facts = _examined(entries, arguments)
    num_classes = arguments.num_classes
    if num_classes is None and names is not None:
        num_classes = len(names)
    verdicts = judge(entries, facts, num_classes=num_classes, min_frames=arguments.min_frames)
    write_text(arguments.out / REPORT, json.dumps(report(verdicts), indent=2) + "\n")
    write_text(arguments.out / CLEAN, "".join(_clean_lines(verdicts)))
    print("\n".join(map(_printable, describe(verdicts, names))))
    print(f"wrote {arguments.out / REPORT} and {arguments.out / CLEAN}")
    return 1 if any(verdict.reason for verdict in verdicts) else 0


def _check_outputs(out: Path, source: str, entries: Sequence[ListedVideo]) -> None:
    """Refuse to write where input would be lost, or where nothing can be written."""
    inputs = {Path(source).resolve(), *(Path(entry.path) for entry in entries)}
    for name in (REPORT, CLEAN, PROGRESS):
        check_writable(out / name)
        if (out / name).resolve() in inputs:
            raise RunError(f"{out / name}: would overwrite what is checked; give another --out")
    out.mkdir(parents=True, exist_ok=True)


def _examined(entries: Sequence[ListedVideo], arguments: argparse.Namespace) -> dict[str, Facts]:
    asked = (entry.path for entry in entries if entry.fault is None)
    paths = [path for path in dict.fromkeys(asked) if name_fault(path) is None]
    with closing(Progress(arguments.out / PROGRESS)) as progress:
        found = examine_all(paths, progress, Pool(arguments.workers, arguments.timeout))
        return {facts.path: facts for facts in watched(found, len(paths), "checked")}


def report(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """What ``report.json`` holds: counts, every fault in the order of the list, and a summary."""
    faulty = [verdict for verdict in verdicts if verdict.reason]
    return {
        "num_files": len(verdicts),
        "num_ok": len(verdicts) - len(faulty),
        "files": [{"path": v.path, "reason": v.reason, "detail": v.detail} for v in faulty],
        "summary": {
            reason: {"count": count, "percent": round(100 * count / len(verdicts), 2)}
            for reason, count in _by_reason(verdicts)
        },
    }


def _by_reason(verdicts: Sequence[Verdict]) -> list[tuple[str, int]]:
    counts = Counter(verdict.reason for verdict in verdicts)
    return [(reason, counts[reason]) for reason in REASONS if counts[reason]]


def _clean_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    return (f"{verdict.path} {verdict.label}\n" for verdict in verdicts if not verdict.reason)


def describe(verdicts: Sequence[Verdict], names: Sequence[str] | None) -> Iterator[str]:
    """Counts per reason, the classes with the most faults, and the first faults.

    Args:
        names: class names in label order, where known.
    """
    faulty = [verdict for verdict in verdicts if verdict.reason]
    yield f"{len(verdicts):,} videos: {len(verdicts) - len(faulty):,} sound, {len(faulty):,} faulty"
    if not faulty:
        return
    yield f"{'reason':15}  {'count':>9}  percent"
    for reason, count in _by_reason(verdicts):
        yield f"{reason:15}  {count:9,}  {100 * count / len(verdicts):7.2f}"
    yield "classes with the most faults:"
    totals = Counter(verdict.label for verdict in verdicts)
    for label, count in Counter(verdict.label for verdict in faulty).most_common(MAX_CLASSES):
        share = 100 * count / totals[label]
        yield f"  {_class_name(label, names)}: {count:,} of {totals[label]:,} ({share:.1f} %)"
    yield "faults:" if len(faulty) <= MAX_SHOWN else f"first {MAX_SHOWN} faults:"
    yield from (f"  - {v.path}: {v.reason}: {v.detail}" for v in faulty[:MAX_SHOWN])
    if len(faulty) > MAX_SHOWN:
        yield f"  and {len(faulty) - MAX_SHOWN:,} more"


def _class_name(label: int | None, names: Sequence[str] | None) -> str:
    if label is None:
        return "without a label"
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def _printable(line: str) -> str:
    """A line that may hold a file name of any bytes."""
    return line.encode(errors="backslashreplace").decode()
