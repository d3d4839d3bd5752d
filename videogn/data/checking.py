"""Which videos of a list are faulty, found by decoding each of them whole."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av

from videogn.data.decode import decode_whole
from videogn.data.evidence import matroska_size
from videogn.data.images import ImageReader, is_image
from videogn.data.listed import ListedVideo
from videogn.data.processes import Lost, Pool, known_or_run
from videogn.errors import DecodeError, UserError
from videogn.files import UNKNOWN, locate, sha256_of, state_of

REASONS = (
    *("missing", "unreadable", "truncated", "no_video_stream", "zero_frames", "huge"),
    *("label_range", "timestamps", "too_short", "duplicate_content"),
)
"""What a fault is called, the gravest first."""

FORMAT_LINE = json.dumps({"videogn": "data check", "version": 1})
"""First line of a progress file."""

CONCEALED = ("concealing", "Could not find ref with POC")
"""How FFmpeg's lines begin that tell of a picture made up for a damaged one."""

MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""Kinds of the box that an mp4 or mov file may begin with."""


@dataclass(frozen=True)
class Facts:
    """What a full decode of one file showed, whatever is asked of it.

    Attributes:
        path: absolute.
        size: of the file, in bytes.
        mtime_ns: when the file was last changed.
        code: the fault, one of :data:`REASONS`; None where the file decodes whole.
        detail: the fault in words.
        num_frames: of a file that decodes whole, else 0.
        sha256: of the content of a file that decodes whole, else empty.
        timestamps: the first place where presentation times do not rise; empty where they do.
    """

    path: str
    size: int
    mtime_ns: int
    code: str | None
    detail: str
    num_frames: int
    sha256: str
    timestamps: str


@dataclass(frozen=True)
class Verdict:
    """What became of one entry of the list.

    Attributes:
        path: the file opened.
        label: class index; None where the list's cannot be read.
        reason: one of :data:`REASONS`; None for a sound video.
        detail: the reason in words.
    """

    path: str
    label: int | None
    reason: str | None = None
    detail: str = ""


class Progress:
    """Facts found so far, one JSON line each, so that an interrupted check goes on.

    Facts hold for a file of the same size and modification time only.

    Raises:
        UserError: the file is there and is no progress file of this version.
    """

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        first, _, rest = text.partition("\n")
        # A run that was killed may leave the first line cut.
        if not FORMAT_LINE.startswith(first):
            raise UserError(f"{path}: is no progress of a check; remove it or give another --out")
        self._known = {facts.path: facts for facts in _facts_in(rest)}
        self._file = path.open("a", encoding="utf-8")
        if first != FORMAT_LINE:
            self._file.truncate(0)
            self._file.write(f"{FORMAT_LINE}\n")
        elif not text.endswith("\n"):
            self._file.write("\n")
        self._file.flush()

    def find(self, path: str) -> Facts | None:
        """The facts of a file; None where there are none or it has changed since."""
        facts = self._known.get(path)
        return facts if facts and state_of(path) == (facts.size, facts.mtime_ns) else None

    def add(self, found: Iterable[Facts]) -> None:
        """Write down facts, but for those that hold for no file or for this attempt only."""
        lines = (f"{json.dumps(asdict(facts))}\n" for facts in found if facts.size != UNKNOWN)
        self._file.writelines(lines)
        self._file.flush()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _facts_in(text: str) -> Iterator[Facts]:
    for line in text.splitlines():
        try:
            yield Facts(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue  # a line that a killed run left cut


def examine_all(paths: Iterable[str], progress: Progress, pool: Pool) -> Iterator[Facts]:
    """The facts of each file, decoding those not known yet.

    Args:
        paths: absolute.

    Yields:
        Facts in no particular order, those already known first.
    """
    find, save = progress.find, progress.add
    return known_or_run(examine, paths, pool, find, save, _not_tried, done="decoded")


def examine(path: str) -> Facts:
    """Decode a file whole, in one thread; never an error over its content.

    Args:
        path: absolute.
    """
    # Before the decode: what changes meanwhile counts as not examined.
    size, mtime_ns = state_of(path)
    level = av.logging.get_level()
    # FFmpeg tells of concealed pictures at this level, not as an error.
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            num_frames, timestamps = _decoded(path)
        concealed = _concealed(lines)
        if concealed:
            raise DecodeError(path, f"damaged pictures: {concealed}")
        sha256 = sha256_of(path)
    except DecodeError as error:
        code, detail = _code_and_detail(error)
        return Facts(path, size, mtime_ns, code, detail, 0, "", "")
    except OSError as error:
        return Facts(path, size, mtime_ns, "unreadable", str(error.strerror), 0, "", "")
    finally:
        av.logging.set_level(level)
    return Facts(path, size, mtime_ns, None, "", num_frames, sha256, timestamps)


def _not_tried(path: str, lost: Lost) -> Facts:
    """Facts that are not remembered: another machine, or a quieter one, may do better."""
    return Facts(path, UNKNOWN, UNKNOWN, lost.code, lost.reason, 0, "", "")


def _decoded(path: str) -> tuple[int, str]:
    """Number of frames, and the first place where their presentation times do not rise."""
    if is_image(path):
        return ImageReader(path).num_frames, ""
    fault, count = "", 0
    last: tuple[int, float] | None = None
    for frame in decode_whole(path):
        pts, seconds = frame.pts, frame.time
        if pts is None or seconds is None:
            fault = fault or f"frame {count} has no presentation time"
        else:
            if last is not None and pts <= last[0]:
                fault = fault or (
                    f"frame {count} is shown at {seconds:.3f} s, "
                    f"not after frame {count - 1} at {last[1]:.3f} s"
                )
            last = pts, seconds
        count += 1
    return count, fault


def _concealed(lines: Sequence[tuple[int, str, str]]) -> str | None:
    """FFmpeg's first complaint over a video with concealed pictures; None where there are none.

    Other complaints are no proof: sound files are full of oddities.
    """
    if not any(text.startswith(CONCEALED) for _, _, text in lines):
        return None
    errors = (
        f"{name}: {text.strip()}"
        for level, name, text in lines
        if level <= av.logging.ERROR or text.startswith(CONCEALED)
    )
    return next(errors)


def _code_and_detail(error: DecodeError) -> tuple[str, str]:
    """The error's own, or that the file is cut off: decoders trip over the cut in many ways."""
    if error.code in ("unreadable", "zero_frames"):
        size, _ = state_of(error.path)
        claimed = _claimed_size(error.path)
        if claimed is not None and size < claimed:
            return "truncated", f"holds {size} of {claimed} bytes ({error.reason})"
    return error.code, error.reason


