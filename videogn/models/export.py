"""Networks as files that run without this program: ONNX and torch.export.

Shapes: B clips, T frames, H x W pixels, K classes. An exported network takes ``clips``
(B, 3, T, H, W) float32, RGB in [0, 1] less the mean over the std, and gives ``logits`` (B, K).
Batch, frames and size stay dynamic where the exporter allows; the others are told with the reason.
"""

import importlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from videogn.errors import UserError, WeightError
from videogn.files import atomic_path
from videogn.models.i3d import I3D, ClassifierHead
from videogn.models.proof import TOLERANCE, relative_error
from videogn.models.spec import ARCHITECTURES, WeightInfo
from videogn.models.weights import METADATA_KEY

AXES = {0: "batch", 2: "frames", 3: "height", 4: "width"}
LADDER: tuple[tuple[int, ...], ...] = ((0, 2, 3, 4), (0, 2), (0, 3, 4), (0,), ())
STILL_LADDER: tuple[tuple[int, ...], ...] = ((0, 3, 4), (0,), ())
"""Axes that are tried to be dynamic, until a file stands the comparison."""

STILL_FAMILIES = ("resnet2d", "vgg2d")
DESCRIPTION = "videogn.json"
"""Name of the description beside the network in a torch.export file."""

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportProof:
    """What was exported, and how near it is to the network.

    Attributes:
        kind: the kind of file, in words.
        dynamic: axis -> smallest and largest size, None where there is no limit.
        static: axis -> its size, and why it is fixed.
        shapes: of the clips that were run.
        error: largest difference of the logits on all of them, relative to the largest logit.
        seconds: the export took.
    """

    kind: str
    dynamic: dict[str, tuple[int, int | None]]
    static: dict[str, tuple[int, str]]
    shapes: tuple[tuple[int, ...], ...]
    error: float
    seconds: float

    def lines(self) -> Iterator[str]:
        """The proof as text."""
        dynamic = ", ".join(f"{axis} from {low}" for axis, (low, _) in self.dynamic.items())
        yield f"exported    {self.kind} in {self.seconds:.0f} s, dynamic: {dynamic or 'nothing'}"
        for axis, (size, reason) in self.static.items():
            yield f"fixed       {axis} {size}: {reason}"
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        yield (
            f"logits      of the file on random clips of {shapes}: difference {self.error:.1e} of "
            f"the largest, at most {TOLERANCE:.0e}"
        )


def export_onnx(
    network: nn.Module, info: WeightInfo, path: Path, *, num_frames: int, size: int
) -> ExportProof:
    """Write an ONNX file, checked by onnx and compared with the network in onnxruntime.

    Args:
        network: in evaluation mode.
        num_frames, size: of the clip it is traced with, in frames and pixels.

    Raises:
        UserError: the libraries are not installed.
        WeightError: the network cannot be exported, or its logits are others; nothing is written.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        _need(library)

    def write(traced: Any, temporary: Path) -> Run:
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=["clips"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props[METADATA_KEY] = json.dumps(info.to_json())
        program.save(temporary)
        return _onnx_run(temporary)

    return _export("ONNX", network, info, path, num_frames, size, write)


def export_torch(
    network: nn.Module, info: WeightInfo, path: Path, *, num_frames: int, size: int
) -> ExportProof:
    """Write a file of torch.export, read back and compared with the network.

    Args and errors are those of :func:`export_onnx`.
    """

    def write(traced: Any, temporary: Path) -> Run:
        with temporary.open("wb") as file:
            torch.export.save(traced, file, extra_files={DESCRIPTION: json.dumps(info.to_json())})
        with temporary.open("rb") as file:
            module = torch.export.load(file).module()
        return lambda clips: module(clips)

    return _export("torch.export", network, info, path, num_frames, size, write)


class _Logits(nn.Module):
    """The forward pass alone, its input named as in the exported file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor
        if not isinstance(self.network, I3D):
            logits = self.network(clips)
            return logits
        # The same sums with the mean over positions before the classifier, which is linear. A
        # pool that leaves one position, as at 224 pixels, would make the exporter fix the size.
        head = self.network.blocks[-1]
        assert isinstance(head, ClassifierHead)
        pooled = self.network.features(clips).mean(2)
        rows, columns = (_share_of_windows(size, head.pool_size) for size in pooled.shape[2:])
        logits = head.proj((pooled * rows.unsqueeze(1) * columns).sum((2, 3)))
        return logits


def _share_of_windows(size: int, window: int | None) -> Tensor:
    """Weight of each of ``size`` places in the mean of a sliding average of ``window`` places.

    >>> _share_of_windows(4, 2) * 6
    tensor([1., 2., 2., 1.])
    """
    if window is None:
        return torch.full((size,), 1 / size)
    window = min(window, size)
    places = torch.arange(size)
    windows = torch.minimum(places + 1, size - places)
    windows = windows.clamp(max=window).clamp(max=size - window + 1)
    return windows.float() / (window * (size - window + 1))


