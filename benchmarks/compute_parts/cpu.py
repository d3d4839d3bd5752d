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
from videogn.engine.arithmetic import autocast
from videogn.engine.evaluator import class_scores
from videogn.engine.recipes import choose_recipe, compiled, cpu_has_bf16, make_ready


@dataclass(frozen=True)
class Recipe:
    """How a CPU infers.

    Attributes:
        ours: ``test.recipe`` of the toolkit; None for torch alone.
        dtype: of weights and clips; of ours, of autocast.
        compiled: by torch.compile, with its weights frozen into the code.
    """

    name: str
    memory_format: torch.memory_format = LAST
    ours: str | None = None
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
    Recipe("channels last bf16", dtype=HALF),
    Recipe("contiguous fp32 compiled", CONTIGUOUS, compiled=True),
    Recipe("channels last bf16 compiled", dtype=HALF, compiled=True),
    Recipe("test.recipe=eager fp32", ours="eager"),
    Recipe("test.recipe=views fp32", ours="views"),
    Recipe("test.recipe=views bf16", ours="views", dtype=HALF),
    Recipe("test.recipe=compiled fp32", ours="compiled", compiled=True),
    Recipe("test.recipe=compiled bf16", ours="compiled", dtype=HALF, compiled=True),
]
FULL_SIZE = 224
PYTORCHVIDEO = Form("bn", source="pytorchvideo", precision="fp32")
TRAINED = [
    *(
        Form(norm, precision="fp32", **form)
        for norm in ("bn", "gn")
        for form in (
            {},
            {"memory_format": LAST},
            {"memory_format": LAST, "convolutions": "2d"},
            {"compiled": True},
        )
    ),
    PYTORCHVIDEO,
]


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
        say_choice(bench, norm, view, halves)
        # Of one class only eight networks are compiled; what comes then would run plainly.
        torch.compiler.reset()
        free()
    if not halves:
        bench.page.say()
        bench.page.say("This CPU has no bf16 instructions: bf16 recipes are unmeasured.")


def say_choice(bench: Bench, norm: str, view: tuple[int, int, int], halves: bool) -> None:
    """What ``auto`` takes for a long test."""
    for precision in ("fp32", "bf16") if halves else ("fp32",):
        choice = choose_recipe(
            "auto", precision, bench.device, view=view, num_views=10**9, norm=norm
        )
        bench.page.say()
        bench.page.say(f"auto, {norm.upper()}, {precision}: {choice.recipe}")


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
    measure, inputs = (own_form if recipe.ours else torchs_form)(network, clip, recipe)

    def call() -> Tensor:
        # Not inference mode, in which the compiler freezes no weights.
        with torch.no_grad():
            return measure(inputs)

    call()
    return call


Scoring = tuple[Callable[[Tensor], Tensor], Tensor]
"""What scores a clip, and the clip as it takes it."""


def torchs_form(network: nn.Module, clip: Tensor, recipe: Recipe) -> Scoring:
    ready: Any = copy.deepcopy(network)
    ready = ready.to(dtype=recipe.dtype, memory_format=recipe.memory_format)
    inputs = clip.to(dtype=recipe.dtype, memory_format=recipe.memory_format)
    if not recipe.compiled:
        return ready, inputs
    measure = compiled(lambda inputs: (ready(inputs),))
    return lambda inputs: measure(inputs)[0], inputs


def own_form(network: nn.Module, clip: Tensor, recipe: Recipe) -> Scoring:
    """As ``videogn test`` computes, from normalised clips to logits."""
    assert recipe.ours is not None
    ready, view = copy.deepcopy(network), tuple(clip.shape[2:])
    layout = make_ready(ready, recipe.ours, view, recipe.precision)  # type: ignore[arg-type]
    measure = class_scores(ready)
    if recipe.compiled:
        measure = compiled(measure)

    def logits(inputs: Tensor) -> Tensor:
        with autocast(inputs.device, recipe.precision):
            return measure(inputs)[0]

    return logits, clip.to(dtype=recipe.dtype, memory_format=layout)


def measure_cpu_training(
    bench: Bench, view: tuple[int, int, int], clips: int, with_compiled: bool
) -> None:
    """Forward and backward pass of each form, as speeds beside pytorchvideo's network."""
    page = bench.page
    page.title(f"Training step on the CPU, {clips} clips of {'×'.join(map(str, view))}")
    page.table("form", "ms", "speed / pytorchvideo")
    forms = [form for form in TRAINED if with_compiled or not form.compiled]
    steps: dict[str, Callable[[], object]] = {}
    failures: dict[str, Failure] = {}
    for form in forms:
        step = attempt(lambda form=form: cpu_step(bench, form, view, clips))
        if isinstance(step, Failure):
            failures[str(form)] = step
        else:
            steps[str(form)] = step
    times = bench.timer.interleaved(steps, bench.scale.rounds, in_a_row=1) | failures
    base = times[str(PYTORCHVIDEO)]
    for name, taken in times.items():
        if isinstance(taken, Failure):
            page.row(name, taken, None)
        else:
            page.row(name, 1e3 * taken, None if isinstance(base, Failure) else base / taken)


def cpu_step(
    bench: Bench, form: Form, view: tuple[int, int, int], clips: int
) -> Callable[[], object]:
    network = built(bench, form, next(iter(LAYOUTS))).train()
    if form.source == "pytorchvideo" and min(view[1:]) < FULL_SIZE:
        # Its head averages over windows of 7 x 7 places, which smaller clips do not have.
        network.blocks[-1].pool = nn.AdaptiveAvgPool3d(1)  # type: ignore[index,union-attr]
    inputs = torch.randn(clips, 3, *view).to(memory_format=form.memory_format)
    labels = torch.zeros(clips, dtype=torch.long)

    def step() -> None:
        with autocast(inputs.device, form.precision):
            logits = network(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        network.zero_grad(set_to_none=True)

    step()
    return step
