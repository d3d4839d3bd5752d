"""Turn a weight file into one of this program or of another, and prove that nothing changed.

SOURCE is a checkpoint or a run folder of this program, or weights of pytorchvideo, PySlowFast,
mmaction2, video-nonlocal-net, or of a 2D ResNet for --to videogn. It is never run as code.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from videogn.commands.inflate import add_input_scale, positive, triple
from videogn.commands.setup import checkpoint_file
from videogn.data.annotations import read_class_names
from videogn.errors import UserError, WeightError
from videogn.files import atomic_path, check_writable, sha256_of
from videogn.models.export import export_onnx, export_torch
from videogn.models.formats import FORMATS
from videogn.models.i3d import LAYOUTS
from videogn.models.names import PLAIN, PYTORCHVIDEO
from videogn.models.network_file import Loaded, Wishes, build, load
from videogn.models.norm import NORMS
from videogn.models.plain_resnet import COUNTER
from videogn.models.proof import (
    check_same_logits,
    check_same_tensors,
    mmaction2_network,
    pytorchvideo_network,
)
from videogn.models.sources import OWN, Source, read_source
from videogn.models.spec import WeightInfo, class_names_sha256
from videogn.models.targets import TARGETS, check_stages, norm_note, to_target, write_target
from videogn.models.weights import check_file_name, read_weights, write_weights

EXPORTS = {"onnx": export_onnx, "torch-export": export_torch}
EXPORT_FRAMES, EXPORT_SIZE = 32, 224


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="weight file or run folder")
    parser.add_argument(
        "--to", required=True, choices=[OWN, *TARGETS, *EXPORTS], help="kind of the new file"
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="new file")
    parser.add_argument(
        "--from", dest="source_format", choices=list(FORMATS), help="default: found from the names"
    )
    parser.add_argument("--norm", choices=list(NORMS), help="where the weights do not tell")
    parser.add_argument("--num-groups", metavar="N", type=positive, help="of GN; default: 32")
    parser.add_argument("--channels-per-group", metavar="N", type=positive)
    parser.add_argument("--layout", choices=list(LAYOUTS), help="default: the source's usual one")
    parser.add_argument("--class-names", metavar="FILE", type=Path, help="one per line")
    add_input_scale(parser, "the source's usual one")
    parser.add_argument(
        "--frames", metavar="T", type=positive, default=EXPORT_FRAMES, help="of an exported clip"
    )
    parser.add_argument(
        "--size", metavar="PIXELS", type=positive, default=EXPORT_SIZE, help="of an exported clip"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, print what was proved, and return the exit code."""
    check_options(args)
    wishes = Wishes(
        source_format=args.source_format,
        norm=args.norm,
        num_groups=args.num_groups,
        channels_per_group=args.channels_per_group,
        layout=args.layout,
        class_names=None if args.class_names is None else read_class_names(args.class_names),
        mean=triple(args.mean),
        std=triple(args.std),
    )
    for line in convert_file(
        args.source, args.out, args.to, wishes, num_frames=args.frames, size=args.size
    ):
        print(line, flush=True)
    return 0


def convert_file(
    source: Path,
    out: Path,
    to: str,
    wishes: Wishes | None = None,
    *,
    num_frames: int = EXPORT_FRAMES,
    size: int = EXPORT_SIZE,
) -> Iterator[str]:
    """Convert a file, and yield line by line what was found, done and proved.

    Args:
        to: ``videogn``, a key of ``TARGETS``, ``onnx`` or ``torch-export``.
        num_frames, size: of the clip that a network is exported for.

    Raises:
        WeightError: the source cannot be read, or a proof fails; nothing is written then.
    """
    path = checkpoint_file(source)
    if out.exists() and path.exists() and out.samefile(path):
        raise WeightError(f"{out}: is the source itself; give another name to -o")
    check_writable(out)
    if to == OWN:
        check_file_name(out)
    loaded = load(path, wishes or Wishes())
    yield from loaded.lines
    if to in EXPORTS:
        network = build(loaded)
        proof = EXPORTS[to](network, loaded.info, out, num_frames=num_frames, size=size)
        yield from proof.lines()
    elif to == OWN:
        yield from _write_own(loaded, out)
    else:
        yield from _write_foreign(loaded, out, to)
    yield _classes_line(loaded.info)
    yield f"wrote       {out} ({out.stat().st_size / 2**20:.1f} MiB), sha256 {sha256_of(out)}"


def _write_own(loaded: Loaded, out: Path) -> Iterator[str]:
    """A file of this program: its tensors, and the function of the program it came from."""
    info = loaded.info
    with atomic_path(out) as temporary:
        write_weights(temporary, loaded.state, info)
        found = read_weights(temporary).state
        yield check_same_tensors(str(out), loaded.state, found, counters=True)
        if loaded.source is not None and loaded.source.format in TARGETS:
            yield from _back_into_source(loaded, loaded.source)
        if info.spec.family == "i3d":
            other = loaded.source.format if loaded.source else OWN
            yield from _compare_with_libraries(
                loaded, out, other if other in TARGETS else "pytorchvideo"
            )


