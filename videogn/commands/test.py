"""Run the multi-clip test from a checkpoint and write its scores."""

import argparse
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videogn.commands.launching import launch, must_launch
from videogn.commands.options import add_short_forms, with_short_forms
from videogn.commands.setup import (
    PROBE_SAMPLES,
    build_model,
    checkpoint_file,
    input_scale,
    list_of,
    planar_room,
    reader_lines,
    reading_workers,
    spec_of,
    video_opener,
    views_of,
)
from videogn.config import Config
from videogn.config_files import LoadedConfig, load_config, to_tree
from videogn.data.annotations import spread
from videogn.data.dataset import TestDataset
from videogn.data.list_checks import VideoList
from videogn.data.loader import build_test_loader
from videogn.distributed import World, gather_over_ranks, joined_world
from videogn.engine.evaluator import EvalResult, VideoScore, accuracy, collect, score_videos
from videogn.engine.results import RESULTS, check_test_folder, write_results
from videogn.engine.runs import RunFolder
from videogn.errors import RunError
from videogn.models.spec import class_names_sha256
from videogn.models.weights import WeightFile, check_spec, load_into, read_weights

PROGRESS_SECONDS = 10.0
Triple = tuple[float, float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn test``."""
    parser.add_argument("config", help="YAML file, such as the config.yaml of a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a run folder (its last checkpoint), a checkpoint, or a file of videogn inflate",
    )
    parser.add_argument("--out", metavar="DIR", help="where results go; RUN/test unless given")
    add_short_forms(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="processes to start, one per GPU")


def run(arguments: argparse.Namespace) -> int:
    """Check everything a test needs, then score every video."""
    loaded = load_config(arguments.config, with_short_forms(arguments))
    out = Path(arguments.out) if arguments.out else None
    launches = must_launch(arguments.gpus)
    prepared = prepare(loaded, Path(arguments.checkpoint), out)
    if launches:
        return launch(arguments.gpus, _words(arguments))
    with joined_world() as world:
        test_prepared(prepared, world)
    return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    out = ["--out", arguments.out] if arguments.out else []
    checkpoint = ["--checkpoint", arguments.checkpoint]
    return ["test", arguments.config, *checkpoint, *out, *with_short_forms(arguments)]


@dataclass(frozen=True)
class Prepared:
    """Everything a test needs that can be checked without building the network.

    Attributes:
        which: the weights' kind: last, best, or inflated (never trained on video).
    """

    config: Config
    videos: VideoList
    checkpoint: Path
    which: str
    weights: WeightFile
    mean: Triple
    std: Triple
    folder: Path


def prepare(loaded: LoadedConfig, checkpoint: Path, out: Path | None) -> Prepared:
    """Read the checkpoint and the list, and check that they, the config and the folder agree."""
    config = loaded.config
    file = checkpoint_file(checkpoint)
    weights = read_weights(file)
    check_spec(spec_of(config.model), weights)
    mean, std = input_scale(loaded, weights.info, str(file))
    videos = list_of(
        config.data, "test", config.model.num_classes, weights.info.class_names, str(file)
    )
    prepared = Prepared(
        config=config,
        videos=videos,
        checkpoint=file,
        which="inflated" if weights.training is None else file.stem,
        weights=weights,
        mean=mean,
        std=std,
        folder=out or default_folder(file, config),
    )
    video_opener(config.data, "test")  # says now what is not installed
    check_test_folder(prepared.folder, describe(prepared, world_size=1))
    return prepared


def default_folder(file: Path, config: Config) -> Path:
    """RUN/test for a run's last checkpoint, RUN/test_best for its best, else OUT_test."""
    file = file.absolute()
    run_folder = RunFolder(file.parent.parent)
    names = {run_folder.last: "test", run_folder.best: "test_best"}
    if file in names:
        return run_folder.path / names[file]
    return Path(f"{config.out}_test")


def describe(prepared: Prepared, world_size: int) -> dict[str, Any]:
    """What was tested and how, as it stands in ``results.json``."""
    config, records = prepared.config, prepared.videos.records
    names = prepared.videos.class_names
    listed = "".join(f"{record.name} {record.label}\n" for record in records)
    return {
        "protocol": config.test.protocol,
        **views_of(config.test)._asdict(),
        "num_frames": config.clip.num_frames,
        "frame_stride": config.clip.frame_stride,
        "fps": config.clip.fps,
        "short_side": config.clip.short_side_min,
        "crop_size": config.clip.crop_size if config.test.protocol == "center" else None,
        "reader": config.data.reader,
        "stream": None if config.data.stream == "best" else config.data.stream,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "list": prepared.videos.source,
        "list_sha256": hashlib.sha256(listed.encode(errors="surrogatepass")).hexdigest(),
        "class_names_sha256": None if names is None else class_names_sha256(names),
        "checkpoint": str(prepared.checkpoint),
        "checkpoint_sha256": prepared.weights.sha256,
        "weights": prepared.which,
        "iteration": (prepared.weights.training or {}).get("iteration"),
        "world_size": world_size,
        "config": to_tree(config),
    }


def test_prepared(prepared: Prepared, world: World) -> EvalResult:
    """Score every video of the list and write the results.

    Raises:
        RunError: not one video could be read; the results are written all the same.
    """
    config, records = prepared.config, prepared.videos.records
    num_videos = len(records)
    if world.is_main:
        for line in reader_lines(config.data, "test", prepared.videos):
            print(line, flush=True)
    scores = gather_over_ranks(list(_watched(_score_shard(prepared, world), world, num_videos)))
    table = collect(
        (score for part in scores for score in part),
        num_videos=num_videos,
        num_clips=views_of(config.test).num_clips,
        num_classes=config.model.num_classes,
    )
    result = accuracy(table, np.array([record.label for record in records], dtype=np.int64))
    if world.is_main:
        about = describe(prepared, world.size)
        write_results(prepared.folder, result, table, records, about)
        _report(prepared, result, [(records[i].name, why) for i, why in table.reasons.items()])
    if result.num_failed == num_videos:
        raise RunError(
            f"{prepared.videos.source}: none of its {num_videos} videos could be read; "
            f"{prepared.folder / RESULTS} has the reasons"
        )
    return result


def _score_shard(prepared: Prepared, world: World) -> Iterator[VideoScore]:
    config = prepared.config
    network = build_model(config.model, config.seed)
    load_into(network, spec_of(config.model), prepared.weights)
    network.to(world.device)
    dataset = TestDataset(
        prepared.videos.records,
        num_frames=config.clip.num_frames,
        frame_stride=config.clip.frame_stride,
        fps=config.clip.fps,
        num_clips=views_of(config.test).num_clips,
        num_crops=views_of(config.test).num_crops,
        protocol=config.test.protocol,
        short_side=config.clip.short_side_min,
        crop_size=config.clip.crop_size,
        open_video=video_opener(config.data, "test"),
        planar=planar_room(config.data, world.device) > 0,
    )
    shard = world.shard(len(prepared.videos.records))
    workers = reading_workers(config.data, world, dataset, spread(shard, PROBE_SAMPLES), 1)
    return score_videos(
        network,
        build_test_loader(dataset, shard, workers),
        num_clips=views_of(config.test).num_clips,
        views_per_pass=config.test.views_per_pass,
        mean=prepared.mean,
        std=prepared.std,
        device=world.device,
        precision=config.train.precision,
    )


def _watched(scores: Iterable[VideoScore], world: World, num_videos: int) -> Iterator[VideoScore]:
    """Pass scores on, with a progress line of rank 0's share every few seconds."""
    started = shown = time.monotonic()
    total = len(world.shard(num_videos))
    for done, score in enumerate(scores, start=1):
        now = time.monotonic()
        if world.is_main and (now - shown > PROGRESS_SECONDS or done == total):
            shown, pace = now, (now - started) / done
            print(
                f"tested {done * world.size if done < total else num_videos:,}/{num_videos:,} "
                f"videos  {world.size / pace:.2f} videos/s  eta {(total - done) * pace:.0f} s",
                flush=True,
            )
        yield score


def _report(prepared: Prepared, result: EvalResult, failed: list[tuple[str, str]]) -> None:
    test = prepared.config.test
    num_clips, num_crops = views_of(test)
    if failed:
        print(
            f"warning: {result.num_failed} of {result.num_videos} videos could not be read and "
            "count as wrong:"
        )
        for name, reason in failed[:20]:
            print(f"  - {name}: {reason}")
        if len(failed) > 20:
            print(f"  and {len(failed) - 20} more in {prepared.folder / RESULTS}")
    print(
        f"top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  over {result.num_videos} videos "
        f"({result.num_failed} failed), {num_clips} clips x {num_crops} crops, "
        f"protocol {test.protocol}, {prepared.which} weights of {prepared.checkpoint}"
    )
    print(f"wrote {prepared.folder}")
