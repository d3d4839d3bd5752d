"""Section norms: bandwidth that norm and pool kernels achieve, beside a copy's and eager layers'.

Bandwidth is bytes that fused kernels must move over time, also for eager layers, so that columns
compare. Tensors that the cache could hold are rotated among several.
"""
# ruff: noqa: RUF001

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compute_parts.scale import Bench
from compute_parts.shapes import NormShape, PoolShape, work_of
from compute_parts.timing import Failure, Timer, attempt, free

EPS = 1e-5
ROTATED_BYTES = 2**28
"""Tensors of one kind that are gone through before one is met again: several times the L2."""
BAR_BYTES = 64e6
"""Size from which the bar holds."""
FORMATS = {"last": torch.channels_last_3d, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Layer:
    """Random tensors of one norm layer, several sets of them."""

    shape: NormShape
    groups: int
    x: list[Tensor]
    residual: list[Tensor]
    grad: list[Tensor]
    weight: Tensor
    bias: Tensor


def measure_norms(bench: Bench, seconds: float) -> None:
    """Tables of the pools, of every distinct norm shape of pv32, and of others' kernels."""
    timer, page = bench.within(seconds), bench.page
    measure_pools(bench, timer)
    work = work_of(bench.scale, "pv32", bench.scale.clips, view(bench))
    page.title(f"Norm kernels, {bench.scale.clips} clips of pv32, shares of the copy rate")
    page.say(
        "stats reads x; act reads x (and a residual) and writes y; forward is both. MB: x, bf16."
    )
    page.say(
        "copy is torch's of such a tensor: what starting and ending leave of the rate at its size."
    )
    page.say()
    page.table(
        "C×T×H×W", "+res", "MB", "layout", "norm", "copy", "stats", "act", "forward", "backward",
        "eager fwd ms", "eager bwd ms", "ours fwd ms", "ours bwd ms",
    )  # fmt: skip
    shapes = sorted(work.norms, key=lambda shape: (-shape.nbytes, shape.residual))
    cases = [(s, layout, "gn") for layout in FORMATS for s in shapes]
    cases[len(shapes) : len(shapes)] = [(s, "last", "bn") for s in shapes[:6]]
    for shape, layout, norm in cases:
        if timer.left() < 0:
            page.row(*["time is up"] * 3)
            break
        measure_layer(bench, shape, layout, norm)
        free()
    measure_others(bench, timer, shapes[0])


def view(bench: Bench) -> tuple[int, int, int]:
    return (bench.scale.frames[0], bench.scale.size, bench.scale.size)


def layer_of(bench: Bench, shape: NormShape, layout: str) -> Layer:
    sets = 1 if bench.dry else max(1, min(8, ROTATED_BYTES // shape.nbytes))

    def tensors(count: int) -> list[Tensor]:
        made = []
        for _ in range(count):
            x = torch.empty(shape.size, dtype=torch.bfloat16, device=bench.device)
            made.append(x.to(memory_format=FORMATS[layout]).normal_(1.0, 2.0))
        return made

    channels = shape.size[1]
    return Layer(
        shape,
        min(channels, bench.scale.network.get("num_groups", 32)),
        tensors(sets),
        tensors(sets if shape.residual else 0),
        tensors(sets),
        torch.rand(channels, device=bench.device) + 0.5,
        torch.randn(channels, device=bench.device),
    )


def measure_layer(bench: Bench, shape: NormShape, layout: str, norm: str) -> None:
    layer = attempt(lambda: layer_of(bench, shape, layout))
    name = "×".join(map(str, shape.size[1:]))
    head = (name, "+" if shape.residual else "", shape.nbytes / 1e6, layout, norm)
    if isinstance(layer, Failure):
        bench.page.row(*head, layer)
        return
    ours = attempt(lambda: kernel_seconds(bench, layer, norm))
    eager = attempt(lambda: passes_seconds(bench, layer, eager_call(layer, norm)))
    copied = attempt(lambda: copy_share(bench, layer))
    shares: list[Any] = [None] * 4
    if isinstance(ours, Failure):
        shares[0] = ours
    else:
        act = shape.passes(backward=False) - 1
        passes = (1, act, 1 + act, shape.passes(backward=True))
        shares = [
            share(bench, shape, count, taken) for count, taken in zip(passes, ours, strict=True)
        ]
        if norm == "gn" and shape.nbytes >= BAR_BYTES:
            note_worst(bench, layout, shares, copied)
    bench.page.row(*head, copied, *shares, *milliseconds(eager), *milliseconds(ours, skip=2))


def share(bench: Bench, shape: NormShape, passes: int, seconds: float) -> float:
    """Of the copy's bandwidth."""
    return passes * shape.nbytes / seconds / bench.known.get("copy", float("nan"))


def copy_share(bench: Bench, layer: Layer) -> float:
    """Of the copy's bandwidth, what a copy of a tensor of this size has."""
    target, count = torch.empty_like(layer.x[0]), len(layer.x)
    seconds = bench.timer.kernel(lambda number: target.copy_(layer.x[number % count]))
    return share(bench, layer.shape, 2, seconds)


def note_worst(bench: Bench, layout: str, shares: list[float], copied: "float | Failure") -> None:
    """The smallest shares of a large tensor's copy, and of a copy of the tensor itself."""
    for kernel, value in zip(("stats", "act", "forward", "backward"), shares, strict=True):
        noted = {f"worst share {layout} {kernel}": value}
        if not isinstance(copied, Failure):
            noted[f"worst of its copy {layout} {kernel}"] = value / copied
        for name, found in noted.items():
            bench.known[name] = min(found, bench.known.get(name, float("inf")))


def milliseconds(seconds: Any, skip: int = 0) -> list[Any]:
    return [seconds, None] if isinstance(seconds, Failure) else [1e3 * s for s in seconds[skip:]]


def kernel_seconds(bench: Bench, layer: Layer, norm: str) -> tuple[float, float, float, float]:
    """Seconds of statistics, activation, both, and the backward pass of the fused layer."""
    from videogn.models.kernels import norm as kernels  # noqa: F401  (registers the operators)

    operators = torch.ops.videogn
    over_batch, groups = norm == "bn", layer.groups
    if over_batch:
        groups = layer.shape.size[1]
    count = len(layer.x)

    def stats(number: int) -> tuple[Tensor, Tensor]:
        return operators.norm_stats(layer.x[number % count], groups, over_batch, EPS)

    mean, rstd = stats(0)

    def act(number: int) -> Tensor:
        residual = layer.residual[number % count] if layer.residual else None
        x = layer.x[number % count]
        # Of whichever set: the time does not depend on it.
        return operators.norm_act(
            x, mean, rstd, layer.weight, layer.bias, residual, layer.shape.relu, False
        )

    with torch.no_grad():
        parts = bench.timer.kernel(stats), bench.timer.kernel(act)
    return (*parts, *passes_seconds(bench, layer, fused_call(layer, norm)))


Call = Callable[[Tensor, Tensor | None], Tensor]


def fused_call(layer: Layer, norm: str) -> Call:
    from videogn.models.kernels import norm as kernels

    relu = layer.shape.relu

    def group(x: Tensor, residual: Tensor | None) -> Tensor:
        return kernels.group_norm(
            x, layer.weight, layer.bias, layer.groups, EPS, residual=residual, relu=relu
        )

    def batch(x: Tensor, residual: Tensor | None) -> Tensor:
        return kernels.batch_norm(
            x, layer.weight, layer.bias, None, None, training=True, residual=residual, relu=relu
        )

    return group if norm == "gn" else batch


def eager_call(layer: Layer, norm: str) -> Call:
    """As an eager network under autocast computes it: GN in float32, BN in bf16."""

    def call(x: Tensor, residual: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            if norm == "gn":
                y = F.group_norm(x, layer.groups, layer.weight, layer.bias, EPS)
            else:
                y = F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.1, EPS)
            if residual is not None:
                y = y + residual
            return y.relu_() if layer.shape.relu else y

    return call


def passes_seconds(bench: Bench, layer: Layer, call: Call) -> tuple[float, float]:
    """Seconds of forward and backward pass of a layer."""
    count = len(layer.x)
    residuals: list[Any] = layer.residual or [None] * count
    leaves = [x.detach().requires_grad_() for x in layer.x]
    added = [None if r is None else r.detach().requires_grad_() for r in residuals]
    wanted = [layer.weight.requires_grad_(), layer.bias.requires_grad_()]

    def forward(number: int) -> Tensor:
        return call(leaves[number % count], added[number % count])

    def gradients(number: int, y: Tensor) -> object:
        at = number % count
        inputs = [leaves[at], *wanted] + ([] if added[at] is None else [added[at]])
        grad = layer.grad[at].to(y.dtype)
        return torch.autograd.grad(y, inputs, grad, retain_graph=True)

    forward_seconds = bench.timer.kernel(forward)
    graphs = [forward(number) for number in range(count)]
    backward_seconds = bench.timer.kernel(lambda n: gradients(n, graphs[n % count]))
    return forward_seconds, backward_seconds


def measure_pools(bench: Bench, timer: Timer) -> None:
    """Max pools of both layouts beside torch's; ms of forward and backward."""
    bench.page.title("Max pools, bf16: ms forward / backward and share of the copy rate")
    bench.page.table(
        "C×T×H×W", "window", "layout", "torch fwd", "torch bwd", "ours fwd", "ours bwd",
        "share fwd", "share bwd",
    )  # fmt: skip
    works = [work_of(bench.scale, n, bench.scale.clips, view(bench)) for n in ("pv32", "org32")]
    for shape, layout in [(s, layout) for w in works for s in w.pools for layout in FORMATS]:
        if timer.left() < 0:
            bench.page.row("time is up")
            break
        measure_pool(bench, shape, layout)
    free()


def measure_pool(bench: Bench, shape: PoolShape, layout: str) -> None:
    from videogn.models.kernels.pool import max_pool3d

    x = torch.randn(shape.in_size, device=bench.device, dtype=torch.bfloat16)
    x = x.relu_().to(memory_format=FORMATS[layout]).requires_grad_()
    window: Any = (shape.kernel, shape.stride, shape.padding)

    def seconds(pool: Callable[..., Tensor]) -> tuple[float, float]:
        y = pool(x, *window)
        grad = torch.randn_like(y)
        back = bench.timer.kernel(lambda _: torch.autograd.grad(y, x, grad, retain_graph=True))
        return bench.timer.kernel(lambda _: pool(x, *window)), back

    torchs = attempt(lambda: seconds(F.max_pool3d))
    ours = attempt(lambda: seconds(max_pool3d))
    shares: list[Any] = [None, None]
    if not isinstance(ours, Failure):
        # Both ways: inputs in 16 bits, outputs in 16 bits with one byte each.
        moved = 2 * prod(shape.in_size) + 3 * prod(shape.out_size)
        shares = [moved / taken / bench.known.get("copy", float("nan")) for taken in ours]
    size, kernel = ("×".join(map(str, part)) for part in (shape.in_size[1:], shape.kernel))
    bench.page.row(size, kernel, layout, *milliseconds(torchs), *milliseconds(ours), *shares)


def measure_others(bench: Bench, timer: Timer, shape: NormShape) -> None:
    """The largest layer by other people's kernels, where they install."""
    bench.page.title("The largest norm layer by others, ms forward / backward")
    bench.page.table("what", "layout", "forward", "backward")
    for layout in FORMATS:
        layer = attempt(lambda layout=layout: layer_of(bench, shape, layout))
        if isinstance(layer, Failure):
            bench.page.row("tensors", layout, layer)
            continue
        ways: dict[str, Callable[[], Call]] = {}
        if not bench.dry:
            ways["torch.compile of GN"] = lambda layer=layer: compiled_call(layer)
        if layout == "last":
            ways["apex GroupNorm"] = lambda layer=layer: apex_call(layer)
        for name, make in ways.items():
            if timer.left() < 0:
                bench.page.row(name, layout, "time is up")
                continue
            taken = attempt(lambda make=make, layer=layer: passes_seconds(bench, layer, make()))
            bench.page.row(name, layout, *milliseconds(taken))
        free()


def compiled_call(layer: Layer) -> Call:
    return torch.compile(eager_call(layer, "gn"), dynamic=False)


def apex_call(layer: Layer) -> Call:
    from apex.contrib.group_norm import GroupNorm  # type: ignore[import-not-found]

    channels, frames = layer.shape.size[1:3]
    module = GroupNorm(layer.groups, channels, EPS, device=layer.weight.device)
    fitting = layer.groups in module.SUPPORTED_GROUPS and channels in module.SUPPORTED_CHANNELS
    if not fitting:
        # It would leave the layer to torch without a word.
        raise RuntimeError(f"apex has no kernel for {channels} channels in {layer.groups} groups")
    affine = {"weight": layer.weight, "bias": layer.bias}

    def call(x: Tensor, residual: Tensor | None) -> Tensor:
        # 4D alone; frames are put beside each other without a copy.
        images = x.permute(0, 2, 3, 4, 1).flatten(1, 2).permute(0, 3, 1, 2)
        y = torch.func.functional_call(module, affine, (images,))
        y = y.permute(0, 2, 3, 1).unflatten(1, (frames, -1)).permute(0, 4, 1, 2, 3)
        if residual is not None:
            y = y + residual
        return y.relu() if layer.shape.relu else y

    return call
