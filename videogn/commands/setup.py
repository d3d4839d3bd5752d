"""What training and testing share: the network a config names, its weights and its input."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videogn.config import ClipConfig, Config, DataConfig, ModelConfig, TestConfig, TrainConfig
from videogn.config_files import LoadedConfig
from videogn.data.annotations import check_label_order, read_class_names, read_videos, spread
from videogn.data.changed import Change, ChangedClips
from videogn.data.clips import CenterClips, Clips, RandomClips
from videogn.data.colour_noise import ColourNoise
from videogn.data.decode import VideoReader
from videogn.data.index_file import index_path
from videogn.data.list_checks import VideoList
from videogn.data.loader import Reads, time_reads
from videogn.data.opening import CHECKS, VideoOpener
from videogn.data.protocols import PROTOCOLS
from videogn.data.rand_augment import RandAugmentation
from videogn.data.workers import Workers, choose_workers
from videogn.distributed import World
from videogn.engine.runs import RunFolder
from videogn.errors import ConfigError, WeightError
from videogn.models.build import build_network
from videogn.models.formats import VIDEO
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo

logger = logging.getLogger("videogn")

DEVICE_ROOM = 5.0
"""A crop of a 720p frame has four times the bytes of a finished one."""
PROBE_SAMPLES = 9
"""Samples that are read to choose how far ahead workers read."""
SAMPLED_VIDEOS = 20
"""Videos of a list whose form is looked at before it is read."""


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def reporter(world: World) -> Callable[[str], None]:
    """What prints lines on the first rank; on others, where they would be the same, nothing."""
    return say if world.is_main else lambda line: None


def spec_of(model: ModelConfig) -> NetworkSpec:
    """The network a config names."""
    return NetworkSpec(
        arch=model.arch,
        norm=model.norm,
        num_groups=model.num_groups,
        channels_per_group=model.channels_per_group,
        layout=model.layout,
        num_classes=model.num_classes,
        width=model.width or ARCHITECTURES[model.arch].width,
        depths=model.depths or ARCHITECTURES[model.arch].depths,
        dropout=model.dropout,
    )


class Views(NamedTuple):
    """How often a video is scored.

    Attributes:
        num_clips: stretches of the video.
        num_crops: parts of the frames of each.
    """

    num_clips: int
    num_crops: int


def views_of(test: TestConfig) -> Views:
    """The views that a config asks for, or its protocol has where it does not."""
    own = PROTOCOLS[test.protocol]
    return Views(test.num_clips or own.num_clips, test.num_crops or own.num_crops)


def build_model(model: ModelConfig, seed: int) -> torch.nn.Module:
    """The network a config names, with the random weights of ``seed``."""
    torch.manual_seed(seed)
    return build_network(spec_of(model))


def check_network(spec: NetworkSpec, clip: ClipConfig) -> None:
    """Refuse a network that cannot be built, or clips too small for it, before anything starts.

    Raises:
        UserError: groups do not divide the channels, or a clip has too few frames or pixels.
    """
    with torch.device("meta"):
        network = build_network(spec)
        network(torch.zeros(2, 3, clip.num_frames, clip.crop_size, clip.crop_size))


def list_of(
    data: DataConfig,
    key: str,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    names_of: str = "the weights",
) -> VideoList:
    """Read the list of videos that ``data.<key>`` names.

    Args:
        class_names: in label order, where something that the list must agree with has them.
        names_of: what that is, for messages.

    Raises:
        ConfigError: no list is named, or its label order is another one.
        AnnotationError: the list is wrong.
    """
    source = list_source(data, key)
    if not source:
        raise ConfigError(
            f"data.{key} is not set; give a list file, a class-folder tree or a Kinetics csv: "
            f"data.{key}=PATH"
        )
    names = class_names_of(data, num_classes, class_names, names_of)
    videos = read_videos(
        source,
        num_classes=num_classes,
        root=data.root,
        class_names=names,
        format=data.format,
        subset="train" if key == "train" else "test",
        allow_outside_root=data.allow_outside_root,
    )
    if names is not None:
        check_label_order(videos, names, data.class_names or names_of)
    return videos


def class_names_of(
    data: DataConfig, num_classes: int, known: Sequence[str] | None, of: str
) -> Sequence[str] | None:
    """Class names in label order: those of ``data.class_names``, which must be the known ones.

    Raises:
        ConfigError: the file has another number or another order of names.
    """
    if data.class_names is None:
        return known
    names = read_class_names(Path(data.class_names))
    if len(names) != num_classes:
        raise ConfigError(
            f"data.class_names={data.class_names}: has {len(names)} names and model.num_classes is "
            f"{num_classes}"
        )
    if known is not None and tuple(known) != names:
        differing = [i for i, pair in enumerate(zip(known, names, strict=True)) if len({*pair}) > 1]
        shown = "; ".join(
            f"label {i} is {known[i]!r} there and {names[i]!r} here" for i in differing[:3]
        )
        raise ConfigError(
            f"data.class_names={data.class_names}: its label order contradicts {of}: {shown}"
            f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}; use labels in the "
            "order of the weights"
        )
    return names


def video_opener(data: DataConfig, key: str) -> VideoOpener:
    """What opens the videos of ``data.<key>``: by their packet index where there is one.

    Without one, training and validation seek. A test decodes nearly every frame anyhow, and
    counts damaged videos: there the whole file is decoded.

    Raises:
        ConfigError: ``data.index`` names a file that is not there.
        UserError: the reader is not installed.
    """
    if data.reader in CHECKS:
        CHECKS[data.reader]()
    stream = None if data.stream == "best" else data.stream
    insist = data.insist_on_reader
    if data.index == "never":
        return VideoOpener(data.reader, stream=stream, insist=insist)
    path = index_path(list_source(data, key)) if data.index == "auto" else Path(data.index)
    if data.index != "auto" and not path.is_file():
        raise ConfigError(
            f"data.index={path}: no such file; make it with `videogn data index LIST --out {path}`"
        )
    index, seek = path if path.is_file() else None, key != "test"
    return VideoOpener(data.reader, index, seek=seek, stream=stream, insist=insist)


def reader_lines(data: DataConfig, key: str, videos: VideoList) -> Iterator[str]:
    """Which reader reads how many of a sample of the list ``data.<key>``, where that may vary."""
    if data.reader == "pyav":
        return
    paths = [record.path for record in spread(videos.records, SAMPLED_VIDEOS)]
    yield f"reader      {video_opener(data, key).share(paths)}"


def clips_of(
    clip: ClipConfig, open_video: Callable[[str], VideoReader], planar_room: float = 0.0
) -> RandomClips:
    """How training draws its clips."""
    return RandomClips(
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
        short_side_min=clip.short_side_min,
        short_side_max=clip.short_side_max,
        crop_size=clip.crop_size,
        flip_probability=clip.flip_probability,
        random_area=clip.augmentation == "area",
        fps=clip.fps,
        open_video=open_video,
        planar_room=planar_room,
    )


def train_clips(config: Config, key: str, device: torch.device) -> Clips:
    """How a config's augmented clips of the list ``data.<key>`` are made."""
    return augmented_clips(config, video_opener(config.data, key), train_room(config, device))