def _back_into_source(loaded: Loaded, source: Source) -> Iterator[str]:
    """The new file's tensors under the source's names are the source's."""
    target = TARGETS[source.format]
    names = PYTORCHVIDEO if loaded.info.spec.family == "i3d" else PLAIN
    plain = {names.to_plain(name) or name: tensor for name, tensor in loaded.state.items()}
    norm = loaded.info.spec.norm
    again = to_target(target, {n: plain[n] for n in source.state if n in plain}, norm)
    kept = {n: t for n, t in source.state.items() if n in plain}
    line = check_same_tensors(str(loaded.path), to_target(target, kept, norm), again, counters=True)
    yield line.replace("read back", f"back under {target.title}'s names")


def _write_foreign(loaded: Loaded, out: Path, to: str) -> Iterator[str]:
    """A file of another program, read back and run in that program's own network."""
    target, info = TARGETS[to], loaded.info
    if loaded.plain is None:
        yield from _write_other_family(loaded, out, to)
        return
    if info.spec.family != "i3d":
        raise WeightError(
            f"{loaded.path}: is of a 2D network, and {target.title}'s are video networks; "
            "inflate it first with `videogn inflate`"
        )
    check_stages(info.spec.depths, to)
    yield from filter(None, [norm_note(to, info.spec.norm)])
    tensors = to_target(target, loaded.plain, info.spec.norm)
    with atomic_path(out) as temporary:
        write_target(temporary, target, tensors, info)
        found = read_source(temporary)
        yield check_same_tensors(str(out), loaded.plain, found.state, counters=target.counters)
        _check_description(out, found, info)
        yield from _compare_with_libraries(loaded, out, to)
    yield from _differences(info, to)


def _check_description(out: Path, found: Source, info: WeightInfo) -> None:
    if found.info != info:
        raise WeightError(
            f"{out}: proof failed: read back, its description is not what was written; "
            "nothing was kept"
        )


def _compare_with_libraries(loaded: Loaded, out: Path, to: str) -> Iterator[str]:
    """Logits against networks of other makers, where their libraries are installed."""
    if to == "mmaction2":
        yield from _compare_with_mmaction2(loaded, out)
    elif to != "pytorchvideo":
        title = TARGETS[to].title
        yield f"logits      of {title}'s own network not compared: it is no library here"
    spec = loaded.info.spec
    network, call = pytorchvideo_network(spec)
    if network is None:
        yield f"logits      of pytorchvideo's own network not compared: {call}"
        return
    network.load_state_dict(loaded.state)
    yield check_same_logits(str(out), "pytorchvideo's own network", build(loaded), network, spec)
    yield f"built by    {call}"


def _compare_with_mmaction2(loaded: Loaded, out: Path) -> Iterator[str]:
    spec = loaded.info.spec
    network, call = mmaction2_network(spec)
    if network is None or loaded.plain is None:
        yield f"logits      of mmaction2's own network not compared: {call}"
        return
    state = to_target(TARGETS["mmaction2"], loaded.plain, spec.norm)
    for name, tensor in network.state_dict().items():
        if name.endswith(COUNTER):
            state.setdefault(name, tensor)
    network.load_state_dict(state)
    yield check_same_logits(str(out), "mmaction2's own network", build(loaded), network, spec)
    yield f"built by    {call}"


def _differences(info: WeightInfo, to: str) -> Iterator[str]:
    """What the other program has to be told, for its usual network is another one."""
    target, usual = TARGETS[to], FORMATS[to]
    if info.spec.layout != usual.layout:
        yield (
            f"note        the layout is {info.spec.layout} and {target.title}'s usual network is "
            f"{usual.layout}: the weights fit it by name, but its strides and pools make "
            "it another function"
        )
    scale = zip((*info.mean, *info.std), (*usual.scale.mean, *usual.scale.std), strict=True)
    if any(abs(own - theirs) > 1e-4 for own, theirs in scale):
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (info.mean, info.std))
        yield (
            f"note        the input is RGB in [0, 1] less {mean} over {std}, which is not "
            f"{target.title}'s usual scale; set it there"
        )


def _write_other_family(loaded: Loaded, out: Path, to: str) -> Iterator[str]:
    """pytorchvideo's other networks have its names already."""
    if to != "pytorchvideo" or loaded.info.spec.family != "zoo":
        raise WeightError(
            f"{loaded.path}: is of {loaded.info.spec.arch}, which {TARGETS[to].title} has no names "
            "for; give --to videogn, onnx or torch-export"
        )
    with atomic_path(out) as temporary:
        write_target(temporary, TARGETS[to], loaded.state, loaded.info)
        found = torch.load(temporary, map_location="cpu", weights_only=True)["model_state"]
        yield check_same_tensors(str(out), loaded.state, found, counters=True)


def _classes_line(info: WeightInfo) -> str:
    if info.class_names is None:
        return "classes     no names known; give them with --class-names"
    names = info.class_names
    return (
        f"classes     {len(names)} names, {names[0]} … {names[-1]}, "
        f"sha256 {class_names_sha256(names)[:16]}…"
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that the wanted kind of file does not have.

    Raises:
        UserError: naming the option.
    """
    if args.to not in EXPORTS and (args.frames, args.size) != (EXPORT_FRAMES, EXPORT_SIZE):
        raise UserError(f"--frames and --size are of onnx and torch-export, not of {args.to}")
