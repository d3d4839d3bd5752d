"""Turn the weights of a 2D ResNet into weights of the video network.

SOURCE is a state dict of torchvision's or timm's ResNet (.pth or .safetensors) or a file of this
program's own 2D network. It is never run as code.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from videogn.errors import AnnotationError, UserError, WeightError
from videogn.files import sha256_of
from videogn.models.i3d import LAYOUTS
from videogn.models.inflate import TEMPORAL_INITS, InflationReport, inflate_state_dict
from videogn.models.norm import NORMS
from videogn.models.sources import Source2D, read_source
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.verify import describe_verification, verify_inflation
from videogn.models.weights import few, write_weights

Triple = tuple[float, float, float]

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

    source: Source2D
    report: InflationReport
    info: WeightInfo
    sha256: str
    verification: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="2D weights")
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="new file")
    parser.add_argument("--arch", choices=["i3d_r50"], default="i3d_r50")
    parser.add_argument("--norm", choices=list(NORMS), default="gn", help="default: %(default)s")
    parser.add_argument("--layout", choices=list(LAYOUTS), default="nonlocal")
    parser.add_argument(
        "--temporal-init",
        choices=list(TEMPORAL_INITS),
        default="mean",
        help="mean: w/t at each time step, as in the paper; center: w at the middle one",
    )
    parser.add_argument(
        "--classes", metavar="N", type=_positive, help="default: the class names', else 400"
    )
    parser.add_argument("--class-names", metavar="FILE", type=Path, help="one per line")
    parser.add_argument("--num-groups", metavar="N", type=_positive, default=32)
    parser.add_argument("--channels-per-group", metavar="N", type=_positive)
    parser.add_argument("--width", metavar="N", type=_positive, default=64)
    parser.add_argument("--depths", metavar="N,N,N,N", type=_depths, default=(3, 4, 6, 3))
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            metavar=("R", "G", "B"),
            nargs=3,
            type=float,
            help="RGB in [0, 1] of the input; default: the source's, else ImageNet's",
        )
    parser.add_argument(
        "--verify", action="store_true", help="compare with the 2D network on a still clip"
    )


def run(args: argparse.Namespace) -> int:
    """Inflate, print what became of every tensor, and return the exit code."""
    class_names = None if args.class_names is None else _read_class_names(args.class_names)
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
        width=args.width,
        depths=args.depths,
        dropout=DROPOUT,
    )
    inflation = inflate_file(
        args.source,
        args.out,
        spec,
        temporal_init=args.temporal_init,
        class_names=class_names,
        mean=_triple(args.mean),
        std=_triple(args.std),
        verify=args.verify,
    )
    print(describe(inflation, args.out))
    return 0


def inflate_file(
    source: str | Path,
    out: str | Path,
    spec: NetworkSpec,
    *,
    temporal_init: str = "mean",
    class_names: tuple[str, ...] | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    verify: bool = False,
) -> Inflation:
    """Inflate 2D weights and write the file that ``model.weights=`` takes.

    Args:
        spec: the video network.
        class_names: in label order; where None, the source's if its classifier is kept.
        mean, std: RGB in [0, 1]; where None, the source's, else ImageNet's.

    Raises:
        WeightError: the source cannot be read or does not fit ``spec``; nothing is written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise WeightError(f"{out}: is the source itself; give another name to -o")
    _check_scale(mean, std)
    weights = read_source(source)
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
        f"{source.path}: 2D network, norm {source.norm}, width {source.width}, depths {depths}, "
        f"{classes}",
        _row("loaded", report.loaded),
        _row("inflated", report.inflated, f"({inflation.info.temporal_init})"),
        _row("skipped", report.skipped),
        _row("fresh", report.fresh, f"({wanted} classes)" if report.fresh_classifier else ""),
        _row("missing", report.missing),
        _row("unexpected", report.unexpected),
    ]
    if source.norm == "gn" and source.spec is None:
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


def _row(kind: str, names: Iterable[str], note: str = "") -> str:
    names = tuple(names)
    return f"{kind:<11}{len(names):>4}  {few(names, 2)} {note}".rstrip()


def _groups(spec: NetworkSpec) -> str:
    if spec.channels_per_group is not None:
        return f"groups of {spec.channels_per_group} channels"
    return f"{spec.num_groups} groups"


def _numbers(values: Triple) -> str:
    return " ".join(f"{value:g}" for value in values)


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise AnnotationError(f"{path}: cannot read the class names: {reason}") from error
    if not names:
        raise AnnotationError(f"{path}: no class names; write one per line")
    faults = [
        f"{path}:{number}: {'empty' if not name else f'{name!r} stands twice'}"
        for number, name in enumerate(names, 1)
        if not name or name in names[: number - 1]
    ]
    if faults:
        raise AnnotationError("\n".join(faults))
    return names


def _check_scale(mean: Triple | None, std: Triple | None) -> None:
    if (mean is None) != (std is None):
        raise UserError("--mean and --std belong together: give both or neither")
    if mean is None or std is None:
        return
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise UserError(
            f"--mean {_numbers(mean)} --std {_numbers(std)}: must lie in [0, 1], std above 0; "
            "divide values for 0 to 255 by 255"
        )


def _triple(values: list[float] | None) -> Triple | None:
    return None if values is None else (values[0], values[1], values[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _depths(text: str) -> tuple[int, ...]:
    depths = tuple(_positive(word) for word in text.split(","))
    if len(depths) > 4:
        raise argparse.ArgumentTypeError(f"{text}: at most 4 stages")
    return depths
