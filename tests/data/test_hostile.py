"""Hostile files of every kind, read in every way: none crashes, hangs, or opens anything else."""

import collections
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hostile_child
import numpy as np
import pytest
from hostile_files import UNNOTICED, Hostile, Lures, make_all
from hostile_watch import Watch, can_watch

from videogn.data.forms import Coding, encode
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry
from videogn.data.limits import WORKER_BYTES

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(not can_watch(), reason="only Linux tells who opens files (inotify)"),
]

CHILD = Path(hostile_child.__file__)
START_SECONDS = 120.0
FILE_SECONDS = 30.0
"""A file that takes longer hangs; on an idle machine none takes a second."""
EXACT = ("pyav", "seeking", "index", "check")
"""Ways that read every picture, or fall back to that where in doubt."""


class Answer(NamedTuple):
    """What became of a file.

    Attributes:
        result: "read", "refused" or "not indexable"; "FAULT", "CRASH" or "HANG" are failures.
        detail: more of it.
        peak_kib: largest memory of the process meanwhile.
        opened: what the watch saw meanwhile.
    """

    result: str
    detail: str
    peak_kib: int
    opened: frozenset[str]


class Reading:
    """A process that reads one file after the other, watched."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, way: str, path: str) -> Answer:
        """What becomes of a file; a process that died or was killed over one is replaced."""
        is_new = self._process is None
        if self._process is None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        self._watch.seen()
        process.stdin.write(json.dumps([way, path]).encode() + b"\n")
        process.stdin.flush()
        line = self._line(process, FILE_SECONDS + (START_SECONDS if is_new else 0))
        opened = frozenset(self._watch.seen())
        if line is not None and line.endswith(b"\n"):
            return Answer(**json.loads(line), opened=opened)
        process.kill()
        code = process.wait()
        self._process = None
        return Answer("HANG" if line is None else "CRASH", f"exit code {code}", 0, opened)

    def _line(self, process: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
        """A line of its output, cut where it died; None where it is silent."""
        assert process.stdout is not None
        received, deadline = b"", time.monotonic() + seconds
        while not received.endswith(b"\n"):
            self._watch.glance()
            if select.select([process.stdout], [], [], 0.002)[0]:
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    break
                received += part
            elif time.monotonic() > deadline:
                return None
        return received

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=START_SECONDS)


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class Ground(NamedTuple):
    """Hostile files, what they aim at, and who watches that and reads them."""

    folder: Path
    lures: Lures
    files: list[Hostile]
    watch: Watch
    reading: Reading


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret").mkdir()
    secret = encode(folder / "secret" / "secret.mp4", Coding(num_frames=20))
    watch = Watch(secret.parent)
    lures = Lures(secret, watch.port)
    files = make_all(folder / "files", lures)
    reading = Reading(watch)
    yield Ground(folder, lures, files, watch, reading)
    reading.close()
    watch.close()


PICKY = {"extension_picky": "0"}
CONTROLS = {
    "ffconcat file": ("read secret.mp4", {"safe": "0"}),
    # Of late FFmpeg itself asks more of a playlist than that it begins like one.
    "hls file": ("read secret.mp4", {"allowed_extensions": "ALL", **PICKY}),
    "hls http": ("connect", {"protocol_whitelist": "file,http,tcp", **PICKY}),
    "ffconcat http": ("connect", {"safe": "0", "protocol_whitelist": "file,http,tcp"}),
    "sdp": ("bind", {"protocol_whitelist": "file,udp,rtp"}),
    "dref alis": ("read secret.mp4", {"enable_drefs": "1", "use_absolute_path": "1"}),
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_the_watch_sees_what_a_plain_open_does(kind: str, ground: Ground) -> None:
    """Without this the tests below could not fail."""
    expected, options = CONTROLS[kind]
    [path] = [file.path for file in ground.files if file.name == kind]
    ground.watch.seen()
    program = (
        "import av, sys, json\n"
        "form = 'hls' if sys.argv[3].startswith('hls') else None\n"
        "options = json.loads(sys.argv[2])\n"
        "with av.open(sys.argv[1], format=form, options=options, timeout=2) as container:\n"
        "    next(container.decode(video=0))\n"
    )
    words = [sys.executable, "-c", program, path, json.dumps(options), kind]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while expected not in seen and process.poll() is None and time.monotonic() < deadline:
        seen |= ground.watch.seen()
        time.sleep(0.002)
    # A connection is accepted and closed, so nothing waits for an answer.
    process.kill()
    process.wait()
    assert expected in seen | ground.watch.seen()


def unharmed(ground: Ground, way: str) -> dict[str, Answer]:
    """What becomes of each file by its name, after checks of what must hold for all."""
    answers = {file.name: ground.reading.ask(way, file.path) for file in ground.files}
    assert len(answers) == len(ground.files)
    harm = {name: answer for name, answer in answers.items() if answer.result.isupper()}
    assert not harm
    assert not {name: answer.opened for name, answer in answers.items() if answer.opened}
    return answers


def least_peak(answers: dict[str, Answer]) -> int:
    """KiB of the process itself."""
    return min(answer.peak_kib for answer in answers.values())


@pytest.mark.parametrize("way", EXACT)
def test_hostile_files_are_refused_and_nothing_else_is_opened(way: str, ground: Ground) -> None:
    answers = unharmed(ground, way)
    unsound = {file.name for file in ground.files if not file.sound}
    assert {name for name in unsound if answers[name].result != "refused"} <= UNNOTICED
    worst = max(answers.values(), key=lambda answer: answer.peak_kib)
    # As much as one frame of 33 Mpixel, as RGB three times in a clip, takes; more is refused.
    assert (worst.peak_kib - least_peak(answers)) * 1024 < WORKER_BYTES, worst
    results = collections.Counter(answer.result for answer in answers.values())
    print(f"{way}: {dict(results)}, at most {worst.peak_kib >> 10} MiB")


@pytest.mark.parametrize("way", ["headers", "decord", "torchcodec"])
def test_hostile_files_do_no_harm(
    way: str, ground: Ground, need_reader: Callable[[str], None]
) -> None:
    need_reader(way)
    answers = unharmed(ground, way)
    results = collections.Counter(answer.result for answer in answers.values())
    worst = max(answer.peak_kib for answer in answers.values())
    print(f"{way}: {dict(results)}, at most {worst >> 10} MiB")


def test_the_index_keeps_names_that_are_no_text(tmp_path: Path) -> None:
    path = encode(tmp_path / os.fsdecode(b"\xff.mp4"), Coding(num_frames=5))
    file = IndexFile(tmp_path / "index", create=True)
    file.add([index_entry(str(path))])
    found = file.find(str(path))
    file.close()
    assert found is not None
    assert found.path == str(path)
    assert found.index is not None


FORMS = {
    "a.mp4": Coding(num_frames=20, options={"g": "8"}),
    "a.mkv": Coding(num_frames=20, options={"g": "8"}),
    "a.avi": Coding("mpeg4", num_frames=20, options={"g": "8"}),
    "a.webm": Coding("libvpx-vp9", num_frames=20, options={"g": "8", "cpu-used": "8"}),
}
CUTS, FLIPS = 12, 40


def mutants(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """A file cut at places spread over it, and with 1 or 8 bytes overwritten."""
    rng = np.random.default_rng(seed)
    for place in np.linspace(0, len(content), CUTS, endpoint=False, dtype=int):
        yield f"cut at {place}", content[:place]
    for number in range(FLIPS):
        width = 1 if number % 2 else 8
        place = int(rng.integers(len(content) - width))
        damaged = bytearray(content)
        for offset in range(place, place + width):
            damaged[offset] ^= int(rng.integers(1, 256))
        yield f"{width} bytes from {place} changed", bytes(damaged)


class Tally(NamedTuple):
    """Mutants of a file.

    Attributes:
        reported: by the check.
        equal: decode to the frames of the intact file, without a report.
        silent: decode to others, without a report.
        refused: by the reader that trains.
    """

    reported: list[str]
    equal: list[str]
    silent: list[str]
    refused: list[str]


def tally(ground: Ground, content: bytes, suffix: str, seed: int) -> Tally:
    """What became of the mutants of a file."""
    path = ground.folder / f"mutant{suffix}"
    path.write_bytes(content)
    intact = ground.reading.ask("digest", str(path))
    assert intact.result == "read"
    found = Tally([], [], [], [])
    for name, damaged in mutants(content, seed):
        path.write_bytes(damaged)
        check, frames = (ground.reading.ask(way, str(path)) for way in ("check", "digest"))
        for answer in (check, frames):
            assert not answer.result.isupper(), (name, answer)
            assert not answer.opened, (name, answer)
        if frames.result == "refused":
            found.refused.append(name)
        if check.result == "refused":
            found.reported.append(name)
        elif frames.detail == intact.detail:
            found.equal.append(name)
        else:
            found.silent.append(name)
    return found


# Measured of 52 with FFmpeg 8, and a few more: on other CPUs encoders write other bytes. H.264
# checks little that a picture consists of and VP9 nothing, and a picture of so small a video is
# nothing else.
SILENT = {"a.mp4": 24, "a.mkv": 22, "a.avi": 6, "a.webm": 40}
SILENT_FOOTAGE = {"cleaning_pool_1s.mp4": 3, "wave_hmdb.avi": 9}


@pytest.mark.parametrize("name", FORMS)
def test_damage_is_reported_or_harmless(name: str, ground: Ground) -> None:
    content = encode(ground.folder / name, FORMS[name]).read_bytes()
    found = tally(ground, content, Path(name).suffix, seed=0)
    print(name, {key: len(value) for key, value in found._asdict().items()})
    assert not [mutant for mutant in found.silent if mutant.startswith("cut")]
    assert len(found.silent) <= SILENT[name], found


@pytest.mark.slow
@pytest.mark.parametrize("name", SILENT_FOOTAGE)
def test_damage_of_footage_is_reported_or_harmless(
    name: str, ground: Ground, footage: Path
) -> None:
    found = tally(ground, (footage / "clips" / name).read_bytes(), Path(name).suffix, seed=1)
    print(name, {key: len(value) for key, value in found._asdict().items()})
    assert not [mutant for mutant in found.silent if mutant.startswith("cut")]
    assert len(found.silent) <= SILENT_FOOTAGE[name], found
