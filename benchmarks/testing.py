"""The multi-clip test beside pytorchvideo's and mmaction2's way of reading, as ratios.

    python benchmarks/testing.py VIDEO … [--rounds 3] [--workers 0] [--width 64] [--device cuda]

Ten clips of 32x2 frames with three crops of 256 pixels of every video, by the same network. Ours is
what ``videogn test`` does: one decode per video, all views in one pass where they fit. As their
users test: ``pytorchvideo`` decodes clip by clip (LabeledVideoDataset with its constant sampler),
scales floats and makes an item of each view; ``mmaction2`` decodes a video's clips by decord in one
call, scales each frame and cuts the crops of all. Each peer is compared with ours under the
protocol of its name, which asks for the same frames. Rounds are interleaved, medians are compared;
once with the network and once with reading alone. ``--width 0`` leaves the network out.
"""

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from videogn.data.dataset import TestDataset
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import build_test_loader
from videogn.data.opening import VideoOpener
from videogn.data.transforms import normalize
from videogn.data.workers import Workers
from videogn.engine.evaluator import Scorer, class_scores
from videogn.engine.pass_size import make_pass_size
from videogn.engine.recipes import make_ready
from videogn.models import i3d

FRAMES, STRIDE, NUM_CLIPS, NUM_CROPS, SIDE, RATE = 32, 2, 10, 3, 256, 30
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
VIEWS = NUM_CLIPS * NUM_CROPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--width", type=int, default=64, help="channels of the stem; 64 is R50's")
    parser.add_argument("--norm", default="gn", choices=["bn", "gn"])
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    paths = [str(path) for path in words.videos]
    device = torch.device(words.device)
    compare("reading alone", paths, None, words, device)
    if words.width:
        groups = max(1, words.width // 32)
        network = i3d(norm=words.norm, width=words.width, channels_per_group=2 * groups).eval()
        compare(f"with a {words.norm} network", paths, network.to(device), words, device)


def compare(
    what: str, paths: list[str], network: nn.Module | None, words: Any, device: torch.device
) -> None:
    ways = {
        f"videogn, {protocol}": our_test(paths, protocol, network, words.workers, device)
        for protocol in ("pytorchvideo", "mmaction2")
    }
    if importlib.util.find_spec("pytorchvideo"):
        ways["pytorchvideo"] = peer_test(pytorchvideo_views, paths, network, words.workers, device)
    if importlib.util.find_spec("decord"):
        ways["mmaction2"] = peer_test(mmaction2_views, paths, network, words.workers, device)
    seconds = interleave(ways, words.rounds)
    print(f"\n{what}: {len(paths)} videos, {VIEWS} views each, {device}, {words.workers} workers")
    for name, value in seconds.items():
        ours = seconds.get(f"videogn, {name}")
        ratio = "" if ours is None else f"   ours {value / ours:5.2f} x as fast"
        print(f"  {name:24} {len(paths) / value:8.3f} videos/s{ratio}", flush=True)


def interleave(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; one round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, test in ways.items():
            started = time.monotonic()
            scored = test()
            assert scored > 0, name
            if number:
                times[name].append(time.monotonic() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def our_test(
    paths: list[str], protocol: str, network: nn.Module | None, workers: int, device: torch.device
) -> Callable[[], int]:
    dataset = TestDataset(
        [VideoRecord(path, 0, path) for path in paths],
        num_frames=FRAMES,
        frame_stride=STRIDE,
        num_clips=NUM_CLIPS,
        num_crops=NUM_CROPS,
        protocol=protocol,
        short_side=SIDE,
        crop_size=224,
        open_video=VideoOpener("pyav", None),
        planar=device.type == "cuda",
    )

    if network is not None:
        # As the command does, short of compiling: folded batch norms, the device's fastest order.
        network = copy.deepcopy(network)
        layout = make_ready(
            network, "views" if device.type == "cpu" else "eager", (FRAMES, SIDE, SIDE)
        )

    def test() -> int:
        videos = build_test_loader(dataset, range(len(paths)), Workers(workers))
        if network is None:
            # As far as the peers' readers go: normalised views.
            return sum(len(normalize(video.on(device).stack(), MEAN, STD)) for video in videos)
        sizes = make_pass_size(
            network,
            class_scores,
            fixed=None,
            precision="fp32",
            device=device,
            sharing=1,
            memory_format=layout,
        )
        scorer = Scorer(class_scores(network), device, MEAN, STD, "fp32", sizes, layout)
        return sum(score.arrays is not None for score in scorer.scores(videos))

    return test


def peer_test(
    views_of: Callable[[list[str], int], Iterator[Tensor]],
    paths: list[str],
    network: nn.Module | None,
    workers: int,
    device: torch.device,
) -> Callable[[], int]:
    """A test whose views come as (B, 3, T, H, W) float batches."""

    @torch.inference_mode()
    def test() -> int:
        count = 0
        for views in views_of(paths, workers):
            there = views.to(device)
            if network is not None:
                class_scores(network)(there)[1].cpu()
            count += len(there)
        return count

    return test


def pytorchvideo_views(paths: list[str], workers: int) -> Iterator[Tensor]:
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    sampler = make_clip_sampler(
        "constant_clips_per_video", FRAMES * STRIDE / RATE, NUM_CLIPS, NUM_CROPS
    )
    dataset = LabeledVideoDataset(
        [(path, {"label": 0}) for path in paths],
        sampler,
        video_sampler=torch.utils.data.SequentialSampler,
        transform=pytorchvideo_view,
        decode_audio=False,
    )
    yield from DataLoader(dataset, batch_size=VIEWS, num_workers=min(workers, len(paths)))


def pytorchvideo_view(sample: dict[str, Any]) -> Tensor:
    """A view as its users make it: floats, normalised, scaled and cut.

    The transforms themselves cannot be imported beside a current torchvision.
    """
    frames = sample["video"]
    clip = frames[:, torch.linspace(0, frames.shape[1] - 1, FRAMES).long()].transpose(0, 1)
    factor = SIDE / min(clip.shape[2:])
    size = [max(SIDE, int(side * factor)) for side in clip.shape[2:]]
    scaled = F.interpolate((clip / 255 - MEAN[0]) / STD[0], size=size, mode="bilinear")
    offset = sample["aug_index"] * (max(size) - SIDE) // 2
    top, left = (offset, 0) if size[0] > size[1] else (0, offset)
    return scaled[:, :, top : top + SIDE, left : left + SIDE].transpose(0, 1)


def mmaction2_views(paths: list[str], workers: int) -> Iterator[Tensor]:
    yield from DataLoader(
        Mmaction2Videos(paths), batch_size=None, num_workers=min(workers, len(paths))
    )


class Mmaction2Videos(Dataset[Tensor]):
    """All views of a video in one item, as its test pipeline makes them."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        import decord

        video = decord.VideoReader(self._paths[index], num_threads=1)
        room = max(len(video) - ((FRAMES - 1) * STRIDE + 1), 0)
        starts = np.around(np.arange(NUM_CLIPS) * room / (NUM_CLIPS - 1)).astype(np.int64)
        numbers = (starts[:, None] + np.arange(FRAMES) * STRIDE) % len(video)
        frames = video.get_batch(numbers.ravel()).asnumpy()
        factor = SIDE / min(frames.shape[1:3])
        size = tuple(int(side * factor + 0.5) for side in frames.shape[2:0:-1])
        scaled = np.stack([cv2.resize(frame, size) for frame in frames])
        height, width = scaled.shape[1:3]
        step = (max(height, width) - SIDE) // 2
        offsets = (0, 2 * step, step)
        crops = [
            scaled[:, offset : offset + SIDE]
            if height > width
            else scaled[:, :, offset:][:, :, :SIDE]
            for offset in offsets
        ]
        normal = [(crop.astype(np.float32) / 255 - MEAN[0]) / STD[0] for crop in crops]
        views = np.stack([view.reshape(NUM_CLIPS, FRAMES, SIDE, SIDE, 3) for view in normal])
        return torch.from_numpy(
            views.reshape(VIEWS, FRAMES, SIDE, SIDE, 3).transpose(0, 4, 1, 2, 3)
        )


if __name__ == "__main__":
    main()
