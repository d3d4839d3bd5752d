"""What each reader gets wrong, beside a plain full decode by PyAV.

    python benchmarks/conformance.py [FILE …]

Without a file: one small made video in each awkward form. Every reader reads a file whole and
then by jumps. A cell has the number of frames that came out wrong: more than 2 levels of 255 off on
the mean, nearer to a neighbour, missing or too many; behind it what the reader says where it
counts other frames, and behind an arrow why the file goes to the exact reader unless
``data.insist_on_reader=true``. The exact readers have a tolerance of 0. Readers that are not
installed are left out, and named.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from videogn.data.conformance import judge, plain_decode
from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.forms import FORMS
from videogn.data.opening import CHECKS, READERS, VideoOpener
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader
from videogn.data.routing import PROVEN, look, why_exact
from videogn.errors import DecodeError, UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = made_forms(Path(folder))
        files = ((path.name, path) for path in words.files) if words.files else made
        backends = [name for name in PROVEN if installed(name)]
        faults = dict.fromkeys(backends, 0)
        columns = ["file" if words.files else "form", "frames", "pyav", "indexed", *backends]
        print(line(columns), line(["---"] * len(columns)), sep="\n")
        for name, path in files:
            print(line([name, *cells(str(path), faults)]), flush=True)
    for name, count in faults.items():
        print(f"{name}: {count} wrong files once files go where data.reader={name} sends them")


def made_forms(folder: Path) -> Iterator[tuple[str, Path]]:
    for number, (name, make) in enumerate(FORMS.items()):
        own = folder / str(number)
        own.mkdir()
        yield name, make(own)


def installed(name: str) -> bool:
    try:
        CHECKS[name]()
    except UserError as error:
        print(f"without {name}: {error}")
        return False
    return True


def line(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"


def cells(path: str, faults: dict[str, int]) -> list[str]:
    """A file's row; counts where a backend is wrong although the file goes to it."""
    truth = plain_decode(path)
    row = ["none" if truth is None else str(len(truth))]
    row += [str(judge(reader, path, truth, 0.0)) for reader in (PyAVReader, indexed)]
    for name in faults:
        routed = judge(VideoOpener(name), path, truth)
        faults[name] += not routed.is_right
        row.append(f"{judge(READERS[name], path, truth)}{arrow(name, path)}")
    return row


def indexed(path: str) -> VideoReader:
    try:
        return IndexedReader(path, index_video(path))
    except NotIndexableError:
        return PyAVReader(path)


def arrow(name: str, path: str) -> str:
    try:
        reason = why_exact(name, look(path))
    except DecodeError:
        return ""
    return "" if reason is None else f" → {reason}"


if __name__ == "__main__":
    main()