def augmented_clips(
    config: Config, open_video: Callable[[str], VideoReader], planar_room: float = 0.0
) -> Clips:
    """How a config's clips are cut out of videos and changed for training."""
    clips = clips_of(config.clip, open_video, planar_room)
    changes = changes_of(config.train)
    return ChangedClips(clips, *changes) if changes else clips


def changes_of(train: TrainConfig) -> list[Change]:
    """What augmented clips go through once their frames are finished."""
    changes: list[Change] = []
    if train.rand_augment:
        changes.append(RandAugmentation(train.rand_augment, train.rand_augment_magnitude))
    if train.color_jitter or train.lighting:
        changes.append(ColourNoise(train.color_jitter, train.lighting))
    return changes


def train_room(config: Config, device: torch.device) -> float:
    """As :func:`planar_room`, of augmented clips: some have to be finished as they are decoded."""
    return 0.0 if _finishing(config) else planar_room(config.data, device)


def _finishing(config: Config) -> dict[str, str]:
    """Settings that need finished frames where videos are decoded, with a value that does not."""
    train, clip = config.train, config.clip
    found: dict[str, str] = {}
    if train.rand_augment:
        found[f"train.rand_augment={train.rand_augment}"] = "train.rand_augment=0"
    if train.color_jitter:
        found[f"train.color_jitter={train.color_jitter}"] = "train.color_jitter=0"
    if train.lighting:
        found[f"train.lighting={train.lighting}"] = "train.lighting=0"
    if clip.augmentation == "area":
        found["clip.augmentation=area"] = "clip.augmentation=scale"
    return found


