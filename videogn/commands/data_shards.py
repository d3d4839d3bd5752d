"""Pack the videos of a list into tar shards, which cluster file systems read faster.

A sample is KEY.cls, its label, and KEY.mp4 or the like, its video as it is (the webdataset layout).
The videos are permuted first. Interrupted, the command goes on where it was. Train with the
``data.train=…`` that is printed.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from videogn.commands.options import add_list, read_list, watched
from videogn.data.packing import Item, check_folder, plan_shards, shard_file, write_shard
from videogn.errors import RunError
from videogn.files import check_writable, write_text

NAMES = "class_names.txt"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMG]I?B|)", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data shards``."""
    add_list(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for the shards")
    parser.add_argument(
        "--shard-size", metavar="SIZE", default="1GB", help="such as 500MB; default: %(default)s"
    )
    parser.add_argument(
        "--name", default="shard", help="what the shards' names begin with; default: %(default)s"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the order; default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Pack what is not yet packed."""
    shard_bytes = _bytes(arguments.shard_size)
    if not NAME.fullmatch(arguments.name):
        raise RunError(f"--name {arguments.name!r}: must be of letters, digits, _ and -")
    if arguments.seed < 0:
        raise RunError(f"--seed {arguments.seed}: must not be below 0")
    videos = read_list(arguments.list, arguments)
    shards = plan_shards(videos.records, shard_bytes, arguments.seed)
    folder: Path = arguments.out
    check_writable(folder / shard_file(arguments.name, 0))
    names = "".join(f"{name}\n" for name in videos.class_names or ())
    _check_names(folder / NAMES, names)
    missing = check_folder(folder, arguments.name, shards)
    for number in watched(missing, len(missing), "packed", of="shards"):
        write_shard(folder / shard_file(arguments.name, number), shards[number])
    if names:
        write_text(folder / NAMES, names)
    print("\n".join(_describe(folder, arguments.name, shards, bool(names))))
    return 0


def _bytes(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise RunError(f"--shard-size {text}: must be a size above 0, such as 500MB or 1GiB")
    return size


def _check_names(path: Path, names: str) -> None:
    """Refuse to write over other class names.

    Raises:
        RunError: they are there.
    """
    if names and path.exists() and path.read_text(encoding="utf-8") != names:
        raise RunError(f"{path}: holds the class names of another list; choose another --out")


def _describe(
    folder: Path, name: str, shards: Sequence[Sequence[Item]], has_names: bool
) -> Iterator[str]:
    paths = [folder / shard_file(name, number) for number in range(len(shards))]
    total = sum(path.stat().st_size for path in paths)
    yield (
        f"{sum(map(len, shards)):,} videos in {len(shards):,} shards of {folder}, "
        f"{total / 2**20:,.1f} MiB"
    )
    pattern = paths[0]
    if len(shards) > 1:
        pattern = folder / f"{name}-{{{0:06d}..{len(shards) - 1:06d}}}.tar"
    yield f"data.train='{pattern}'"
    if has_names:
        yield f"data.class_names={folder / NAMES}"