def _claimed_size(path: str) -> int | None:
    """Bytes a file must have by its own headers; None where they do not say."""
    try:
        # Anything else might block, such as a pipe.
        if not Path(locate(path).file).is_file():
            return None
        mp4 = _mp4_size(path)
        return matroska_size(path) if mp4 is None else mp4
    except (OSError, ValueError):
        return None


def _mp4_size(path: str) -> int | None:
    """Bytes an mp4 or mov file must have by its outermost boxes; None for other files."""
    part, size, position = locate(path), state_of(path)[0], 0
    with Path(part.file).open("rb") as file:
        while position < size:
            file.seek(part.start + position)
            head = file.read(16)
            if position == 0 and head[4:8] not in MP4_STARTS:
                return None
            length = int.from_bytes(head[:4], "big")
            if length == 0:  # to the end of the file, wherever that is
                return None
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                return None
            position += length
    return position


def name_fault(path: str) -> str | None:
    """Why a path cannot stand in a list, if it cannot."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "the path is not UTF-8 text, which a list must be; rename the file"
    if "\n" in path or "\r" in path:
        return "the path holds a line break, which a list cannot; rename the file"
    return None


def judge(
    entries: Sequence[ListedVideo],
    facts: Mapping[str, Facts],
    *,
    num_classes: int | None,
    min_frames: int,
) -> list[Verdict]:
    """A verdict on each entry, in the order of the list.

    A video is a duplicate of an earlier one only if that one is sound, so that one is left.

    Args:
        facts: by path, of every entry without a fault and without :func:`name_fault`.
        num_classes: None where any label from 0 on is right.
    """
    firsts: dict[str, Verdict] = {}
    verdicts = []
    for entry in entries:
        reason, detail = _own_fault(entry, facts.get(entry.path), num_classes, min_frames)
        if reason is None:
            sha256 = facts[entry.path].sha256
            if sha256 in firsts:
                reason, detail = "duplicate_content", _repeats(entry, firsts[sha256])
            else:
                firsts[sha256] = Verdict(entry.path, entry.label)
        verdicts.append(Verdict(entry.path, entry.label, reason, detail))
    return verdicts


def _own_fault(
    entry: ListedVideo, facts: Facts | None, num_classes: int | None, min_frames: int
) -> tuple[str | None, str]:
    """The gravest fault of an entry by itself, and its detail."""
    if entry.label is None:
        return "label_range", entry.fault or ""
    if entry.fault is not None:
        return "unreadable", entry.fault
    if facts is None:
        return "unreadable", name_fault(entry.path) or ""
    if facts.code is not None:
        return facts.code, facts.detail
    if entry.label < 0 or (num_classes is not None and entry.label >= num_classes):
        highest = "…" if num_classes is None else f"… {num_classes - 1}"
        return "label_range", f"the label {entry.label} is outside 0 {highest}"
    if facts.timestamps:
        return "timestamps", facts.timestamps
    if facts.num_frames < min_frames:
        return "too_short", f"{facts.num_frames} frames, fewer than {min_frames}"
    return None, ""


def _repeats(entry: ListedVideo, first: Verdict) -> str:
    label = f", which has label {first.label}" if first.label != entry.label else ""
    if entry.path == first.path:
        return f"stands earlier in the list, with label {first.label}"
    return f"same content as {first.path}{label}"