def val_clips(config: Config, device: torch.device) -> Clips:
    """How a config's validation clips are made."""
    if config.train.val_clip == "augmented":
        return train_clips(config, "val", device)
    clip = config.clip
    return CenterClips(
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
        short_side=clip.short_side_min,
        crop_size=clip.crop_size,
        fps=clip.fps,
        open_video=video_opener(config.data, "val"),
        planar_room=planar_room(config.data, device),
    )


def check_augmentation(config: Config) -> None:
    """Refuse to finish clips both where they are decoded and on the device.

    Raises:
        ConfigError: a setting that needs finished frames stands together with
            ``data.pixels=device``.
    """
    found = _finishing(config)
    if found and config.data.pixels == "device":
        raise ConfigError(
            f"{', '.join(found)}: needs finished frames where videos are decoded, and "
            "data.pixels=device finishes them elsewhere: use data.pixels=cpu or "
            f"{' '.join(found.values())}"
        )


def planar_room(data: DataConfig, device: torch.device) -> float:
    """How many times a finished clip's bytes its frames may take to stay as they are decoded."""
    if data.pixels == "auto":
        return 1.0 if device.type == "cuda" else 0.0
    return {"cpu": 0.0, "device": DEVICE_ROOM}[data.pixels]


def reading_workers(
    data: DataConfig, world: World, dataset: Reads, keys: Sequence[Any], batch_size: int
) -> Workers:
    """How many processes read a data set, and how far ahead.

    Args:
        keys: of a few samples, which are read to see how much their times differ.
        batch_size: samples of a batch.
    """
    workers = choose_workers(
        data.num_workers,
        data.prefetch,
        sharing=world.local_size,
        computes_here=world.device.type == "cpu",
        batch_size=batch_size,
        batch_bytes=batch_size * dataset.sample_bytes,
        seconds=partial(time_reads, dataset, keys),
    )
    return workers._replace(timeout=data.read_timeout)


def list_source(data: DataConfig, key: str) -> str:
    """The value of ``data.train``, ``data.val`` or ``data.test``."""
    return {"train": data.train, "val": data.val, "test": data.test}[key]


def checkpoint_file(path: Path) -> Path:
    """The weight file that a run folder or a file's name stands for.

    The paper tests the network at the end of its schedule, so a run folder stands for its last
    checkpoint, not for the best one, which was chosen on the validation set.

    Raises:
        WeightError: the folder is no run, or has no checkpoint yet.
    """
    if not path.is_dir():
        return path
    folder = RunFolder(path)
    if not folder.last.exists():
        raise WeightError(
            f"{path}: a folder without {folder.last.relative_to(path)}; "
            "name a run folder that has a checkpoint, or a weight file"
        )
    return folder.last


def input_scale(
    loaded: LoadedConfig, weights: WeightInfo | None, source: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of the input: the weight file's, unless the config insists.

    Raises:
        ConfigError: an inherited value contradicts the weight file; one that the config file
            itself or the command line sets wins, with a warning.
    """
    data = loaded.config.data
    if weights is None:
        return data.mean or VIDEO.mean, data.std or VIDEO.std
    given = {"data.mean": (data.mean, weights.mean), "data.std": (data.std, weights.std)}
    for key, (wanted, stored) in given.items():
        if wanted is None or wanted == stored:
            continue
        fault = f"{key}={list(wanted)} contradicts {list(stored)} of {source}"
        if key not in loaded.explicit:
            raise ConfigError(f"{fault}; leave it out, or set {key}=... yourself to insist")
        logger.warning("%s; the config insists", fault)
    return data.mean or weights.mean, data.std or weights.std
