"""Make a small data set, pre-train 2D networks, inflate them, train and test BN and GN."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from videogn.commands import inflate, test, train
from videogn.commands.pretrain import inflate_options
from videogn.commands.setup import spec_of
from videogn.commands.shipped import configs_folder
from videogn.config_files import load_config
from videogn.data.synthetic import MOTIONS, RenderedLists, render_motion_dataset
from videogn.engine.runs import RunFolder, read_log
from videogn.engine.test_folder import RESULTS
from videogn.errors import RunError
from videogn.files import atomic_path

NORMS = ("bn", "gn")
SPLITS = {"train": 960, "val": 96, "test": 96}
"""Videos to render; the test videos are seen by nothing but the 10-clip test."""
DATA_SEED = 0
CHANCE = 100 / len(MOTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn quickstart``."""
    parser.add_argument("--out", default="runs/quickstart", metavar="DIR", help="where all goes")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to every training and test"
    )


def run(arguments: argparse.Namespace) -> int:
    """The whole path for both norms, then a table; started again, it goes on where it was."""
    started = time.monotonic()
    out = Path(arguments.out)
    print(f"rendering {sum(SPLITS.values())} videos of {len(MOTIONS)} motions into {out}/data")
    lists = render_motion_dataset(out / "data", SPLITS, DATA_SEED)
    rows = [_one_norm(norm, out, lists, arguments.overrides) for norm in NORMS]
    plot_curves(rows, out / "curves.png")
    print(f"\n{format_table(rows)}\n")
    print(f"curves: {out / 'curves.png'}   runs: {', '.join(str(row.folder) for row in rows)}")
    print(f"all of it took {time.monotonic() - started:.0f} s")
    return 0


@dataclass(frozen=True)
class Row:
    """What one norm came to.

    Attributes:
        log: entries of the video network's training log.
        results: content of its ``results.json``.
    """

    norm: str
    folder: Path
    still_top1: float
    log: list[dict[str, Any]]
    results: dict[str, Any]
    seconds: float


def _one_norm(norm: str, out: Path, lists: RenderedLists, overrides: Sequence[str]) -> Row:
    """Pre-train, inflate, train and test with one norm, by the commands a user would type."""
    started = time.monotonic()
    still, video = out / f"r50_2d_{norm}", out / f"i3d_r50_{norm}"
    weights = out / "weights" / f"i3d_r50_{norm}.safetensors"
    configs = configs_folder() / "quickstart"
    _call(
        train,
        str(configs / "r50_2d.yaml"),
        f"model.norm={norm}",
        f"data.train={lists.appearance['train']}",
        f"data.val={lists.appearance['val']}",
        f"out={still}",
        *overrides,
    )
    network = inflate_options(spec_of(load_config(still / "config.yaml").config.model))
    classes = ["--classes", str(len(MOTIONS))]
    _call(inflate, str(RunFolder(still).last), "-o", str(weights), *network, *classes)
    _call(
        train,
        str(configs / "i3d_r50.yaml"),
        f"model.norm={norm}",
        f"model.weights={weights}",
        f"data.train={lists.motion['train']}",
        f"data.val={lists.motion['val']}",
        f"data.test={lists.motion['test']}",
        f"out={video}",
        *overrides,
    )
    _call(test, str(RunFolder(video).config), "--checkpoint", str(video))
    still_log = read_log(RunFolder(still).log)
    return Row(
        norm=norm,
        folder=video,
        still_top1=[entry["top1"] for entry in still_log if entry["kind"] == "val"][-1],
        log=read_log(RunFolder(video).log),
        results=json.loads((video / "test" / RESULTS).read_text(encoding="utf-8")),
        seconds=time.monotonic() - started,
    )


def _call(command: ModuleType, *words: str) -> None:
    """Run a command as its own command line would, after showing that line."""
    name = command.__name__.rpartition(".")[2]
    print(f"\n$ videogn {name} {' '.join(words)}", flush=True)
    parser = argparse.ArgumentParser(prog=f"videogn {name}")
    command.add_arguments(parser)
    code = command.run(parser.parse_intermixed_args(list(words)))
    if code:
        raise RunError(f"videogn {name} ended with exit code {code}")


def format_table(rows: Sequence[Row]) -> str:
    """The results next to chance, as text."""
    lines = [
        "norm   2D pre-training   10-clip top-1   top-5    chance   videos     time",
        "----   ---------------   -------------   ------   ------   ------   ------",
    ]
    for row in rows:
        top1, top5 = row.results["top1"], row.results["top5"]
        lines.append(
            f"{row.norm:4}   {row.still_top1:13.1f} %   {top1:11.1f} %   {top5:4.0f} %"
            f"   {CHANCE:4.0f} %   {row.results['num_videos']:6}   {row.seconds:4.0f} s"
        )
    return "\n".join(lines)


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Training loss and one-clip validation error against the iteration, one line per norm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for row in rows:
        steps = [entry for entry in row.log if entry["kind"] == "train"]
        tests = [entry for entry in row.log if entry["kind"] == "val"]
        label = row.norm.upper()
        loss_axes.plot([e["iteration"] for e in steps], [e["loss"] for e in steps], label=label)
        error_axes.plot(
            [e["iteration"] for e in tests], [100 - e["top1"] for e in tests], "o-", label=label
        )
    error_axes.axhline(100 - CHANCE, color="grey", linestyle=":", label="chance")
    loss_axes.set(title="training", xlabel="iteration", ylabel="loss", ylim=(0, None))
    error_axes.set(
        title="validation, one clip per video",
        xlabel="iteration",
        ylabel="top-1 error (%)",
        ylim=(0, 100),
    )
    for axes in (loss_axes, error_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
