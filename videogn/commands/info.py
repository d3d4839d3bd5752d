"""Show what a config's network is made of and what it costs: layers, parameters, GFLOPs, memory.

Nothing is computed: all of it follows from shapes. One multiply-add counts as one operation.
``--memory`` shows what training takes with every norm, precision and batch; where there is a GPU,
two steps are trained on it to measure the config's own.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from videogn.commands.run_parts import train_execution
from videogn.commands.setup import spec_of, views_of
from videogn.config import Config
from videogn.config_files import load_config
from videogn.data.protocols import PROTOCOLS
from videogn.engine.arithmetic import PRECISIONS, set_arithmetic
from videogn.engine.compute import A_GPU, Machine
from videogn.engine.memory import CARD_RESERVE, CARDS_GB, GB, SLACK, StepMemory, predict_memory
from videogn.engine.memory_plan import measure_step
from videogn.errors import RunError, UserError
from videogn.models.norm import NORMS
from videogn.models.summary import Cost, LayerRow, Summary, cost_of, meta_network, summarise

ASPECT = 4 / 3
"""Width to height of the frames a fully convolutional test is counted for: Kinetics' 340 x 256."""

BATCHES = (1, 2, 4, 8, 16, 32)
"""Clips per GPU that memory is shown for, besides the config's."""

GIGA = 1e9


@dataclass(frozen=True)
class Info:
    """Everything that is shown.

    Attributes:
        summary: of one training clip.
        view: (T, H, W) of one view of the test.
        view_cost: of that view.
        num_views: of one video in the test.
        training: memory of a training step in the config's precision.
        weight_bytes: the weights alone.
    """

    summary: Summary
    view: tuple[int, int, int]
    view_cost: Cost
    num_views: int
    training: StepMemory
    weight_bytes: int


@dataclass(frozen=True)
class MemoryRow:
    """A line of the memory table: a norm and precisions that need the same."""

    norm: str
    precisions: tuple[str, ...]
    step: StepMemory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn info``."""
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="show the memory that training takes with every norm, precision and batch, and the "
        "batches that fit usual GPUs",
    )
    parser.add_argument(
        "--averaged", action="store_true", help="with --memory: count an average of the weights too"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the totals."""
    config = load_config(arguments.config, arguments.overrides).config
    if arguments.memory:
        return show_memory(config, as_json=arguments.json, averaged=arguments.averaged)
    info = inspect(config)
    print(json.dumps(as_json(config, info), indent=1) if arguments.json else describe(config, info))
    return 0


def inspect(config: Config) -> Info:
    """Work everything out.

    Raises:
        UserError: the network cannot be built, or the clips are too small for it.
    """
    spec, size = spec_of(config.model), clip_size(config)
    summary = summarise(spec, size)
    network = meta_network(spec)
    view = test_view(config)
    view_cost = cost_of(network, view)
    return Info(
        summary=summary,
        view=view,
        view_cost=view_cost,
        num_views=math.prod(views_of(config.test)),
        training=predict_memory(
            spec, size, config.train.precision, execution=train_execution(config, spec, A_GPU)
        ),
        weight_bytes=sum(p.numel() * p.element_size() for p in network.parameters()),
    )


def clip_size(config: Config) -> tuple[int, int, int]:
    """(T, H, W) of a training clip."""
    return config.clip.num_frames, config.clip.crop_size, config.clip.crop_size


def test_view(config: Config) -> tuple[int, int, int]:
    """(T, H, W) of one view of the test; of a whole frame, one of Kinetics' usual shape."""
    clip, side = config.clip, config.clip.short_side_min
    box, *_ = PROTOCOLS[config.test.protocol].boxes(
        side,
        math.floor(side * ASPECT),
        num_crops=views_of(config.test).num_crops,
        crop_size=clip.crop_size,
    )
    return clip.num_frames, box.height, box.width


def describe(config: Config, info: Info) -> str:
    """The table and the totals as text."""
    clip = config.clip
    return "\n".join(
        [
            f"{config.model.arch}, norm {config.model.norm}, one clip of {clip.num_frames} frames "
            f"of {clip.crop_size}x{clip.crop_size}",
            "",
            *table(info.summary.rows),
            "",
            *_operations(config, info),
            *_memory(config, info),
        ]
    )