def _export(
    kind: str,
    network: nn.Module,
    info: WeightInfo,
    path: Path,
    num_frames: int,
    size: int,
    write: Callable[[Any, Path], Run],
) -> ExportProof:
    """Export with as many dynamic axes as go through, and compare before the file is kept."""
    started = time.monotonic()
    still = ARCHITECTURES[info.spec.arch].family in STILL_FAMILIES
    num_frames = 1 if still else num_frames
    refused = {2: "a network of still images"} if still else {}
    with atomic_path(path) as temporary, _quiet():
        for axes in STILL_LADDER if still else LADDER:
            # Where both may change, another width than height, or the exporter takes them for one.
            clip = _random_clip(2, num_frames, size, size + (4 in axes), seed=0)
            try:
                traced = _trace(network, clip, axes)
                run = write(traced, temporary)
                dynamic = _dynamic(traced, axes)
                shapes = _shapes(clip, dynamic)
                error = max(_compare(path, network, run, shape) for shape in shapes)
                break
            except Exception as fault:  # exporters raise errors of every kind
                if not axes:
                    raise _refusal(path, fault) from fault
                refused |= {axis: _reason(fault) for axis in axes if axis not in refused}
    return ExportProof(
        kind=kind,
        dynamic=dynamic,
        static={
            name: (clip.shape[axis], refused.get(axis, "the exporter fixes it"))
            for axis, name in AXES.items()
            if name not in dynamic
        },
        shapes=tuple(shapes),
        error=error,
        seconds=time.monotonic() - started,
    )


def _refusal(path: Path, fault: Exception) -> WeightError:
    if isinstance(fault, WeightError):
        return fault
    return WeightError(f"{path}: the network cannot be exported: {_reason(fault)}")


def _trace(network: nn.Module, clip: Tensor, axes: tuple[int, ...]) -> Any:
    with torch.no_grad():
        return torch.export.export(
            _Logits(network),
            (clip,),
            dynamic_shapes={"clips": dict.fromkeys(axes, Dim.AUTO)},
        )


def _dynamic(traced: Any, axes: tuple[int, ...]) -> dict[str, tuple[int, int | None]]:
    """Axes that stayed dynamic, and their ranges."""
    shape = _input_shape(traced)
    found = {}
    for axis in axes:
        symbol = getattr(getattr(shape[axis], "node", None), "expr", None)
        if symbol is None or symbol not in traced.range_constraints:
            continue
        limits = traced.range_constraints[symbol]
        upper = int(limits.upper) if limits.upper < 2**31 else None
        # The exporter states 2 wherever it was not shown 1; a batch of 1 is compared later.
        lower = 1 if AXES[axis] == "batch" else int(limits.lower)
        found[AXES[axis]] = (lower, upper)
    return found


def _input_shape(traced: Any) -> Any:
    [node] = [node for node in traced.graph.nodes if node.name == "clips"]
    return node.meta["val"].shape


def _shapes(clip: Tensor, dynamic: dict[str, tuple[int, int | None]]) -> list[tuple[int, ...]]:
    """Clips to compare on: the traced one, a single one, and one that differs in every way."""
    traced = tuple(clip.shape)
    changes = {"batch": 1, "frames": clip.shape[2] + 8, "height": 32, "width": 64}
    single = list(traced)
    other = list(traced)
    for axis, name in AXES.items():
        if name in dynamic and name == "batch":
            single[axis], other[axis] = 1, 3
        elif name in dynamic:
            other[axis] = traced[axis] + changes[name] if name != "frames" else changes[name]
    return list(dict.fromkeys((traced, tuple(single), tuple(other))))


def _compare(path: Path, network: nn.Module, run: Run, shape: tuple[int, ...]) -> float:
    batch, _, num_frames, height, width = shape
    clip = _random_clip(batch, num_frames, height, width, seed=1)
    with torch.no_grad():
        expected = network(clip)
        found = run(clip)
    if found.shape != expected.shape:
        raise WeightError(
            f"{path}: the exported network gives {tuple(found.shape)} and not "
            f"{tuple(expected.shape)} for clips {shape}; nothing was written"
        )
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise WeightError(
            f"{path}: the exported network's logits differ by {error:.1e} (relative) for clips "
            f"{shape}, above {TOLERANCE:.0e}; nothing was written"
        )
    return error


def _onnx_run(path: Path) -> Run:
    onnx, onnxruntime = _need("onnx"), _need("onnxruntime")
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a shape it cannot run is told by the error
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> Tensor:
        [logits] = session.run(["logits"], {"clips": clips.numpy()})
        return torch.from_numpy(logits)

    return run


def _random_clip(batch: int, num_frames: int, height: int, width: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, num_frames, height, width, generator=generator)


def _need(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(f"--to onnx needs {library}: pip install 'videogn[export]'") from error


def _reason(error: Exception) -> str:
    """The first line of an exporter's long message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own inner workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
