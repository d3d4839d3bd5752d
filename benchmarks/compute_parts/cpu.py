"""Sections recipes and cputrain: inference and training steps on a CPU, as ratios."""
# ruff: noqa: RUF001

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compute_parts.networks import CONTIGUOUS, LAST, LAYOUTS, Form, built, initialised
from compute_parts.scale import Bench
from compute_parts.timing import Failure, attempt, free
from videogn.engine.recipes import compiled
from videogn.models.folding import fold_batch_norms


@dataclass(frozen=True)
class Recipe:
    """How a CPU infers.

    Attributes:
        views: convolutions as zero-copy 2D convolutions, and BN folded.
        dtype: of weights and clips.
        compiled: with its weights frozen into the code.
    """

    name: str
    memory_format: torch.memory_format = LAST
    views: bool = False
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    @property
    def precision(self) -> str:
        return "fp32" if self.dtype == torch.float32 else "bf16"


HALF = torch.bfloat16
EAGER = Recipe("eager fp32 contiguous", CONTIGUOUS)
RECIPES = [
    EAGER,
    Recipe("channels last fp32"),
    Recipe("2D views fp32", views=True),
    Recipe("channels last bf16", dtype=HALF),
    Recipe("2D views bf16", views=True, dtype=HALF),
    Recipe("contiguous fp32 compiled", CONTIGUOUS, compiled=True),
    Recipe("channels last fp32 compiled", compiled=True),
    Recipe("2D views fp32 compiled", views=True, compiled=True),
    Recipe("channels last bf16 compiled", dtype=HALF, compiled=True),
    Recipe("2D views bf16 compiled", views=True, dtype=HALF, compiled=True),
]
TRAINED = [
    Form("bn", precision="fp32"),
    Form("bn", memory_format=LAST, precision="fp32"),
    Form("bn", memory_format=LAST, convolutions="2d", precision="fp32"),
    Form("bn", source="pytorchvideo", precision="fp32"),
    Form("gn", precision="fp32"),
    Form("gn", memory_format=LAST, convolutions="2d", precision="fp32"),
]


def cpu_has_bf16() -> bool:
    """Whether bf16 is multiplied by instructions; without, it takes thirty times as long."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def measure_recipes(bench: Bench, view: tuple[int, int, int], with_compiler: bool) -> None:
    """Inference of one clip by each recipe, beside eager fp32 of the same norm."""
    halves = cpu_has_bf16() or bench.dry
    recipes = [
        recipe
        for recipe in RECIPES
        if (with_compiler or not recipe.compiled) and (halves or recipe.dtype != HALF)
    ]
    for norm in ("bn", "gn"):
        sizes = "×".join(map(str, view))
        bench.page.title(f"Inference on the CPU, {norm.upper()}, one clip of {sizes}")
        bench.page.table("recipe", "ms", "speed / eager fp32", "relative error")
        network = initialised(bench, norm, "pv32").eval()
        clip = torch.randn(1, 3, *view)
        compare(bench, network, clip, recipes, view[1])
        # Of one class only eight networks are compiled; what comes then would run plainly.
        torch.compiler.reset()
        free()
    if not halves:
        bench.page.say()
        bench.page.say("This CPU has no bf16 instructions: bf16 recipes are unmeasured.")


def compare(
    bench: Bench, network: nn.Module, clip: Tensor, recipes: list[Recipe], size: int
) -> None:
    calls: dict[str, Callable[[], Tensor]] = {}
    failures: dict[str, Failure] = {}
    for recipe in recipes:
        call = attempt(lambda recipe=recipe: inferring(network, clip, recipe))
        if isinstance(call, Failure):
            failures[recipe.name] = call
        else:
            calls[recipe.name] = call
    truth = calls[EAGER.name]()
    times = bench.timer.interleaved(calls, bench.scale.rounds, in_a_row=1) | failures
    norm = "BN" if any(isinstance(m, nn.BatchNorm3d) for m in network.modules()) else "GN"
    base = times[EAGER.name]
    for recipe in recipes:
        taken = times[recipe.name]
        if isinstance(taken, Failure) or isinstance(base, Failure):
            bench.page.row(recipe.name, taken)
            continue
        error = float((calls[recipe.name]().float() - truth).norm() / truth.norm())
        bench.page.row(recipe.name, 1e3 * taken, base / taken, error)
        if recipe is not EAGER and size == 224:
            note(bench, norm, recipe, base / taken)


def note(bench: Bench, norm: str, recipe: Recipe, speed: float) -> None:
    """Keep the best of its kind: the bars hold at 224 pixels."""
    kind = "compiled" if recipe.compiled else "plain"
    name = f"cpu speed {norm} {recipe.precision} {kind}"
    bench.known[name] = max(speed, bench.known.get(name, 0.0))


def inferring(network: nn.Module, clip: Tensor, recipe: Recipe) -> Callable[[], Tensor]:
    """What scores a clip; it has run once."""
    ready = recipe_network(network, clip, recipe)
    inputs = clip.to(dtype=recipe.dtype, memory_format=recipe.memory_format)

    def call() -> Tensor:
        # Not inference mode, in which the compiler freezes no weights.
        with torch.no_grad():
            scores: Tensor = ready(inputs)
            return scores

    call()
    return call


def recipe_network(network: nn.Module, clip: Tensor, recipe: Recipe) -> Any:
    ready = copy.deepcopy(network)
    if recipe.views:
        from videogn.models.views import use_views

        view: Any = tuple(clip.shape[2:])
        fold_batch_norms(ready, view)
        use_views(ready)
    ready = ready.to(dtype=recipe.dtype, memory_format=recipe.memory_format)  # type: ignore[call-overload]
    if not recipe.compiled:
        return ready
    measure = compiled(lambda inputs: (ready(inputs),))
    return lambda inputs: measure(inputs)[0]


def measure_cpu_training(bench: Bench, view: tuple[int, int, int], clips: int) -> None:
    """Forward and backward pass of each form, as speeds beside pytorchvideo's network."""
    page = bench.page
    page.title(f"Training step on the CPU, {clips} clips of {'×'.join(map(str, view))}, fp32")
    page.table("form", "ms", "speed / pytorchvideo")
    steps: dict[str, Callable[[], object]] = {}
    failures: dict[str, Failure] = {}
    for form in TRAINED:
        step = attempt(lambda form=form: cpu_step(bench, form, view, clips))
        if isinstance(step, Failure):
            failures[str(form)] = step
        else:
            steps[str(form)] = step
    times = bench.timer.interleaved(steps, bench.scale.rounds, in_a_row=1) | failures
    base = next(taken for name, taken in times.items() if name.startswith("pytorchvideo"))
    for name, taken in times.items():
        if isinstance(taken, Failure) or isinstance(base, Failure):
            page.row(name, taken)
        else:
            page.row(name, 1e3 * taken, base / taken)


def cpu_step(
    bench: Bench, form: Form, view: tuple[int, int, int], clips: int
) -> Callable[[], object]:
    network = built(bench, form, next(iter(LAYOUTS))).train()
    inputs = torch.randn(clips, 3, *view).to(memory_format=form.memory_format)
    labels = torch.zeros(clips, dtype=torch.long)

    def step() -> None:
        F.cross_entropy(network(inputs), labels).backward()
        network.zero_grad(set_to_none=True)

    step()
    return step
