"""Scores of a tested list: what ``scores.npz`` holds, read without a network or a video.

Shapes: N videos, J clips of each, P crops of each clip, K classes. A view is one crop of one clip.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from videogn.errors import RunError
from videogn.files import atomic_path, printable

SCORES = "scores.npz"
Average = Literal["prob", "logit", "max"]
"""How views become the score of their video: the mean of softmax scores (paper section 4.3), of
scores before softmax, or the highest softmax score of each class."""
AVERAGES: tuple[Average, ...] = get_args(Average)
ARRAYS = {"video": 1, "label": 1, "ok": 1, "view_logits": 4, "view_probs": 4}
"""Arrays that are read, and their dimensions."""
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise over files that are damaged or hold something else."""


@dataclass(frozen=True)
class Scores:
    """Scores of all views, in list order; rows of videos that failed are NaN.

    Attributes:
        videos: N names, as they stand in the list.
        labels: (N,) int64.
        ok: (N,) bool, whether the video could be read.
        view_logits: (N, J, P, K) float32, mean over the locations of a view.
        view_probs: (N, J, P, K) float32, softmax at each location, mean over locations.
    """

    videos: tuple[str, ...]
    labels: np.ndarray
    ok: np.ndarray
    view_logits: np.ndarray
    view_probs: np.ndarray

    @property
    def num_clips(self) -> int:
        """Clips of each video, J."""
        return int(self.view_probs.shape[1])

    @property
    def num_classes(self) -> int:
        """Classes, K."""
        return int(self.view_probs.shape[3])

    def of_videos(
        self, average: Average = "prob", clips: Sequence[int] | None = None
    ) -> np.ndarray:
        """Scores of the videos, (N, K) float32, by some of their clips or by all.

        Args:
            clips: which of the J clips, each in [0, J); None for all.
        """
        views = self.view_logits if average == "logit" else self.view_probs
        chosen = views if clips is None else views[:, list(clips)]
        if average == "max":
            return np.asarray(chosen.max((1, 2)))
        # Crops first, as they are averaged for clip_probs: so the sums are the same.
        return np.asarray(chosen.mean(2).mean(1))


def write_scores(path: Path, scores: Scores, average: Average = "prob") -> None:
    """Write ``scores.npz`` whole or not at all.

    Beside what :class:`Scores` holds it has what most readers want: ``probs`` (N, K), the scores
    of the videos by ``average``, and ``clip_probs`` and ``clip_logits`` (N, J, K), means over
    crops.
    """
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            video=np.array(scores.videos, dtype=np.str_),
            label=scores.labels,
            ok=scores.ok,
            probs=scores.of_videos(average),
            clip_probs=scores.view_probs.mean(2),
            clip_logits=scores.view_logits.mean(2),
            view_probs=scores.view_probs,
            view_logits=scores.view_logits,
        )


def read_scores(path: Path) -> Scores:
    """Read a ``scores.npz``.

    Raises:
        RunError: there is no such file, or it holds something else.
    """
    shown = printable(path)
    try:
        # Opened here: numpy leaves a file that it cannot read open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file.files}
    except FileNotFoundError as error:
        raise RunError(f"{shown}: no such file; `videogn test` writes it") from error
    except DAMAGE as error:
        raise RunError(f"{shown}: is no file of scores: {printable(error)}; test again") from error
    missing = sorted(ARRAYS.keys() - arrays.keys())
    if missing:
        raise RunError(
            f"{shown}: has no {', '.join(missing)}; test again to get scores of every view"
        )
    _check(shown, arrays)
    return Scores(
        videos=tuple(map(str, arrays["video"])),
        labels=arrays["label"],
        ok=arrays["ok"],
        view_logits=arrays["view_logits"],
        view_probs=arrays["view_probs"],
    )


def _check(shown: str, arrays: dict[str, Any]) -> None:
    wrong = [name for name, dims in ARRAYS.items() if arrays[name].ndim != dims]
    if not wrong:
        shape, num_videos = arrays["view_probs"].shape, len(arrays["video"])
        kinds = {"label": "i", "ok": "b", "view_logits": "f", "view_probs": "f", "video": "U"}
        wrong = [
            name
            for name in ARRAYS
            if len(arrays[name]) != num_videos
            or arrays[name].dtype.kind != kinds[name]
            or (name.startswith("view") and (arrays[name].shape != shape or 0 in shape))
        ]
        labels = arrays["label"]
        if not wrong and (labels.min() < 0 or labels.max() >= shape[3]):
            wrong = ["label"]
    if wrong:
        raise RunError(f"{shown}: is no file of scores: {', '.join(wrong)} cannot be; test again")
