"""Reading 2D ResNet weights as torchvision, timm and this package save them.

The kind of a file is found from its content. Reading never runs code that a file holds.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videogn.errors import WeightError
from videogn.files import sha256_of
from videogn.models.spec import NetworkSpec
from videogn.models.weights import (
    METADATA_KEY,
    few,
    is_safetensors,
    read_weights,
    refuse_unreadable,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Input scale of torchvision's and timm's ImageNet weights: RGB in [0, 1]."""

WRAPPERS = ("state_dict", "model", "model_state")
"""Keys under which training programs save a state dict."""

COUNTER = "num_batches_tracked"
"""BN's count of batches, the one integer tensor; older files lack it."""


TORCH_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of torch's files: a zip archive, or in the legacy format a pickle."""


@dataclass(frozen=True)
class Source2D:
    """Checked weights of a 2D bottleneck ResNet.

    Attributes:
        path: the file.
        sha256: its hash.
        state: float32 tensors under torchvision's names.
        norm: ``bn`` where there are running statistics, else ``gn``.
        depths: residual blocks of each stage.
        width: channels of the stem.
        num_classes: classes of ``fc``; None without a classifier.
        class_names: in label order, where the file knows them.
        mean: RGB mean its input had, in [0, 1].
        std: RGB standard deviation its input had, in [0, 1].
        spec: the network, where the file describes it.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    norm: str
    depths: tuple[int, ...]
    width: int
    num_classes: int | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    spec: NetworkSpec | None


def read_source(path: str | Path) -> Source2D:
    """Read 2D weights from a torch or safetensors file.

    Raises:
        WeightError: it is no such file, or not of a plain bottleneck ResNet; the message says
            what was found.
    """
    path = Path(path)
    refuse_unreadable(path)
    info = None
    if not is_safetensors(path):
        state = _state_of(path, _load_torch(path))
    elif _is_own(path):
        file = read_weights(path)
        state, info = file.state, file.info
        if info.spec.arch != "resnet50":
            raise WeightError(
                f"{path}: is of {info.spec.arch}, a video network already; "
                "give it to model.weights= as it is"
            )
    else:
        state = _state_of(path, _load_safetensors(path))
    state = _as_float32(path, state)
    depths = _check_architecture(path, state)
    return Source2D(
        path=path,
        sha256=sha256_of(path),
        state=state,
        norm="bn" if "bn1.running_mean" in state else "gn",
        depths=depths,
        width=state["conv1.weight"].shape[0],
        num_classes=state["fc.weight"].shape[0] if "fc.weight" in state else None,
        class_names=info.class_names if info else None,
        mean=info.mean if info else IMAGENET_MEAN,
        std=info.std if info else IMAGENET_STD,
        spec=info.spec if info else None,
    )


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(TORCH_STARTS):
        raise WeightError(
            f"{path}: is neither a safetensors nor a torch weight file, or is damaged; "
            "give 2D weights, or copy it again"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error) from error
        raise WeightError(
            f"{path}: refused, for it asks to load {found[1]}, and loading it could run code; "
            "where you trust it, save its tensors alone: torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:
        # torch raises errors of many kinds for damaged files, none of which it documents.
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightError:
    # The first sentence: torch goes on at length about how checkpoints get damaged.
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return WeightError(
        f"{path}: is damaged, cut off or no torch weight file ({reason}); copy it again"
    )


def _is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except SafetensorError as error:
        raise WeightError(f"{path}: is damaged or cut off ({error}); copy it again") from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _state_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict inside what a file held, under names without ``module.``."""
    wrapper = ""
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        wrapper, content = f"{wrapper}[{inner!r}]", content[inner]
    where = f"{path}{wrapper}"
    if not isinstance(content, Mapping):
        raise WeightError(
            f"{where}: holds a {type(content).__name__}, not a state dict; "
            "save with torch.save(model.state_dict(), PATH)"
        )
    wrong = [f"{k!r} ({type(v).__name__})" for k, v in content.items() if not _is_entry(k, v)]
    if wrong:
        raise WeightError(
            f"{where}: is not a state dict of named tensors: {few(wrong)}; "
            "save with torch.save(model.state_dict(), PATH)"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _is_entry(name: Any, value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return isinstance(name, str) and dense and value.device.type == "cpu"


def _as_float32(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {name: t for name, t in state.items() if not name.endswith(COUNTER)}
    wrong = [f"{name} ({t.dtype})" for name, t in weights.items() if not t.is_floating_point()]
    if wrong:
        raise WeightError(f"{path}: tensors that are not floating point: {few(wrong)}")
    weights = {name: t.float() for name, t in weights.items()}
    wrong = [name for name, t in weights.items() if not t.isfinite().all()]
    if wrong:
        raise WeightError(
            f"{path}: NaN or infinite values in {few(wrong)}; use weights from before they arose"
        )
    return {**state, **weights}


def _check_architecture(path: Path, state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Depths of the stages.

    Raises:
        WeightError: it is not the plain bottleneck ResNet, saying which other it looks like.
    """
    depths = _depths(state)
    if "conv1.0.weight" in state:
        raise WeightError(
            f"{path}: has a deep stem (conv1.0.weight), as ResNet-D has; "
            "give a plain ResNet whose stem is one 7x7 convolution"
        )
    if "conv1.weight" not in state or not depths:
        raise WeightError(
            f"{path}: no conv1.weight and layer1 as in torchvision's and timm's ResNet, but "
            f"{few(sorted(state)) or 'nothing'}; give the weights of such a network"
        )
    if "layer1.0.conv3.weight" not in state:
        raise WeightError(
            f"{path}: has basic blocks, as ResNet-18 and -34 have, depths "
            f"{','.join(map(str, depths))}; give a bottleneck network such as ResNet-50"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _check_widths(path, shapes)
    return depths


def _check_widths(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    conv1 = shapes["conv1.weight"]
    if len(conv1) != 4 or conv1[1:] != (3, 7, 7):
        raise WeightError(f"{path}: conv1.weight is {conv1}; give a plain ResNet, whose is 7x7 RGB")
    if len(shapes.get("fc.weight", (0, 0))) != 2:
        raise WeightError(f"{path}: fc.weight is {shapes['fc.weight']}, not (classes, features)")
    width, plain = conv1[0], "give a plain ResNet"
    inner = shapes.get("layer1.0.conv2.weight", ())
    if len(inner) == 4 and inner[0] != inner[1]:
        raise WeightError(
            f"{path}: has grouped convolutions, as ResNeXt has (layer1.0.conv2.weight {inner}); "
            f"{plain}"
        )
    if len(inner) == 4 and inner[0] != width:
        raise WeightError(
            f"{path}: has blocks of {inner[0]} inner channels behind a stem of {width}, as Wide "
            f"ResNet has; {plain}"
        )


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of layer1, layer2 and so on, by the highest index of each."""
    last: dict[int, int] = {}
    for name in state:
        if found := re.match(r"layer([1-9])\.(\d{1,4})\.", name):
            stage, block = int(found[1]), int(found[2])
            last[stage] = max(last.get(stage, 0), block)
    return tuple(last.get(stage, -1) + 1 for stage in range(1, max(last, default=0) + 1))
