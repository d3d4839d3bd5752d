"""Re-encoding videos so that training clips cost little to read: small frames, many key frames.

A prepared video has the frames of a full decode of its source, at exactly the same times: that is
checked by decoding it again before it takes its name. Shapes: H x W pixels, upright.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videogn.data.dataset import RandomClips
from videogn.data.decode import (
    BAD_FILE_ERRORS,
    PyAVReader,
    VideoReader,
    decode_whole,
)
from videogn.data.list_checks import VideoRecord
from videogn.data.packets import IndexedReader, NotIndexableError, PacketIndex, index_video
from videogn.data.probing import clip_seconds, probe
from videogn.data.processes import Lost, Pool, known_or_run
from videogn.data.rgb import quarter_turns
from videogn.errors import DecodeError, RunError
from videogn.files import atomic_path, locate, state_of

VIDEOS = "videos"
JOURNAL = "prepared.jsonl"
USUAL_RATE = Fraction(25)
MAX_RATE = 1000
RGB_MATRIX = 0
"""Colour space tag of frames that are not in luma and chroma."""
SAMPLE_CLIPS = 5
"""Clips that are read of each video of the sample."""


@dataclass(frozen=True)
class Settings:
    """How videos are encoded.

    Attributes:
        short_side: pixels of the shorter side; smaller videos keep theirs.
        gop: frames from one key frame to the next.
        crf: constant quality of x264, 0 to 51, smaller is better.
        preset: x264's trade of time for bytes.
        tune: what x264 is tuned for; ``none`` for nothing.
    """

    short_side: int
    gop: int
    crf: int
    preset: str
    tune: str

    def options(self) -> dict[str, str]:
        """What libx264 is given."""
        fixed = (
            f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:open-gop=0"
            # No other frame refers to three of four: a clip leaves out those it does not want.
            ":bframes=3:b-adapt=0:b-pyramid=none"
        )
        options = {"crf": str(self.crf), "preset": self.preset, "x264-params": fixed}
        return options if self.tune == "none" else options | {"tune": self.tune}


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
            times = _encode(task.source, temporary, task.settings)
            _check(str(temporary), times)
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


def _encode(source: str, target: Path, settings: Settings) -> list[Fraction]:
    """Write the prepared file and give the times of the source's frames in seconds."""
    rate = probe(source).rate or USUAL_RATE
    times: list[Fraction] = []
    writer: _Writer | None = None
    # Errors of the source are named by decode_whole; what is left is the encoder's.
    try:
        with av.open(str(target), "w", options={"movflags": "faststart"}) as container:
            for frame in decode_whole(source):
                time = _time(source, frame)
                if times and time <= times[-1]:
                    raise DecodeError(
                        source,
                        f"the times of its frames do not rise: frame {len(times)} is at {time} s, "
                        f"the one before at {times[-1]} s",
                    )
                writer = writer or _Writer(container, frame, rate, settings)
                times.append(time)
                writer.write(frame)
            if writer is not None:
                writer.finish()
    except DecodeError:
        raise
    except BAD_FILE_ERRORS as error:
        raise DecodeError(source, f"cannot be encoded: {error}") from error
    return times


def _time(path: str, frame: av.VideoFrame) -> Fraction:
    """When a frame is shown, in seconds."""
    if frame.pts is None or frame.time_base is None:
        raise DecodeError(path, "holds a frame without a time")
    return frame.pts * Fraction(frame.time_base)


class _Writer:
    """Scales, turns and encodes frames into a container."""

    def __init__(
        self, container: Any, first: av.VideoFrame, rate: Fraction, settings: Settings
    ) -> None:
        self._container = container
        self._quarters = quarter_turns(first)
        self._height, self._width = prepared_size(first.height, first.width, settings.short_side)
        self._reformatter = VideoReformatter()
        # mp4 has no times before 0, nor has anyone a use for them.
        self._shift = min(0, first.pts or 0)
        stream = container.add_stream("libx264", rate=min(rate, Fraction(MAX_RATE)))
        turned = self._quarters % 2 == 1
        stream.width = self._height if turned else self._width
        stream.height = self._width if turned else self._height
        stream.pix_fmt = "yuv420p"
        stream.options = settings.options()
        stream.time_base = first.time_base
        context = stream.codec_context
        context.time_base = first.time_base
        context.gop_size = settings.gop
        context.thread_count = 1
        context.color_range = ColorRange.MPEG
        context.colorspace = _matrix(first)
        context.color_primaries = first.color_primaries
        context.color_trc = first.color_trc
        self._stream = stream

    def write(self, frame: av.VideoFrame) -> None:
        """Encode one more frame at its own time."""
        scaled = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="yuv420p",
            src_color_range=_range(frame),
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601 if frame.colorspace == RGB_MATRIX else None,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        picture = av.VideoFrame.from_ndarray(
            _turned(scaled.to_ndarray(), self._quarters), format="yuv420p"
        )
        picture.pts, picture.time_base = (frame.pts or 0) - self._shift, frame.time_base
        picture.color_range, picture.colorspace = ColorRange.MPEG, _matrix(frame)
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


def prepared_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of a prepared frame: even, never larger, the ratio kept to a pixel."""
    shorter = min(height, width)
    scale = min(Fraction(1), Fraction(short_side, shorter))
    sides = (min(2 * round(side * scale / 2), side - side % 2) for side in (height, width))
    scaled_height, scaled_width = (max(2, side) for side in sides)
    return scaled_height, scaled_width


def _matrix(frame: av.VideoFrame) -> int:
    """Tag of the prepared frame's luma and chroma, which are the source's unless it has none."""
    return int(Colorspace.ITU601) if frame.colorspace == RGB_MATRIX else int(frame.colorspace)


def _range(frame: av.VideoFrame) -> int:
    full = frame.format.name.startswith("yuvj") or frame.format.is_rgb
    if full or frame.color_range == ColorRange.JPEG:
        return int(ColorRange.JPEG)
    return int(ColorRange.MPEG)


def _turned(planes: np.ndarray, quarters: int) -> np.ndarray:
    """A yuv420p picture, (3 H / 2, W) uint8, turned counter-clockwise."""
    if quarters == 0:
        return planes
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = np.rot90(planes[:height], quarters)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    turned = np.rot90(chroma, quarters, axes=(1, 2))
    return np.concatenate([luma.ravel(), turned.ravel()]).reshape(-1, luma.shape[1])


def _check(path: str, times: Sequence[Fraction]) -> None:
    """Refuse a prepared file whose frames are not as many as the source's, at the same times."""
    found = [_time(path, frame) for frame in decode_whole(path)]
    if len(found) != len(times):
        raise DecodeError(path, f"came out with {len(found)} of {len(times)} frames")
    for number, (ours, theirs) in enumerate(zip(found, times, strict=True)):
        if ours - found[0] != theirs - times[0]:
            raise DecodeError(
                path, f"frame {number} came out at {ours - found[0]} s, not {theirs - times[0]} s"
            )


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
