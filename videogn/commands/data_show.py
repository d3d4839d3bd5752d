"""Show what training sees: a picture of augmented clips, a row of frames for each.

The clips are those of the first epoch under the seed, drawn as training draws them. SOURCE is a
config, whose training list and clips are taken, or a list of videos.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from videogn.commands.options import add_list_options, read_list
from videogn.commands.setup import augmented_clips, list_of, video_opener
from videogn.config import ClipConfig, Config
from videogn.config_files import from_tree, load_config
from videogn.data.annotations import spread
from videogn.data.dataset import ClipSample, TrainDataset
from videogn.data.list_checks import VideoList
from videogn.data.opening import VideoOpener
from videogn.errors import ConfigError, DecodeError, RunError
from videogn.files import atomic_path, check_writable

FRAMES_SHOWN = 8
CELL = 160
"""Pixels of a frame in the picture, in both directions."""
GAP = 4
CAPTION = 30
"""Pixels above a row for its text."""
MARGIN = 10
LETTER = 9
"""Pixels of an average letter of a caption."""
MAX_ROWS = 300
"""A taller picture is more than matplotlib can draw."""
DPI = 100
CONFIG_SUFFIXES = (".yaml", ".yml")
CLIP_OPTIONS = {
    "num_frames": "num_frames",
    "stride": "frame_stride",
    "short_side_min": "short_side_min",
    "short_side_max": "short_side_max",
    "crop": "crop_size",
}
"""Option -> key of the config's clip section."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn data show``."""
    parser.add_argument("source", metavar="SOURCE", help="a config, list file, tree or csv")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument("--out", metavar="FILE.png", type=Path, required=True)
    parser.add_argument("--num", metavar="N", type=int, default=12, help="clips")
    parser.add_argument("--seed", type=int, help="default: the config's, or 0")
    add_list_options(parser)
    defaults = ClipConfig()
    for option, key in CLIP_OPTIONS.items():
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            metavar="N",
            type=int,
            help=f"default: the config's, or {getattr(defaults, key)}",
        )


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture; 1 where no clip could be read."""
    if not 1 <= arguments.num <= MAX_ROWS:
        raise RunError(f"--num {arguments.num}: must be from 1 to {MAX_ROWS}")
    if arguments.out.suffix.lower() != ".png":
        raise RunError(f"--out {arguments.out}: must end in .png")
    check_writable(arguments.out)
    config = _config(arguments)
    videos, opener = _videos(arguments, config)
    dataset = TrainDataset(videos.records, augmented_clips(config, opener), config.seed)
    places = range(len(videos.records))
    rows = [_row(videos, dataset, place) for place in spread(places, arguments.num)]
    draw(rows, arguments.out)
    for row in rows:
        print("\n".join([row.caption, *(f"  warning: {line}" for line in row.failures)]))
    print(f"wrote {arguments.out}")
    return 0 if any(row.frames is not None for row in rows) else 1


def _is_config(source: str) -> bool:
    return Path(source).suffix.lower() in CONFIG_SUFFIXES


def _config(arguments: argparse.Namespace) -> Config:
    """The config, or the default one, with the options put in.

    Raises:
        ConfigError: a value cannot be, or ``key=value`` words stand beside a list.
    """
    given = {
        f"clip.{key}": getattr(arguments, option)
        for option, key in CLIP_OPTIONS.items()
        if getattr(arguments, option) is not None
    }
    if arguments.seed is not None:
        given["seed"] = arguments.seed
    words = [*arguments.overrides, *(f"{key}={value}" for key, value in given.items())]
    if _is_config(arguments.source):
        return load_config(arguments.source, words).config
    if arguments.overrides:
        raise ConfigError(
            f"{arguments.overrides[0]}: changes a config, and {arguments.source} is a list; name "
            "a .yaml file or use the options"
        )
    return _default_config(given, arguments.source)


def _default_config(given: dict[str, int], source: str) -> Config:
    tree: dict[str, Any] = {"data": {"train": source}, "clip": {}}
    for key, value in given.items():
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return from_tree(tree, "the options")


def _videos(arguments: argparse.Namespace, config: Config) -> tuple[VideoList, VideoOpener]:
    opener = video_opener(config.data, "train")
    if _is_config(arguments.source):
        _check_no_list_options(arguments)
        return list_of(config.data, "train", config.model.num_classes), opener
    return read_list(arguments.source, arguments), opener


def _check_no_list_options(arguments: argparse.Namespace) -> None:
    if arguments.root is not None:
        raise ConfigError(f"--root {arguments.root}: a config has data.root={arguments.root}")
    if arguments.format != "auto":
        raise ConfigError(
            f"--format {arguments.format}: a config has data.format={arguments.format}"
        )
    if arguments.allow_outside_root:
        raise ConfigError("--allow-outside-root: a config has data.allow_outside_root=true")


@dataclass(frozen=True)
class Row:
    """One clip of the picture.

    Attributes:
        caption: class and file.
        frames: (N, H, W, 3) uint8, evenly chosen, the first and the last among them; None where
            no video could be read.
        failures: what is wrong with each video tried before.
    """

    caption: str
    frames: np.ndarray | None
    failures: tuple[str, ...]


def _row(videos: VideoList, dataset: TrainDataset, place: int) -> Row:
    try:
        sample = dataset[(0, place)]
    except DecodeError as error:
        return Row(_caption(videos, place), None, (str(error),))
    failures = tuple(f"{path}: {reason}" for path, reason in sample.failures)
    caption = _caption(videos, sample.place)
    if failures:
        caption += f"   (instead of {videos.records[place].name}, which cannot be read)"
    return Row(caption, _chosen(sample), failures)


def _caption(videos: VideoList, place: int) -> str:
    record, names = videos.records[place], videos.class_names
    label = f"{names[record.label]} ({record.label})" if names else f"class {record.label}"
    return f"{label}   {record.name}"


def _chosen(sample: ClipSample) -> np.ndarray:
    clip = sample.clip
    assert isinstance(clip, Tensor)  # training replaces what cannot be read
    places = np.linspace(0, clip.shape[1] - 1, min(FRAMES_SHOWN, clip.shape[1])).round().astype(int)
    return clip[:, places].permute(1, 2, 3, 0).numpy()


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a PNG, every frame a square of ``CELL`` pixels."""
    from matplotlib.figure import Figure

    columns = max([len(row.frames) for row in rows if row.frames is not None], default=1)
    # Captions need room, however few frames a clip has.
    width = 2 * MARGIN + max(columns, 4) * (CELL + GAP) - GAP
    height = 2 * MARGIN + len(rows) * (CAPTION + CELL)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    letters = width // LETTER
    for number, row in enumerate(rows):
        top = MARGIN + number * (CAPTION + CELL) + CAPTION
        figure.text(
            MARGIN / width,
            1 - (top - 6) / height,
            _cut(row.caption, letters),
            fontsize=10,
            verticalalignment="baseline",
            parse_math=False,
        )
        for column, frame in enumerate(() if row.frames is None else row.frames):
            left = MARGIN + column * (CELL + GAP)
            box = (left / width, 1 - (top + CELL) / height, CELL / width, CELL / height)
            axes = figure.add_axes(box)
            axes.imshow(frame, interpolation="antialiased")
            axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def _cut(text: str, letters: int) -> str:
    """A caption that fits; its end, which has the file's name, is kept."""
    if len(text) <= letters:
        return text
    return f"{text[: letters // 3]}…{text[len(text) - (letters - letters // 3 - 1) :]}"
