"""What commands that score check before: config, checkpoint and list, and how they are told.

``test``, ``predict`` and ``features`` read a checkpoint and a list, which is scored by
:mod:`videogn.commands.scoring_job`.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from videogn.commands.options import add_short_forms
from videogn.commands.setup import (
    Views,
    checkpoint_file,
    class_names_of,
    input_scale,
    list_of,
    planar_room,
    spec_of,
    video_opener,
    views_of,
)
from videogn.config import Config
from videogn.config_files import LoadedConfig, to_tree
from videogn.data.list_checks import VideoList, VideoRecord
from videogn.engine.recipes import Choice, choose_recipe, cpu_has_bf16
from videogn.engine.runs import RunFolder
from videogn.models.spec import class_names_sha256
from videogn.models.weights import WeightFile, check_spec, read_weights

Triple = tuple[float, float, float]


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all of them."""
    parser.add_argument("config", help="YAML file, such as the config.yaml of a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a run folder (its last checkpoint), a checkpoint, or a file of videogn inflate",
    )
    add_short_forms(parser, ("protocol", "clips", "crops"))
    parser.add_argument("--gpus", type=int, metavar="N", help="processes to start, one per GPU")


@dataclass(frozen=True)
class Prepared:
    """Everything a test needs that can be checked without building the network.

    Attributes:
        which: the weights' kind: last, best, or inflated (never trained on video).
        precision: fp32, bf16 or fp16.
        choice: how the network computes.
    """

    config: Config
    videos: VideoList
    checkpoint: Path
    which: str
    weights: WeightFile
    mean: Triple
    std: Triple
    precision: str
    choice: Choice

    @property
    def views(self) -> Views:
        """Clips of a video and crops of a clip."""
        return views_of(self.config.test)


def prepare(
    loaded: LoadedConfig, checkpoint: Path, records: tuple[VideoRecord, ...] | None = None
) -> Prepared:
    """Read the checkpoint and the list, and check that they and the config agree.

    Args:
        records: videos without labels, instead of the list ``data.test``.
    """
    config = loaded.config
    file = checkpoint_file(checkpoint)
    weights = read_weights(file)
    check_spec(spec_of(config.model), weights)
    mean, std = input_scale(loaded, weights.info, str(file))
    classes = config.model.num_classes, weights.info.class_names, str(file)
    if records is None:
        videos = list_of(config.data, "test", *classes)
    else:
        names = class_names_of(config.data, *classes)
        videos = VideoList("the videos", records, None if names is None else tuple(names))
    video_opener(config.data, "test")  # says now what is not installed
    precision = _precision(config.test.precision)
    return Prepared(
        config=config,
        videos=videos,
        checkpoint=file,
        which="inflated" if weights.training is None else file.stem,
        weights=weights,
        mean=mean,
        std=std,
        precision=precision,
        choice=_recipe(config, precision, len(videos.records)),
    )


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    # Older ones emulate it, which is slower than fp32.
    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def _recipe(config: Config, precision: str, num_videos: int) -> Choice:
    views, test = views_of(config.test), config.test
    # One crop of the paper's protocol is the whole frame.
    whole = test.protocol == "paper" and views.num_crops == 1
    side = config.clip.crop_size if test.protocol == "center" else config.clip.short_side_min
    return choose_recipe(
        test.recipe,
        precision,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        view=None if whole else (config.clip.num_frames, side, side),
        num_views=num_videos * views.num_clips * views.num_crops,
        norm=config.model.norm,
    )


def default_folder(file: Path, config: Config) -> Path:
    """RUN/test for a run's last checkpoint, RUN/test_best for its best, else OUT_test."""
    file = file.absolute()
    run_folder = RunFolder(file.parent.parent)
    names = {run_folder.last: "test", run_folder.best: "test_best"}
    if file in names:
        return run_folder.path / names[file]
    return Path(f"{config.out}_test")


def describe(prepared: Prepared) -> dict[str, Any]:
    """What is tested and how, as it stands in the results."""
    config, records = prepared.config, prepared.videos.records
    names = prepared.videos.class_names
    listed = "".join(f"{record.name} {record.label}\n" for record in records)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "protocol": config.test.protocol,
        **prepared.views._asdict(),
        "average": config.test.average,
        "num_frames": config.clip.num_frames,
        "frame_stride": config.clip.frame_stride,
        "fps": config.clip.fps,
        "short_side": config.clip.short_side_min,
        "crop_size": config.clip.crop_size if config.test.protocol == "center" else None,
        "reader": config.data.reader,
        "stream": None if config.data.stream == "best" else config.data.stream,
        "pixels": "device" if planar_room(config.data, device) > 0 else "cpu",
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "precision": prepared.precision,
        "recipe": prepared.choice.recipe,
        "list": prepared.videos.source,
        "list_sha256": hashlib.sha256(listed.encode(errors="surrogatepass")).hexdigest(),
        "class_names": None if names is None else list(names),
        "class_names_sha256": None if names is None else class_names_sha256(names),
        "checkpoint": str(prepared.checkpoint),
        "checkpoint_sha256": prepared.weights.sha256,
        "weights": prepared.which,
        "iteration": (prepared.weights.training or {}).get("iteration"),
        "config": to_tree(config),
    }
