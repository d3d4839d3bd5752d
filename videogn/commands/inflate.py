"""Turn the weights of a 2D ResNet into weights of the video network.

SOURCE holds a 2D ResNet of torchvision, timm, Detectron, detectron2, tensorpack, mmdetection,
mmpretrain, PySlowFast or this program, as .pth, .pkl, .npz or .safetensors, or is the folder of a
pre-training. Its kind is found from its content, whatever its name, and it is never run as code.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from videogn.commands.setup import checkpoint_file
from videogn.data.annotations import read_class_names
from videogn.errors import UserError, WeightError
from videogn.files import sha256_of
from videogn.models.build import build_network
from videogn.models.formats import FORMATS
from videogn.models.i3d import LAYOUTS
from videogn.models.inflate import TEMPORAL_INITS, InflationReport, inflate_state_dict
from videogn.models.norm import NORMS
from videogn.models.sources import Source, read_source
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo
from videogn.models.verify import describe_verification, verify_inflation
from videogn.models.weights import check_file_name, few, write_weights

Triple = tuple[float, float, float]

VIDEO_ARCHITECTURES = [name for name, each in ARCHITECTURES.items() if each.family == "i3d"]

DEFAULT_CLASSES = 400
DROPOUT = 0.5
"""Of the video network in training (non-local paper, section 4.1)."""


@dataclass(frozen=True)
class Inflation:
    """What :func:`inflate_file` did.

    Attributes:
        report: what became of every tensor.
        info: what the new file says about its weights.
        sha256: hash of the new file.
        verification: table of the check on a still clip; None where none was asked for.
    """

    source: Source
    report: InflationReport
    info: WeightInfo
    sha256: str
    verification: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="2D weights")
    parser.add_argument(
        "-o", "--out", metavar="OUT", type=Path, required=True, help="new .safetensors file"
    )
    parser.add_argument(
        "--arch", choices=VIDEO_ARCHITECTURES, default="i3d_r50", help="default: %(default)s"
    )
    parser.add_argument(
        "--from",
        dest="source_format",
        metavar="KIND",
        choices=list(FORMATS),
        help=f"kind of SOURCE, where its content does not tell: {', '.join(FORMATS)}",
    )
    parser.add_argument("--norm", choices=list(NORMS), default="gn", help="default: %(default)s")
    parser.add_argument("--layout", choices=list(LAYOUTS), default="nonlocal")
    parser.add_argument(
        "--temporal-init",
        choices=list(TEMPORAL_INITS),
        default="mean",
        help="mean: w/t at each time step, as in the paper; center: w at the middle one",
    )
    parser.add_argument(
        "--classes", metavar="N", type=positive, help="default: the class names', else 400"
    )
    parser.add_argument("--class-names", metavar="FILE", type=Path, help="one per line")
    parser.add_argument("--num-groups", metavar="N", type=positive, default=32)
    parser.add_argument("--channels-per-group", metavar="N", type=positive)
    parser.add_argument("--width", metavar="N", type=positive, help="default: of --arch")
    parser.add_argument("--depths", metavar="N,N,N,N", type=_depths, help="default: of --arch")
    add_input_scale(parser, "the source's, else ImageNet's")
    parser.add_argument(
        "--verify", action="store_true", help="compare with the 2D network on a still clip"
    )


def add_input_scale(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare ``--mean`` and ``--std``."""
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            metavar=("R", "G", "B"),
            nargs=3,
            type=float,
            help=f"RGB in [0, 1] of the input; default: {default}",
        )


def run(args: argparse.Namespace) -> int:
    """Inflate, print what became of every tensor, and return the exit code."""
    class_names = None if args.class_names is None else read_class_names(args.class_names)
    if args.classes is not None and class_names is not None and args.classes != len(class_names):
        raise UserError(
            f"{args.class_names}: has {len(class_names)} names and --classes is {args.classes}; "
            "leave --classes out"
        )
    spec = NetworkSpec(
        arch=args.arch,
        norm=args.norm,
        num_groups=args.num_groups,
        channels_per_group=args.channels_per_group,
        layout=args.layout,
        num_classes=args.classes or (len(class_names) if class_names else DEFAULT_CLASSES),
        width=args.width or ARCHITECTURES[args.arch].width,
        depths=args.depths or ARCHITECTURES[args.arch].depths,
        dropout=DROPOUT,
    )
    _check_buildable(spec)
    inflation = inflate_file(
        checkpoint_file(args.source),
        args.out,
        spec,
        source_format=args.source_format,
        temporal_init=args.temporal_init,
        class_names=class_names,
        mean=triple(args.mean),
        std=triple(args.std),
        verify=args.verify,
    )
    print(describe(inflation, args.out))
    return 0


