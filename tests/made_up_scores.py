"""Finished tests that no network has made."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videogn.engine.scores import Average, Scores, write_scores


def made_up_scores(
    labels: Sequence[int],
    *,
    num_classes: int = 4,
    num_clips: int = 3,
    num_crops: int = 2,
    failed: Sequence[int] = (),
    names: Sequence[str] | None = None,
    seed: int = 0,
    levels: int = 5,
) -> Scores:
    """Scores of few levels, so that ties are common and the order of sums matters."""
    generator = np.random.default_rng(seed)
    shape = (len(labels), num_clips, num_crops, num_classes)
    logits = (generator.integers(0, levels, size=shape) * 0.7 / levels).astype(np.float32)
    powers = np.exp(logits)
    probs = powers / powers.sum(-1, keepdims=True)
    ok = np.ones(len(labels), dtype=bool)
    ok[list(failed)] = False
    logits[~ok] = probs[~ok] = np.nan
    return Scores(
        videos=tuple(names or (f"v{place}.mp4" for place in range(len(labels)))),
        labels=np.array(labels, dtype=np.int64),
        ok=ok,
        view_logits=logits,
        view_probs=probs,
    )


def write_test(
    folder: Path, scores: Scores, average: Average = "prob", **results: Any
) -> dict[str, Any]:
    """Write both files of a test; accuracies are counted video by video. Returns the results."""
    write_scores(folder / "scores.npz", scores, average)
    with np.load(folder / "scores.npz") as file:
        ranks = plain_ranks(file["probs"], scores)
    right = {k: sum(r < k for r in ranks if r is not None) for k in (1, 5)}
    results = {
        **{f"top{k}": 100.0 * count / len(ranks) for k, count in right.items()},
        "num_videos": len(ranks),
        "num_failed": ranks.count(None),
        "average": average,
        **results,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return results


def plain_ranks(probs: np.ndarray, scores: Scores) -> list[int | None]:
    """The rank of each video's true class by sorting, the lower class first; None if it failed."""
    ranks: list[int | None] = []
    for row, label, ok in zip(probs.tolist(), scores.labels.tolist(), scores.ok, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        ranks.append(order.index(label) if ok else None)
    return ranks
