"""What training and testing share: the network a config names, its weights and its input."""

import logging
from collections.abc import Sequence

import torch

from videogn.config import ClipConfig, DataConfig, LoadedConfig, ModelConfig
from videogn.data.annotations import VideoList, read_videos
from videogn.errors import ConfigError
from videogn.models.build import build_network
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo

DEFAULT_MEAN = (0.45, 0.45, 0.45)
DEFAULT_STD = (0.225, 0.225, 0.225)
"""Input scale where no weight file gives one: the non-local code's 114.75 and 57.375 of 255."""

logger = logging.getLogger("videogn")


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
    data: DataConfig, key: str, num_classes: int, class_names: Sequence[str] | None = None
) -> VideoList:
    """Read the list of videos that ``data.<key>`` names.

    Raises:
        ConfigError: no list is named.
        AnnotationError: the list is wrong.
    """
    source = {"train": data.train, "val": data.val, "test": data.test}[key]
    if not source:
        raise ConfigError(
            f"data.{key} is not set; give a list file, a class-folder tree or a Kinetics csv: "
            f"data.{key}=PATH"
        )
    return read_videos(source, num_classes=num_classes, root=data.root, class_names=class_names)


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
        return data.mean or DEFAULT_MEAN, data.std or DEFAULT_STD
    given = {"data.mean": (data.mean, weights.mean), "data.std": (data.std, weights.std)}
    for key, (wanted, stored) in given.items():
        if wanted is None or wanted == stored:
            continue
        fault = f"{key}={list(wanted)} contradicts {list(stored)} of {source}"
        if key not in loaded.explicit:
            raise ConfigError(f"{fault}; leave it out, or set {key}=... yourself to insist")
        logger.warning("%s; the config insists", fault)
    return data.mean or weights.mean, data.std or weights.std
