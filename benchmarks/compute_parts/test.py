"""Section test: ten clips of one video through the network, in videos per second."""
# ruff: noqa: RUF001

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from compute_parts.networks import (
    AUTO,
    FUSED,
    FUSED_BN,
    LAST,
    LAYOUTS,
    PYTORCHVIDEO,
    Form,
    autocast,
    built,
    initialised,
    network_input,
    prepared,
)
from compute_parts.scale import Bench
from compute_parts.timing import Failure, attempt, free
from videogn.engine.pass_size import PassSize
from videogn.engine.replays import REPEATS, Replays
from videogn.models.folding import fold_batch_norms

FOLDED = "BN folded, "
BN_TEST, GN_TEST = f"{FOLDED}2D frames, 3D steps, graphs", "GN fused, graphs"
"""What the toolkit does."""
WAYS = {
    "BN eager fp32 contiguous": Form("bn", precision="fp32"),
    "GN eager fp32 contiguous": Form("gn", precision="fp32"),
    "BN eager bf16 contiguous": Form("bn"),
    "GN eager bf16 contiguous": Form("gn"),
    f"{FOLDED}3D channels last": Form("bn", memory_format=LAST),
    f"{FOLDED}2D frames, 3D steps": FUSED_BN,
    BN_TEST: replace(FUSED_BN, graph=True),
    "GN fused": FUSED,
    GN_TEST: AUTO,
    "pytorchvideo fp32": replace(PYTORCHVIDEO, precision="fp32"),
    "pytorchvideo bf16": PYTORCHVIDEO,
}


def measure_test(bench: Bench, seconds: float) -> None:
    """Videos per second of each way, interleaved, for both layouts."""
    timer, page, scale = bench.within(seconds), bench.page, bench.scale
    sizes = "×".join(map(str, scale.test))
    # That of the bars first, should time be short.
    for layout in reversed(LAYOUTS):
        page.title(f"Test, {layout}: {scale.views} clips of {sizes} a video")
        page.table("way", "ms a video", "videos/s", "speed / BN eager fp32")
        calls: dict[str, Callable[[], object]] = {}
        failures: dict[str, Failure] = {}
        for name, form in WAYS.items():
            if layout == "org32" and form.source != "ours":
                continue
            if timer.left() < 0:
                page.row("time is up")
                break
            call = attempt(lambda a=(form, layout, name): scoring(bench, *a))
            if isinstance(call, Failure):
                failures[name] = call
            else:
                calls[name] = call
        times = timer.interleaved(calls, min(3, scale.rounds), 1) | failures
        base = times.get("BN eager fp32 contiguous")
        for name, taken in times.items():
            if isinstance(taken, Failure):
                page.row(name, taken)
                continue
            bench.known[f"test {layout} {name}"] = taken
            speed = base / taken if isinstance(base, float) else None
            page.row(name, 1e3 * taken, 1 / taken, speed)
        calls.clear()
        free()


def scoring(bench: Bench, form: Form, layout: str, name: str) -> Callable[[], object]:
    """What scores one video; it has run twice, or until it is captured and once more."""
    make = folded_network if name.startswith(FOLDED) else built
    network = make(bench, form, layout)
    network.eval()
    frames, height, width = bench.scale.test
    shape = (bench.scale.views, frames, height, width, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device).movedim(-1, 1)

    def measure(views: Tensor) -> tuple[Tensor]:
        return (network(views).float().softmax(1),)

    replays = None
    if form.graph and not bench.dry:
        room = PassSize(bench.scale.views, sys.maxsize, lambda view: 1)
        replays = Replays(measure, bench.device, form.precision, form.memory_format, room, print)

    @torch.inference_mode()
    def score() -> Tensor:
        replay = None if replays is None else replays.of(video.shape)
        inputs = network_input(video, form, None if replay is None else replay.views)
        if replay is not None:
            return replay.run()[0].mean(0)
        with autocast(form, bench.device):
            return measure(inputs)[0].mean(0)

    for _ in range(1 if bench.dry else 2 + (REPEATS if form.graph else 0)):
        score()
    return score


def folded_network(bench: Bench, form: Form, layout: str) -> nn.Module:
    network = initialised(bench, "bn", layout)
    fold_batch_norms(network, bench.scale.test)
    return prepared(network, form, bench.device)
