"""A process of its own that reads files as a data worker does, one at a time, on request.

A request is a line of JSON ``[way, path]``; the answer one of ``{"result", "detail", "peak_kib"}``.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from videogn.data.checking import examine
from videogn.data.crew import prepare_worker
from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.opening import VideoOpener
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.probing import probe
from videogn.data.seeking import open_seeking
from videogn.errors import DecodeError


def used(video: VideoReader) -> str:
    """Ask for a few frames and the times, as a clip does."""
    last = video.num_frames - 1
    video.frames([0, last // 2, last])
    video.times()
    return f"{video.num_frames} frames"


def digest(path: str) -> str:
    """A hash of every frame of a full decode."""
    video, found = PyAVReader(path), hashlib.sha256()
    for image in video.images(range(video.num_frames)):
        found.update(np.ascontiguousarray(image).tobytes())
    return found.hexdigest()


def examined(path: str) -> str:
    """What ``videogn data check`` finds."""
    facts = examine(path)
    if facts.code is not None:
        raise DecodeError(path, f"{facts.code}: {facts.detail}")
    return f"{facts.num_frames} frames"


WAYS: dict[str, Callable[[str], object]] = {
    "pyav": lambda path: used(PyAVReader(path)),
    "seeking": lambda path: used(open_seeking(path)),
    "index": lambda path: f"{index_video(path).num_frames} frames",
    "check": examined,
    "headers": probe,
    "decord": lambda path: used(VideoOpener("decord")(path)),
    "torchcodec": lambda path: used(VideoOpener("torchcodec")(path)),
    "digest": digest,
}


def peak() -> int:
    """Largest memory since :func:`forget_peak`, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Start to measure anew."""
    Path("/proc/self/clear_refs").write_text("5")


def answer(way: str, path: str) -> dict[str, object]:
    """What became of one file; what is no documented error is a fault of the package."""
    forget_peak()
    try:
        result, detail = "read", str(WAYS[way](path))
    except DecodeError as error:
        result, detail = "refused", error.reason
    except MemoryError as error:
        # Whoever reads clips or many files takes it for this.
        result, detail = "refused", f"huge: {error}"
    except NotIndexableError as error:
        result, detail = "not indexable", str(error)
    except BaseException as error:
        result, detail = "FAULT", f"{type(error).__name__}: {error}"
    return {"result": result, "detail": detail, "peak_kib": peak()}


if __name__ == "__main__":
    prepare_worker(0)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