def inflate_file(
    source: str | Path,
    out: str | Path,
    spec: NetworkSpec,
    *,
    source_format: str | None = None,
    temporal_init: str = "mean",
    class_names: tuple[str, ...] | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    verify: bool = False,
) -> Inflation:
    """Inflate 2D weights and write the file that ``model.weights=`` takes.

    Args:
        spec: the video network.
        source_format: a key of ``FORMATS``; where None, found from the content.
        class_names: in label order; where None, the source's if its classifier is kept.
        mean, std: RGB in [0, 1]; where None, the source's, else ImageNet's. A source whose
            input is in 0 to 255, undivided, gets its first kernel scaled to ``std``.

    Raises:
        WeightError: the source cannot be read or does not fit ``spec``, or ``out`` has the name of
            another kind of file; nothing is written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise WeightError(f"{out}: is the source itself; give another name to -o")
    check_file_name(out)
    _check_scale(mean, std)
    weights = read_source(source, source_format=source_format, std=std)
    _check_half_a_scale(weights, mean, std)
    state, report = inflate_state_dict(weights, spec, temporal_init, class_names)
    verification = None
    if verify:
        rows = verify_inflation(weights, spec, class_names=class_names)
        verification = describe_verification(rows)
    kept_names = None if report.fresh_classifier else weights.class_names
    info = WeightInfo(
        spec=spec,
        class_names=class_names or kept_names,
        mean=mean or weights.mean,
        std=std or weights.std,
        source=source.name,
        source_sha256=weights.sha256,
        temporal_init=temporal_init,
    )
    write_weights(out, state, info)
    return Inflation(weights, report, info, sha256_of(out), verification)


def describe(inflation: Inflation, out: Path) -> str:
    """The report as aligned lines."""
    source, report = inflation.source, inflation.report
    classes = "no classifier" if source.num_classes is None else f"{source.num_classes} classes"
    depths = ",".join(map(str, source.depths))
    wanted = inflation.info.spec.num_classes
    lines = [
        f"{source.path}: {FORMATS[source.format].title}, norm {source.norm_family} "
        f"({' or '.join(source.norms)}), width {source.width}, depths {depths}, {classes}",
        *source.notes,
        _row("loaded", report.loaded),
        _row("inflated", report.inflated, f"({inflation.info.temporal_init})"),
        _row("skipped", report.skipped),
        _row("fresh", report.fresh, f"({wanted} classes)" if report.fresh_classifier else ""),
        _row("missing", report.missing),
        _row("unexpected", report.unexpected),
    ]
    if inflation.info.spec.norm == "gn" and source.spec is None:
        lines.append(
            f"groups      not told by the weights, taken as {_groups(inflation.info.spec)}"
        )
    if inflation.verification:
        lines += ["", inflation.verification, ""]
    mean, std = inflation.info.mean, inflation.info.std
    lines.append(f"input       RGB in [0, 1], mean {_numbers(mean)}, std {_numbers(std)}")
    size = out.stat().st_size / 2**20
    lines.append(f"wrote       {out} ({size:.1f} MiB), sha256 {inflation.sha256}")
    return "\n".join(lines)


def _check_buildable(spec: NetworkSpec) -> None:
    """Refuse, in the words of the command line, a network that cannot be built."""
    try:
        with torch.device("meta"):
            build_network(spec)
    except UserError as error:
        flags = re.sub(r"model\.(\w+)=", lambda m: f"--{m[1].replace('_', '-')} ", str(error))
        raise UserError(flags) from error


def _row(kind: str, names: Iterable[str], note: str = "") -> str:
    names = tuple(names)
    return f"{kind:<11}{len(names):>4}  {few(names, 2)} {note}".rstrip()


def _groups(spec: NetworkSpec) -> str:
    if spec.channels_per_group is not None:
        return f"groups of {spec.channels_per_group} channels"
    return f"{spec.num_groups} groups"


def _numbers(values: Triple) -> str:
    return " ".join(f"{value:g}" for value in values)


def _check_scale(mean: Triple | None, std: Triple | None) -> None:
    means, stds = mean or (0.0,), std or (1.0,)
    if not all(0 <= value <= 1 for value in means) or not all(0 < value <= 1 for value in stds):
        given = [f"--{key} {_numbers(v)}" for key, v in (("mean", mean), ("std", std)) if v]
        raise UserError(
            f"{' '.join(given)}: must lie in [0, 1], std above 0; divide values for 0 to 255 by 255"
        )


def _check_half_a_scale(source: Source, mean: Triple | None, std: Triple | None) -> None:
    """Weights whose kernel holds the std get another one for certain; the mean stays theirs."""
    fitted = source.info is None and FORMATS[source.format].scale.absorbed
    if (mean is None) != (std is None) and not fitted:
        raise UserError("--mean and --std belong together: give both or neither")


def triple(values: list[float] | None) -> Triple | None:
    """Three numbers of the command line, where they were given."""
    return None if values is None else (values[0], values[1], values[2])


def positive(text: str) -> int:
    """A whole number of the command line, from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _depths(text: str) -> tuple[int, ...]:
    depths = tuple(positive(word) for word in text.split(","))
    if len(depths) > 4:
        raise argparse.ArgumentTypeError(f"{text}: at most 4 stages")
    return depths
