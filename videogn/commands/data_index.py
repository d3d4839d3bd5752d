"""Make the packet index of a data set, by which its clips are read faster, and as exactly.

Every video is decoded in full once and its index checked against that. The index lies beside the
list and is found there by training and testing. Interrupted, the command goes on where it was.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from videogn.commands.options import add_list, add_workers, check_positive, read_list, watched
from videogn.data.index_file import Entry, IndexFile, index_path
from videogn.data.indexing import make_index
from videogn.data.processes import Pool
from videogn.errors import UserError
from videogn.files import check_writable

MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data index``."""
    add_list(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: beside LIST")
    parser.add_argument(
        "--stream", metavar="N", type=int, help="as data.stream; default: the one ffmpeg calls best"
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Index what is not yet indexed, and tell what was found."""
    check_positive(arguments, "workers", "timeout")
    if arguments.stream is not None and arguments.stream < 0:
        raise UserError(f"--stream {arguments.stream}: video streams are counted from 0 on")
    paths = [record.path for record in read_list(arguments.list, arguments).records]
    out = arguments.out or index_path(arguments.list)
    check_writable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = IndexFile(out, create=True)
    try:
        pool = Pool(arguments.workers, arguments.timeout)
        entries = make_index(paths, file, pool, stream=arguments.stream)
        outcomes = [_without_packets(entry) for entry in watched(entries, len(paths), "indexed")]
    finally:
        file.close()
    print("\n".join(describe(outcomes)))
    print(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return 0


class Outcome(NamedTuple):
    """What became of one video."""

    path: str
    indexed: bool
    readable: bool
    reason: str | None


def describe(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How many videos are read in which way, and those that cannot be read at all."""
    indexed = sum(outcome.indexed for outcome in outcomes)
    slow = Counter(o.reason for o in outcomes if o.readable and not o.indexed)
    bad = [outcome for outcome in outcomes if not outcome.readable]
    yield f"{len(outcomes):,} videos: {indexed:,} are read by their packets"
    for reason, count in slow.most_common():
        yield f"{count:,} by a full decode, as exactly: {reason}"
    if bad:
        yield f"warning: {len(bad):,} cannot be read:"
        yield from (f"  - {outcome.path}: {outcome.reason}" for outcome in bad[:MAX_SHOWN])
        if len(bad) > MAX_SHOWN:
            yield f"  and {len(bad) - MAX_SHOWN:,} more"


def _without_packets(entry: Entry) -> Outcome:
    return Outcome(entry.path, entry.index is not None, entry.readable, entry.reason)