def _operations(config: Config, info: Info) -> Iterator[str]:
    summary = info.summary
    num_clips, num_crops = views_of(config.test)
    frozen = summary.parameters - summary.trained_parameters
    crops = f"{num_crops} crop{'s' if num_crops > 1 else ''}"
    yield f"parameters  {summary.parameters:,}{f', {frozen:,} of them frozen' if frozen else ''}"
    yield f"one clip    {_gflops(summary.cost)}"
    view = f"the test's, {_times(info.view)}{_assumed(config)}"
    yield f"one view    {_gflops(info.view_cost)}: {view}"
    yield (
        f"one video   {info.num_views * total(info.view_cost) / GIGA:,.1f} GFLOPs with norms: "
        f"{num_clips} clips x {crops}"
    )


def _memory(config: Config, info: Info) -> Iterator[str]:
    batch, step = config.train.clips_per_gpu, info.training
    views = min(config.test.views_per_pass or info.num_views, info.num_views)
    yield (
        f"training    {_gib(step.peak(batch))} predicted, in {config.train.precision}: "
        f"{_gib(step.state_bytes)} for weights, gradients and momentum, the rest of {batch} clips"
    )
    yield (
        f"testing     {_gib(info.weight_bytes + views * info.view_cost.peak_bytes)} estimated, in "
        f"fp32: {_gib(info.weight_bytes)} for weights + {views} views at once x "
        f"{_gib(info.view_cost.peak_bytes)}"
    )


def _gflops(cost: Cost) -> str:
    return (
        f"{cost.multiply_adds / GIGA:.2f} GFLOPs in convolutions and linear layers, "
        f"{total(cost) / GIGA:.2f} with norms"
    )


