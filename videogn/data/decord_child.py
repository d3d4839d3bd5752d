"""The process that runs decord for :mod:`videogn.data.decord_reader`; it ends with its input.

A request is a line of JSON: ``{"path": …}`` opens a video, ``{"path": …, "indices": […]}`` reads
frames of it. The answer is a line of JSON, with ``error`` where it failed, and behind that of
frames their (T, H, W, 3) uint8 bytes.
"""

import json
import os
import sys
from typing import Any

import decord

from videogn.data.limits import limit_memory


def main() -> None:
    """Answer requests until there are none."""
    # What decoders print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_memory()
    path, video = "", None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content = b""
        try:
            if video is None or request["path"] != path:
                path, video = request["path"], None
                video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            answer, content = _answer(video, request)
        except (decord.DECORDError, RuntimeError, MemoryError, UnicodeError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            answer, video = {"error": first}, None
        answers.write(json.dumps(answer).encode() + b"\n" + content)
        answers.flush()


def _answer(video: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    if "indices" in request:
        frames = video.get_batch(request["indices"]).asnumpy()
        return {"shape": list(frames.shape)}, frames.tobytes()
    count = len(video)
    height, width = video[0].shape[:2] if count else (0, 0)
    return {"num_frames": count, "height": height, "width": width}, b""


if __name__ == "__main__":
    main()
