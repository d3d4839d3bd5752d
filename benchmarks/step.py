"""Training step and inference of our network beside pytorchvideo's, interleaved, as ratios.

    python benchmarks/step.py [--frames 8] [--size 112] [--clips 2] [--rounds 7]

Both build the 8x8 network ("zoo" layout); pytorchvideo's has BN only. One process, one round runs
every candidate once in turn, the medians over rounds are compared. On a GPU where there is one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorchvideo.models.hub.resnet import i3d_r50 as pytorchvideo_i3d_r50
from torch import Tensor, nn

from videogn.models import i3d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (words.clips, 3, words.frames, words.size, words.size)
    clips = torch.randn(shape, device=device)
    networks = {
        "pytorchvideo bn": pytorchvideo_i3d_r50(pretrained=False),
        "videogn bn": i3d(norm="bn", layout="zoo"),
        "videogn gn": i3d(norm="gn", layout="zoo"),
    }
    print(f"{shape} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for kind, step in (("train", train_step), ("infer", infer)):
        candidates = {name: (net.to(device), step) for name, net in networks.items()}
        seconds = interleave(candidates, clips, words.rounds)
        base = seconds["pytorchvideo bn"]
        for name, value in seconds.items():
            print(f"{kind}  {name:16} {value:8.3f} s   {value / base:5.2f} x pytorchvideo bn")


def train_step(network: nn.Module, clips: Tensor) -> None:
    network.train()
    labels = torch.zeros(len(clips), dtype=torch.long, device=clips.device)
    F.cross_entropy(network(clips), labels).backward()
    network.zero_grad(set_to_none=True)


def infer(network: nn.Module, clips: Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        network(clips)


def interleave(
    candidates: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], None]]],
    clips: Tensor,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of each candidate, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, (network, step) in candidates.items():
            synchronise(clips)
            started = time.perf_counter()
            step(network, clips)
            synchronise(clips)
            if round_number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise(clips: Tensor) -> None:
    if clips.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