def table(rows: tuple[LayerRow, ...]) -> list[str]:
    """The layers as aligned lines."""
    cells = [("layer", "kind", "kernel", "stride", "output (C, T, H, W)", "parameters")]
    cells += [
        (
            row.name,
            row.kind,
            _times(row.kernel),
            _times(row.stride),
            _times(row.output),
            f"{row.parameters:,}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place == len(widths) - 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def as_json(config: Config, info: Info) -> dict[str, Any]:
    """The same numbers by name."""
    return {
        "arch": config.model.arch,
        "norm": config.model.norm,
        "layers": [asdict(row) for row in info.summary.rows],
        "parameters": info.summary.parameters,
        "trained_parameters": info.summary.trained_parameters,
        "clip_gflops": info.summary.cost.multiply_adds / GIGA,
        "clip_gflops_with_norms": total(info.summary.cost) / GIGA,
        "view": list(info.view),
        "view_gflops": info.view_cost.multiply_adds / GIGA,
        "view_gflops_with_norms": total(info.view_cost) / GIGA,
        "num_views": info.num_views,
        "video_gflops_with_norms": info.num_views * total(info.view_cost) / GIGA,
        "training_state_bytes": info.training.state_bytes,
        "training_kept_bytes": info.training.kept.peak(config.train.clips_per_gpu),
        "training_bytes": info.training.peak(config.train.clips_per_gpu),
        "testing_weight_bytes": info.weight_bytes,
        "testing_view_bytes": info.view_cost.peak_bytes,
    }


def show_memory(config: Config, *, as_json: bool, averaged: bool) -> int:
    """Print the memory of training, row by row as it is worked out, or all of it as JSON.

    Raises:
        UserError: the network cannot be built, or the clips are too small for it.
    """
    # First, so that nothing is printed of a config that is wrong.
    spec = spec_of(config.model)
    mine = predict_memory(
        spec,
        clip_size(config),
        config.train.precision,
        execution=train_execution(config, spec, A_GPU),
        averaged=averaged,
    )
    rows = memory_rows(config, averaged=averaged)
    if as_json:
        print(json.dumps(memory_json(config, rows), indent=1))
        return 0
    for line in memory_lines(config, mine, rows):
        print(line, flush=True)
    return 0


def memory_rows(config: Config, *, averaged: bool = False) -> Iterator[MemoryRow]:
    """The memory of a training step on a GPU with every norm that the network takes."""
    spec, size = spec_of(config.model), clip_size(config)
    same_size: dict[int, list[str]] = {}
    for name, dtype in PRECISIONS.items():
        same_size.setdefault(dtype.itemsize, []).append(name)
    for norm in NORMS:
        for names in same_size.values():
            try:
                other = replace(spec, norm=norm)
                execution = train_execution(config, other, A_GPU, precision=names[0])
                step = predict_memory(other, size, names[0], execution=execution, averaged=averaged)
            except UserError:  # such as groups that do not divide the channels
                continue
            yield MemoryRow(norm, tuple(names), step)


def memory_lines(config: Config, mine: StepMemory, rows: Iterator[MemoryRow]) -> Iterator[str]:
    """The memory table, and what the config itself takes."""
    own, precision = config.train.clips_per_gpu, config.train.precision
    batches = sorted({*BATCHES, own})
    yield (
        f"{config.model.arch}, clips of {_times(clip_size(config))}, predicted from shapes: peak "
        "memory of training per GPU in GiB, by clips"
    )
    yield "per GPU; behind the bar the most clips that should fit a card of so many GB"
    yield ""
    yield _memory_line("norm", "precision", batches, [f"{card} GB" for card in CARDS_GB])
    for row in rows:
        peaks = [f"{row.step.peak(batch) / 2**30:.2f}" for batch in batches]
        yield _memory_line(row.norm, ", ".join(row.precisions), peaks, _fitting(row.step))
    yield ""
    peak, kept = mine.peak(own), mine.kept.peak(own)
    yield (
        f"this config {config.model.norm}, {precision}, {own} clips: {_gib(peak)} = "
        f"{_gib(mine.state_bytes)} between steps + {_gib(kept)} kept for the backward pass + "
        f"{_gib(peak - mine.state_bytes - kept)} in passing"
    )
    yield (
        f"fitting     with {_gib(CARD_RESERVE)} of the card for the driver and libraries, and "
        f"{SLACK - 1:.0%} more than counted for what comes and goes in a step; both are assumed"
    )
    yield f"measured    {_measured(config)}"


def _memory_line(
    norm: str, precision: str, peaks: Sequence[object], fitting: Sequence[object]
) -> str:
    cells = "".join(f"{peak:>8}" for peak in peaks)
    return f"{norm:<10} {precision:<11}{cells}  |{''.join(f'{most:>8}' for most in fitting)}"


def _fitting(step: StepMemory) -> list[int]:
    return [step.largest_batch(card * GB - CARD_RESERVE) for card in CARDS_GB]


def _measured(config: Config) -> str:
    """The memory of two real steps beside the predicted one, where there is a GPU."""
    if not torch.cuda.is_available():
        return "nothing: there is no GPU here"
    device = torch.device("cuda", torch.cuda.current_device())
    where = torch.cuda.get_device_name(device)
    spec, clip, clips = spec_of(config.model), clip_size(config), config.train.clips_per_gpu
    precision = config.train.precision
    set_arithmetic(precision, fixed_shapes=False)
    execution = train_execution(config, spec, Machine.of(device))
    try:
        peak = measure_step(
            spec,
            clip,
            clips_per_gpu=clips,
            precision=precision,
            device=device,
            execution=execution,
        )
    except RunError as error:
        return f"on {where}: {error}"
    predicted = predict_memory(spec, clip, precision, execution=execution).peak(clips)
    return f"{_gib(peak)} in two steps on {where}: {peak / predicted:.0%} of the prediction"


def memory_json(config: Config, rows: Iterator[MemoryRow]) -> list[dict[str, Any]]:
    """The memory table by name, in bytes, with a row for every precision."""
    batches = sorted({*BATCHES, config.train.clips_per_gpu})
    return [
        {
            "norm": row.norm,
            "precision": precision,
            "state_bytes": row.step.state_bytes,
            "kept_bytes": {batch: row.step.kept.peak(batch) for batch in batches},
            "peak_bytes": {batch: row.step.peak(batch) for batch in batches},
            "largest_batch": dict(zip(CARDS_GB, _fitting(row.step), strict=True)),
        }
        for row in rows
        for precision in row.precisions
    ]


def total(cost: Cost) -> int:
    """Operations with those of norms, as fvcore counts them."""
    return cost.multiply_adds + cost.norm_operations


def _assumed(config: Config) -> str:
    _, height, width = test_view(config)
    return " (a frame of 4:3)" if width > height else ""


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
