"""Pre-train a 2D network on images, as the paper does on ImageNet, and tell its error.

It trains by the very loop of `videogn train`, with the same checkpoints and the same way of going
on. Once the last iteration is done, RUN/pretrain.json has the errors of the last and the best
validation and the median of the last five, which is what the paper reports.
"""

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from videogn.commands import train
from videogn.commands.inflate import VIDEO_ARCHITECTURES
from videogn.commands.setup import spec_of
from videogn.config import STILL_ARCHS, Config
from videogn.config_files import load_config
from videogn.engine.pretraining import MEDIAN_OF, Outcome, outcome_file, outcome_of
from videogn.engine.runs import RunFolder, read_log
from videogn.errors import ConfigError, RunError
from videogn.files import write_text
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.ranks import speaking_rank

VIDEO_NETWORKS = {"resnet50": "i3d_r50", "resnet101": "i3d_r101"}
"""2D network -> the video network that its weights are inflated to."""
INFLATED_GROUPS = 32
"""Default of ``videogn inflate --num-groups``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn pretrain``: those of ``videogn train``."""
    train.add_arguments(parser, example="configs/imagenet/r50_gn_b32.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Train; when all iterations are done, write and print what came of it."""
    config = load_config(arguments.config, arguments.overrides).config
    check(config, arguments.config)
    # Ranks that this starts are those of ``videogn train``: the outcome is told here, once.
    code = train.run(arguments)
    if code == 0 and not arguments.dry_run and not speaking_rank():
        folder = RunFolder(Path(config.out))
        outcome = write_outcome(folder)
        for line in (*outcome_lines(outcome, config), *inflation_lines(folder, config)):
            print(line, flush=True)
    return code


def check(config: Config, source: str) -> None:
    """Refuse what is no pre-training on images.

    Args:
        source: the config file.

    Raises:
        ConfigError: the network is a video network, or there is nothing to measure its error on.
    """
    if config.model.arch not in STILL_ARCHS:
        raise ConfigError(
            f"{source}: model.arch={config.model.arch} is no 2D network, and pre-training is of "
            f"{', '.join(STILL_ARCHS)}; video networks are trained by: videogn train {source}"
        )
    if not config.data.val:
        raise ConfigError(
            f"{source}: data.val is not set: the error is measured on its images; name them, or "
            f"train without by: videogn train {source}"
        )


def write_outcome(folder: RunFolder) -> Outcome:
    """Write ``pretrain.json`` from the log of a run.

    Raises:
        RunError: the log holds no validation, or the file cannot be written.
    """
    outcome = outcome_of(read_log(folder.log))
    if outcome is None:
        raise RunError(
            f"{folder.log}: holds no validation, though the run is complete; choose another out= "
            "to train anew"
        )
    write_text(outcome_file(folder.path), json.dumps(outcome.as_dict(), indent=2) + "\n")
    return outcome


def outcome_lines(outcome: Outcome, config: Config) -> Iterator[str]:
    """The outcome as text."""
    last, best, count = outcome.last, outcome.best, len(outcome.at_end)
    yield (
        f"top-1 error {last.top1_error:.2f} % (top-5 {last.top5_error:.2f} %) of "
        f"{last.num_images:,} images after iteration {last.iteration:,}"
    )
    yield f"best        {best.top1_error:.2f} % after iteration {best.iteration:,}"
    few = f"; the paper's median is over {MEDIAN_OF}" if count < MEDIAN_OF else ""
    validations = f"{count} validations" if count > 1 else "validation"
    yield f"median      {outcome.median_top1_error:.2f} % of the last {validations}{few}"
    if config.train.val_epochs != 1:
        yield (
            f"            they are not an epoch apart, as the paper's {MEDIAN_OF} are: "
            "train.val_epochs=1"
        )
    yield f"wrote       {outcome_file(Path(config.out))}"


def inflation_lines(folder: RunFolder, config: Config) -> Iterator[str]:
    """How the weights become those of a video network."""
    spec = spec_of(config.model)
    if spec.arch not in VIDEO_NETWORKS:
        yield f"inflate     {spec.arch} has no video network that its weights could be inflated to"
        return
    words = ["videogn", "inflate", str(folder.last), "-o", _weights_name(spec)]
    yield f"inflate     {shlex.join([*words, *inflate_options(spec)])}"


def inflate_options(spec: NetworkSpec) -> list[str]:
    """The options of ``videogn inflate`` that describe a 2D network; defaults are left out."""
    arch = VIDEO_NETWORKS[spec.arch]
    own = ARCHITECTURES[arch]
    words = [] if arch == VIDEO_ARCHITECTURES[0] else ["--arch", arch]
    words += ["--norm", spec.norm]
    if spec.channels_per_group is not None:
        words += ["--channels-per-group", str(spec.channels_per_group)]
    if spec.num_groups != INFLATED_GROUPS:
        words += ["--num-groups", str(spec.num_groups)]
    if spec.width != own.width:
        words += ["--width", str(spec.width)]
    if spec.depths != own.depths:
        words += ["--depths", ",".join(map(str, spec.depths))]
    return words


def _weights_name(spec: NetworkSpec) -> str:
    """The name under which the shipped configs of video networks look for the weights."""
    groups = ""
    if spec.norm == "gn" and spec.channels_per_group is not None:
        groups = f"_c{spec.channels_per_group}"
    elif spec.norm == "gn" and spec.num_groups != INFLATED_GROUPS:
        groups = f"_g{spec.num_groups}"
    return f"weights/{VIDEO_NETWORKS[spec.arch]}_{spec.norm}{groups}.safetensors"
