"""decord's reader, in a process of its own: some files crash decord, and playlists make it open
other files.

Which files it reads as a full decode does is :mod:`videogn.data.routing`'s to know. It passes over
damage: of a file whose first 130 frames alone decode it says there are 300.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from videogn.data.decode import FrameIndices, checked_indices, gather, packet_seconds
from videogn.data.rgb import Box
from videogn.data.video_files import best_stream, check_regular_file, errors_named, opened
from videogn.errors import DecodeError, UserError

BATCH = 16
"""Frames that decord is asked for at once; more would hold many large images together."""

ANSWER_SECONDS = 60.0
"""A process that is silent for so long is killed."""


class DecordReader:
    """A video as decord reads it, opened under the rules of :mod:`videogn.data.video_files`.

    Raises:
        DecodeError: decord cannot read the file, crashed over it or hangs.
        UserError: decord is not installed, or another stream is asked for than ffmpeg calls best.
    """

    def __init__(self, path: str, stream: int | None = None) -> None:
        if stream is not None:
            raise UserError(
                f"data.stream={stream}: decord reads the best stream alone; use data.reader=pyav"
            )
        check_decord()
        self._path = path
        check_regular_file(path)
        # decord has no allow-list: what ours refuses is not shown to it.
        with errors_named(path, lambda: "before any frame"), opened(path) as container:
            best_stream(path, container)
        about, _ = _ask(path, {})
        self.num_frames, self.height, self.width = (
            int(about[key]) for key in ("num_frames", "height", "width")
        )
        if self.num_frames == 0:
            raise DecodeError(path, "no frames", "zero_frames")

    def frames(self, indices: FrameIndices) -> np.ndarray:
        """Frames by index, as :meth:`VideoReader.frames` says."""
        return gather(self, indices)

    def images(self, indices: FrameIndices, box: Box | None = None) -> Iterator[np.ndarray]:
        """Frames of rising indices one by one, as :meth:`VideoReader.images` says."""
        rising = checked_indices(self.num_frames, indices)
        for start in range(0, len(rising), BATCH):
            _, batch = _ask(self._path, {"indices": rising[start : start + BATCH]})
            yield from batch if box is None else batch[:, box.rows, box.columns]

    def times(self) -> np.ndarray:
        """When each frame is shown, as :meth:`VideoReader.times` says."""
        return packet_seconds(self._path, self.num_frames)


def check_decord() -> None:
    """Refuse to go on without decord.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("decord") is None:
        raise UserError(
            "data.reader=decord needs decord: pip install 'videogn[decord]' (Linux on x86-64)"
        )


class _Child:
    """A process that reads videos, and the pipes to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "videogn.data.decord_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Ctrl-C is for the process that asks.
            start_new_session=True,
        )
        self._received = b""

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """The answer to a request.

        Raises:
            OSError: the process died.
            TimeoutError: it is silent.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._received:
            self._receive(deadline)
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        shape = tuple(answer.get("shape", (0,)))
        parts, missing = [self._received], int(np.prod(shape)) - len(self._received)
        self._received = b""
        while missing > 0:
            self._receive(deadline)
            parts.append(self._received)
            missing -= len(self._received)
            self._received = b""
        return answer, np.frombuffer(b"".join(parts), np.uint8).reshape(shape)

    def _receive(self, deadline: float) -> None:
        assert self.process.stdout is not None
        pipe = self.process.stdout
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        content = os.read(pipe.fileno(), 1 << 20)
        if not content:
            raise BrokenPipeError
        self._received += content

    def kill(self) -> int:
        """End the process and tell its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        return self.process.wait()


_children: list[_Child] = []


def _ask(path: str, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Ask this process's child, which is started when it is first needed or has died."""
    if _children and _children[0].owner != os.getpid():
        _children.clear()  # a fork's copy of its parent's
    if not _children:
        atexit.unregister(_end)  # of a child before this one
        atexit.register(_end)
        _children.append(_Child())
    child = _children[0]
    try:
        # An absolute path cannot be taken for a "scheme:".
        answer, frames = child.ask({"path": str(Path(path).absolute()), **request})
    except TimeoutError as error:
        _end()
        raise DecodeError(path, f"decord: no answer in {ANSWER_SECONDS:g} seconds") from error
    except OSError as error:
        _end()
        raise DecodeError(path, "decord: its process died over this file") from error
    if "error" in answer:
        raise DecodeError(path, f"decord: {answer['error']}")
    return answer, frames


def _end() -> None:
    while _children:
        child = _children.pop()
        if child.owner == os.getpid():
            child.kill()
