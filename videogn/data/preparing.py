"""Preparing a data set: which videos are encoded anew, under which names, and what became of them.

Each is written under a temporary name and takes its own when its frames' times are proven.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from videogn.data.clips import RandomClips
from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.encoding import Settings, check_times, encode
from videogn.data.list_checks import VideoRecord
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader, PacketIndex
from videogn.data.probing import clip_seconds
from videogn.data.processes import Lost, Pool, known_or_run
from videogn.errors import DecodeError, RunError
from videogn.files import atomic_path, locate, state_of

VIDEOS = "videos"
JOURNAL = "prepared.jsonl"
SAMPLE_CLIPS = 5
"""Clips that are read of each video of the sample."""


class Task(NamedTuple):
    """One video to prepare.

    Attributes:
        source: the file to read.
        folder: the prepared data set.
        name: of the prepared file in that folder.
        settings: how it is encoded.
    """

    source: str
    folder: str
    name: str
    settings: Settings


@dataclass(frozen=True)
class Done:
    """One prepared video.

    Attributes:
        name: of the prepared file in its folder.
        source: the file that was read.
        size, mtime_ns: of the source.
        settings: how it was encoded.
        frames: how many it has.
        bytes: of the prepared file.
    """

    name: str
    source: str
    size: int
    mtime_ns: int
    settings: Settings
    frames: int
    bytes: int


class Failed(NamedTuple):
    """Why a video was not prepared."""

    source: str
    reason: str


def output_names(records: Sequence[VideoRecord]) -> dict[str, str]:
    """Path of each video -> its name in the prepared folder.

    The list's own relative path, ending in ``.mp4``; where that leaves the folder or is taken, the
    file's name with a hash of its path, in a folder of the same name as before.
    """
    wanted = {record.path: _plain_name(record.name) for record in records}
    taken = Counter(name.lower() for name in wanted.values() if name is not None)
    return {
        path: name if name is not None and taken[name.lower()] == 1 else _hashed_name(path)
        for path, name in wanted.items()
    }


def _plain_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable():
        return None
    if locate(name).size is not None:  # the prepared file would be taken for a shard's member
        return None
    suffix = "" if path.suffix == ".mp4" else ".mp4"
    return f"{VIDEOS}/{path}{suffix}"


def _hashed_name(path: str) -> str:
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:16]
    # The folder may name the class, by which the order of labels is checked.
    words = [_printable(part) for part in (Path(path).parent.name, Path(path).stem)]
    return f"{VIDEOS}/{words[0] or '_'}/{words[1]}-{digest}.mp4"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "_" for char in text)


class Journal:
    """What was prepared in a folder, one JSON object a line, by which a later call goes on.

    A torn line, as an interrupted call leaves it, is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / JOURNAL
        self._known: dict[str, Any] = {}
        if not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["name"]] = entry
            except (ValueError, TypeError, KeyError):
                continue

    def find(self, task: Task) -> Done | None:
        """The prepared video of a task; None where it, its source or the settings changed."""
        entry = self._known.get(task.name)
        if entry is None or entry.get("settings") != asdict(task.settings):
            return None
        try:
            known = Done(**entry | {"settings": task.settings})
            target = (self._folder / task.name).stat()
        except (OSError, TypeError, ValueError):
            return None
        found = (task.source, *state_of(task.source), target.st_size)
        same = found == (known.source, known.size, known.mtime_ns, known.bytes)
        return known if same else None

    def add(self, outcomes: Iterable[Done | Failed]) -> None:
        """Remember prepared videos; those that failed are tried again."""
        done = [asdict(outcome) for outcome in outcomes if isinstance(outcome, Done)]
        if done:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(entry)}\n" for entry in done)


def prepare_all(tasks: Iterable[Task], journal: Journal, pool: Pool) -> Iterator[Done | Failed]:
    """Prepare what the journal does not know yet.

    Yields:
        Outcomes in no particular order, those already known first.
    """
    return known_or_run(prepare, tasks, pool, journal.find, journal.add, _cleared_away)


def _cleared_away(task: Task, lost: Lost) -> Failed:
    target = Path(task.folder, task.name)
    _remove_leftovers(target)
    # It may have been whole just before its process was killed; nobody has seen the proof.
    target.unlink(missing_ok=True)
    return Failed(task.source, lost.reason)


def prepare(task: Task) -> Done | Failed:
    """Encode one video and prove its frames' number and times; never an error over its content."""
    target = Path(task.folder, task.name)
    _remove_leftovers(target)
    # An earlier result of other settings or of another source is not left to pass for this one.
    target.unlink(missing_ok=True)
    try:
        size, mtime_ns = state_of(task.source)
        with atomic_path(target) as temporary:
            times = encode(task.source, temporary, task.settings)
            check_times(str(temporary), times)
        return Done(
            name=task.name,
            source=task.source,
            size=size,
            mtime_ns=mtime_ns,
            settings=task.settings,
            frames=len(times),
            bytes=target.stat().st_size,
        )
    except DecodeError as error:
        return Failed(task.source, error.reason)
    except RunError as error:
        return Failed(task.source, str(error))
    except OSError as error:
        return Failed(task.source, str(error.strerror or error))


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed process left of its temporary file."""
    if not target.parent.is_dir():
        return
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}.") and path.suffix == target.suffix:
            path.unlink(missing_ok=True)


class Measured(NamedTuple):
    """CPU seconds of one training clip, and bytes, of a source and of its prepared video."""

    source_seconds: float
    prepared_seconds: float
    source_bytes: int
    prepared_bytes: int


class Pair(NamedTuple):
    """A source and its prepared video, with how training draws its clips but for the opener."""

    source: str
    prepared: str
    clips: RandomClips


def measure(pair: Pair) -> Measured:
    """Read some clips of both, each by its own packet index.

    Raises:
        DecodeError: one of them cannot be read.
    """
    seconds = []
    for path in (pair.source, pair.prepared):
        pair.clips.open_video = _indexed(path)
        seconds.append(clip_seconds(pair.clips, path, SAMPLE_CLIPS))
    sizes = [state_of(path)[0] for path in (pair.source, pair.prepared)]
    return Measured(seconds[0], seconds[1], sizes[0], sizes[1])


def _indexed(path: str) -> Callable[[str], VideoReader]:
    try:
        return _Opener(index_video(path))
    except NotIndexableError:
        return _Opener(None)


@dataclass(frozen=True)
class _Opener:
    index: PacketIndex | None

    def __call__(self, path: str) -> VideoReader:
        return PyAVReader(path) if self.index is None else IndexedReader(path, self.index)
