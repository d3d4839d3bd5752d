"""Show what a config's network is made of and what it costs: layers, parameters, GFLOPs, memory.

Nothing is computed: all of it follows from shapes. One multiply-add counts as one operation.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from videogn.commands.setup import spec_of
from videogn.config import Config
from videogn.config_files import load_config
from videogn.engine.plan import kept_bytes, state_bytes
from videogn.models.summary import Cost, LayerRow, Summary, cost_of, meta_network, summarise

ASPECT = 4 / 3
"""Width to height of the frames a fully convolutional test is counted for: Kinetics' 340 x 256."""

PROBED_CLIPS = 2
"""Clips that memory is counted for: batch norm takes no single value per channel."""

GIGA = 1e9


@dataclass(frozen=True)
class Info:
    """Everything that is shown.

    Attributes:
        summary: of one training clip.
        view: (T, H, W) of one view of the test.
        view_cost: of that view.
        num_views: of one video in the test.
        state_bytes: weights, gradients and momentum.
        clip_bytes: what one training clip keeps for the backward pass.
        weight_bytes: the weights alone.
    """

    summary: Summary
    view: tuple[int, int, int]
    view_cost: Cost
    num_views: int
    state_bytes: int
    clip_bytes: int
    weight_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn info``."""
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the totals."""
    config = load_config(arguments.config, arguments.overrides).config
    info = inspect(config)
    print(json.dumps(as_json(config, info), indent=1) if arguments.json else describe(config, info))
    return 0


def inspect(config: Config) -> Info:
    """Work everything out.

    Raises:
        UserError: the network cannot be built, or the clips are too small for it.
    """
    spec, clip = spec_of(config.model), config.clip
    size = (clip.num_frames, clip.crop_size, clip.crop_size)
    summary = summarise(spec, size)
    network = meta_network(spec)
    view = test_view(config)
    view_cost = cost_of(network, view)
    clips = torch.empty(PROBED_CLIPS, 3, *size, device="meta")
    return Info(
        summary=summary,
        view=view,
        view_cost=view_cost,
        num_views=config.test.num_clips * config.test.num_crops,
        state_bytes=state_bytes(network),
        clip_bytes=kept_bytes(network, clips) // PROBED_CLIPS,
        weight_bytes=sum(p.numel() * p.element_size() for p in network.parameters()),
    )


def test_view(config: Config) -> tuple[int, int, int]:
    """(T, H, W) of one view of the test; of a whole frame, one of Kinetics' usual shape."""
    clip, test = config.clip, config.test
    if test.protocol == "center":
        return clip.num_frames, clip.crop_size, clip.crop_size
    side = clip.short_side_min
    return clip.num_frames, side, side if test.num_crops > 1 else math.floor(side * ASPECT)


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
    test, summary = config.test, info.summary
    frozen = summary.parameters - summary.trained_parameters
    crops = f"{test.num_crops} crop{'s' if test.num_crops > 1 else ''}"
    yield f"parameters  {summary.parameters:,}{f', {frozen:,} of them frozen' if frozen else ''}"
    yield f"one clip    {_gflops(summary.cost)}"
    view = f"the test's, {_times(info.view)}{_assumed(config)}"
    yield f"one view    {_gflops(info.view_cost)}: {view}"
    yield (
        f"one video   {info.num_views * total(info.view_cost) / GIGA:,.1f} GFLOPs with norms: "
        f"{test.num_clips} clips x {crops}"
    )


def _memory(config: Config, info: Info) -> Iterator[str]:
    batch = config.train.clips_per_gpu
    views = min(config.test.views_per_pass, info.num_views)
    yield (
        f"training    {_gib(info.state_bytes + batch * info.clip_bytes)} estimated, in fp32: "
        f"{_gib(info.state_bytes)} for weights, gradients and momentum + {batch} clips x "
        f"{_gib(info.clip_bytes)}"
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
        "training_state_bytes": info.state_bytes,
        "training_clip_bytes": info.clip_bytes,
        "training_bytes": info.state_bytes + config.train.clips_per_gpu * info.clip_bytes,
        "testing_weight_bytes": info.weight_bytes,
        "testing_view_bytes": info.view_cost.peak_bytes,
    }


def total(cost: Cost) -> int:
    """Operations with those of norms, as fvcore counts them."""
    return cost.multiply_adds + cost.norm_operations


def _assumed(config: Config) -> str:
    if config.test.protocol == "center" or config.test.num_crops > 1:
        return ""
    return " (a frame of 4:3)"


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
