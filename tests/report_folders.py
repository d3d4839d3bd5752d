"""Made-up folders of tests and training runs, for the tests of the report."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from videogn.config import Config
from videogn.config_files import to_tree

CELLS = {
    "bn_32x2_b8": ("bn", 32, 2, 8, 73.0),
    "bn_32x2_b4": ("bn", 32, 2, 4, 71.8),
    "bn_64x1_b4": ("bn", 64, 1, 4, 73.5),
    "gn_32x2_b8": ("gn", 32, 2, 8, 72.9),
    "gn_32x2_b4": ("gn", 32, 2, 4, 73.0),
    "gn_64x1_b4": ("gn", 64, 1, 4, 74.1),
}
"""Name -> norm, frames, stride, clips per GPU and about what accuracy."""


def config_tree(
    norm: str = "bn", frames: int = 32, stride: int = 2, clips: int = 8, num_classes: int = 400
) -> dict[str, Any]:
    """A whole config as ``results.json`` has it."""
    tree = to_tree(Config())
    tree["model"] |= {"norm": norm, "num_classes": num_classes}
    tree["clip"] |= {"num_frames": frames, "frame_stride": stride}
    tree["train"] |= {"clips_per_gpu": clips}
    return tree


def make_probs(
    labels: np.ndarray, num_classes: int, percent: float, seed: int, neighbours: int = 3
) -> np.ndarray:
    """(N, K) float32: mistakes go to classes that stand next to the true one."""
    random = np.random.default_rng(seed)
    num_videos = len(labels)
    hard = random.beta(5, 2, num_classes) * 1.24 * percent / 100
    right = random.random(num_videos) < np.clip(hard[labels], 0, 1)
    away = random.integers(1, neighbours + 1, num_videos)
    guess = np.where(right, labels, (labels + away) % num_classes)
    logits = random.normal(0, 1, (num_videos, num_classes))
    logits[np.arange(num_videos), labels] += 4
    logits[np.arange(num_videos), guess] += random.gamma(4, 1.6, num_videos)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def write_test(
    folder: Path,
    probs: np.ndarray,
    labels: np.ndarray,
    *,
    config: Mapping[str, Any],
    failed: Mapping[int, str] | None = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    **about: Any,
) -> None:
    """``results.json`` and ``scores.npz`` of a test; rows of ``failed`` places are made NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = failed or {}
    names = names or [f"val/video_{place:05d}.mp4" for place in range(len(labels))]
    ok = np.ones(len(labels), dtype=bool)
    ok[list(failed)] = False
    probs = np.where(ok[:, None], probs, np.nan).astype(np.float32)
    own = np.where(ok, np.take_along_axis(probs, labels[:, None], 1)[:, 0], -1)
    rank = np.where(ok, (probs > own[:, None]).sum(1), probs.shape[1])
    np.savez(
        folder / "scores.npz",
        video=np.array(names, dtype=np.str_),
        label=labels.astype(np.int64),
        ok=ok,
        probs=probs,
    )
    results = {
        "top1": 100 * float((rank < 1).mean()),
        "top5": 100 * float((rank < 5).mean()),
        "num_videos": len(labels),
        "num_failed": len(failed),
        "failed": [{"path": names[place], "reason": why} for place, why in failed.items()],
        "protocol": "paper",
        "num_clips": 10,
        "num_crops": 1,
        "average": "prob",
        "short_side": 256,
        "fps": None,
        "reader": "pyav",
        "list": "data/kinetics400/val.csv",
        "list_sha256": "5d" * 32,
        "checkpoint": "runs/some/checkpoints/last.safetensors",
        "checkpoint_sha256": "c4" * 32,
        "weights": "last",
        "iteration": 400_000,
        "config": config,
        "class_names": None if class_names is None else list(class_names),
        **about,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2))


def write_training(
    folder: Path,
    config: Mapping[str, Any],
    errors: Mapping[int, float],
    *,
    global_batch: int = 64,
    num_videos: int = 234_643,
) -> None:
    """``config.yaml`` and ``log.jsonl`` of a run with these 1-clip errors at these iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    start = {
        "kind": "start",
        "iteration": 0,
        "num_videos": num_videos,
        "global_batch": global_batch,
        "clips_per_gpu": config["train"]["clips_per_gpu"],
    }
    entries = [start]
    for iteration, error in errors.items():
        entries.append({"kind": "train", "iteration": iteration, "loss": 1.0})
        entries.append({"kind": "val", "iteration": iteration, "top1": 100 - error, "top5": 90.0})
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "log.jsonl").write_text(lines)


def write_thumbnails(folder: Path, pictures: Mapping[int, bytes]) -> None:
    """``thumbnails.npz`` of JPEGs by place."""
    np.savez(
        folder / "thumbnails.npz",
        place=np.array(list(pictures), dtype=np.int64),
        data=np.frombuffer(b"".join(pictures.values()), dtype=np.uint8),
        end=np.cumsum([len(jpeg) for jpeg in pictures.values()], dtype=np.int64),
    )


def jpeg(seed: int, width: int = 220, height: int = 124) -> bytes:
    """Some picture."""
    from PIL import Image

    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / height
    waves = [np.sin(across * a + down * b) for a, b in random.uniform(1, 9, (3, 2))]
    pixels = (127 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=75)
    return written.getvalue()


def falling(final: float, last: int, step: int) -> dict[int, float]:
    """Errors of a training with two drops of the learning rate."""
    found = {}
    for number, iteration in enumerate(range(step, last + 1, step)):
        share = iteration / last
        above = 22 * np.exp(-share * 4) + (9 if share < 0.375 else 2 if share < 0.75 else 0)
        found[iteration] = float(final + above + 0.6 * np.sin(number * 2.3))
    return found


def make_cell(
    folder: Path, name: str, num_videos: int, class_names: Sequence[str] | None = None
) -> Path:
    """A training run with its test, for one cell of Table 8."""
    norm, frames, stride, clips, percent = CELLS[name]
    seed = list(CELLS).index(name)
    labels = np.arange(num_videos) % 400
    config = config_tree(norm, frames, stride, clips)
    run = folder / name
    last = 400_000 * 8 // clips
    write_training(run, config, falling(103 - percent, last, last // 20), global_batch=8 * clips)
    write_test(
        run / "test",
        make_probs(labels, 400, percent, seed),
        labels,
        config=config,
        class_names=class_names,
        iteration=last,
        checkpoint=f"runs/{name}/checkpoints/last.safetensors",
        checkpoint_sha256=f"{seed:02d}ab" * 16,
    )
    return run
