"""Weight files: safetensors with a description of the network, checked as a whole on reading.

The header's metadata has one key, ``videogn``, whose value is JSON. Trainer checkpoints are the
same kind of file, with the optimizer's tensors beside the network's.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from videogn.errors import UserError, WeightError
from videogn.files import atomic_path, sha256_of
from videogn.models.build import build_network
from videogn.models.spec import NetworkSpec, WeightInfo

FORMAT_VERSION = 1
METADATA_KEY = "videogn"
OPTIMIZER_PREFIX = "optimizer/"
"""Tensors whose name begins so are the optimizer's state."""
AVERAGE_PREFIX = "average/"
"""Tensors whose name begins so are a moving average of the network's."""

OTHER_SUFFIXES = (".bin", ".ckpt", ".npz", ".onnx", ".pkl", ".pt", ".pt2", ".pth", ".pyth", ".tar")
"""Endings that name files of other kinds."""
MAX_LISTED = 5


@dataclass(frozen=True)
class WeightFile:
    """A weight file as read.

    Attributes:
        path: where it was read.
        info: what it says about its weights.
        state: the network's tensors by parameter name: where the file holds a moving average of
            them, the average, as that is what was validated.
        optimizer: the optimizer's tensors, their names beginning with ``optimizer/``.
        training: what the trainer kept, in trainer checkpoints only.
        sha256: hash of the whole file.
        not_averaged: the tensors that training goes on with, where ``state`` is their average.
    """

    path: Path
    info: WeightInfo
    state: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    training: dict[str, Any] | None
    sha256: str
    not_averaged: dict[str, Tensor] | None = None

    def trained(self) -> "WeightFile":
        """The same file with the tensors that training goes on with."""
        return self if self.not_averaged is None else replace(self, state=self.not_averaged)


def check_file_name(path: Path) -> None:
    """Refuse for a weight file of this program a name by which others take it for their own kind.

    Raises:
        WeightError: with a better name.
    """
    if path.suffix.lower() in OTHER_SUFFIXES:
        raise WeightError(
            f"{path}: would hold safetensors, which programs that read {path.suffix} do not take; "
            f"name it {path.with_suffix('.safetensors').name} (`videogn convert` writes files of "
            "other kinds)"
        )


def write_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    info: WeightInfo,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a weight file whole or not at all.

    Args:
        state: the network's tensors, and the optimizer's under ``optimizer/``.
        training: a JSON object that :func:`read_weights` gives back.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    description = info.to_json() | {"format_version": FORMAT_VERSION}
    if training is not None:
        description["training"] = dict(training)
    description = json.loads(json.dumps(description))  # as a reader will have it
    description["content_sha256"] = _content_sha256(description, tensors)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {METADATA_KEY: json.dumps(description)})
        except SafetensorError as error:
            # A full disk, which atomic_path explains as it does for any other file.
            raise OSError(str(error)) from error


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file and check it.

    Raises:
        WeightError: it is missing, of another kind, cut off, altered or not finite.
    """
    path = Path(path)
    description, tensors = _read(path, with_tensors=True)
    info, training = _parse(path, description)
    _check_content(path, description, tensors)
    _check_finite(path, tensors)
    optimizer = {name: t for name, t in tensors.items() if name.startswith(OPTIMIZER_PREFIX)}
    average = {
        name.removeprefix(AVERAGE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(AVERAGE_PREFIX)
    }
    prefixes = (OPTIMIZER_PREFIX, AVERAGE_PREFIX)
    plain = {name: t for name, t in tensors.items() if not name.startswith(prefixes)}
    state, not_averaged = (average, plain) if average else (plain, None)
    return WeightFile(path, info, state, optimizer, training, sha256_of(path), not_averaged)


def read_info(path: str | Path) -> WeightInfo:
    """Read the description alone, from the file's header.

    Raises:
        WeightError: the file is missing, of another kind or cut off.
    """
    path = Path(path)
    description, _ = _read(path, with_tensors=False)
    return _parse(path, description)[0]


def read_training(path: str | Path) -> dict[str, Any] | None:
    """What the trainer kept, from the file's header; the content is not checked.

    Raises:
        WeightError: the file is missing, of another kind or cut off.
    """
    path = Path(path)
    description, _ = _read(path, with_tensors=False)
    return _parse(path, description)[1]


def load_model(path: str | Path) -> nn.Module:
    """The network that a weight file describes, with its weights, in evaluation mode.

    Raises:
        WeightError: as :func:`read_weights` does, or the tensors are not that network's.
    """
    file = read_weights(path)
    try:
        # Without memory first: the weights of the file take the place of random ones.
        with torch.device("meta"):
            network = build_network(file.info.spec)
    except UserError as error:
        raise WeightError(f"{file.path}: {error}") from error
    _check_names_and_shapes(file, network)
    network.load_state_dict(file.state, assign=True)
    return network.eval()


def check_spec(spec: NetworkSpec, file: WeightFile) -> None:
    """Refuse a file whose network is not ``spec``.

    Raises:
        WeightError: naming every difference with both values.
    """
    differences = spec.differences(file.info.spec)
    if differences:
        faults = "; ".join(
            f"model.{key} is {wanted} but the file has {stored}"
            for key, (wanted, stored) in differences.items()
        )
        raise WeightError(f"{file.path}: is of another network: {faults}")


def load_into(model: nn.Module, spec: NetworkSpec, file: WeightFile) -> None:
    """Put the weights of a file into a network that is ``spec``.

    Raises:
        WeightError: the file is of another network; nothing has been loaded then.
    """
    check_spec(spec, file)
    _check_names_and_shapes(file, model)
    model.load_state_dict(file.state)


def check_backbone(spec: NetworkSpec, file: WeightFile) -> None:
    """Refuse a file whose network is not ``spec``, but for the number of its classes.

    Raises:
        WeightError: naming every difference with both values.
    """
    check_spec(replace(spec, num_classes=file.info.spec.num_classes), file)


def load_backbone(model: nn.Module, spec: NetworkSpec, file: WeightFile) -> None:
    """Put the weights of a file into a network that is ``spec``, to fine-tune them.

    Where the numbers of classes differ the classifier stays as it is.

    Raises:
        WeightError: the file is of another network; nothing has been loaded then.
    """
    check_backbone(spec, file)
    theirs = file.info.spec.num_classes
    if theirs == spec.num_classes:
        load_into(model, spec, file)
        return
    own = model.state_dict()
    kept = {
        name: own[name]
        if name in own and _is_classifier(own[name], spec, tensor, theirs)
        else tensor
        for name, tensor in file.state.items()
    }
    load_into(model, spec, replace(file, info=replace(file.info, spec=spec), state=kept))


def _is_classifier(own: Tensor, spec: NetworkSpec, stored: Tensor, num_stored: int) -> bool:
    """Whether two tensors differ in their shape by the number of classes alone."""
    return (
        own.ndim > 0
        and own.shape != stored.shape
        and own.shape[0] == spec.num_classes
        and stored.shape[0] == num_stored
        and own.shape[1:] == stored.shape[1:]
    )


def few(names: Iterable[str], limit: int = MAX_LISTED) -> str:
    """The first names of a list, then how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def is_safetensors(path: Path) -> bool:
    """Whether a file's first bytes are those of a safetensors file, whatever its name."""
    with path.open("rb") as file:
        start = file.read(9)
    # The length of the header in 8 bytes, and a JSON object.
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def refuse_unreadable(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        WeightError: it is missing, a folder, a pipe or may not be read.
    """
    if not path.exists():
        raise WeightError(f"{path}: no such file")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise WeightError(f"{path}: is {kind}; give a weight file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description, and the tensors where wanted."""
    refuse_unreadable(path)
    if not is_safetensors(path):
        raise WeightError(
            f"{path}: is not a weight file of videogn (not safetensors); "
            "make one of 2D weights with `videogn inflate`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightError(
            f"{path}: is damaged or cut off ({error}); copy or make it again"
        ) from error
    return _description(path, metadata), tensors


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise WeightError(
            f"{path}: does not say which network it is of; if these are 2D weights, "
            "make a weight file of them with `videogn inflate`"
        )
    try:
        description = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{path}: its description is not JSON; make the file again") from error
    if not isinstance(description, dict):
        raise WeightError(f"{path}: its description is not a JSON object; make the file again")
    version = description.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise WeightError(
            f"{path}: has format version {version!r}, this program reads {FORMAT_VERSION}; "
            "use the program that wrote it"
        )
    return description


def _parse(path: Path, description: Mapping[str, Any]) -> tuple[WeightInfo, dict[str, Any] | None]:
    extra = ("training", "content_sha256")
    fields = {key: value for key, value in description.items() if key not in extra}
    info = WeightInfo.from_json(fields, str(path))
    training = description.get("training")
    if training is not None and not isinstance(training, dict):
        raise WeightError(f"{path}: its training state is not a JSON object")
    return info, training


def _check_content(
    path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Find flipped bits, which neither safetensors nor torch notices."""
    stored = description.get("content_sha256")
    plain = {key: value for key, value in description.items() if key != "content_sha256"}
    if stored != _content_sha256(plain | {"format_version": FORMAT_VERSION}, tensors):
        raise WeightError(
            f"{path}: is damaged: its content is not what was written; copy or make it again"
        )


def _content_sha256(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        raise WeightError(
            f"{path}: NaN or infinite values in {few(wrong)}; use an earlier checkpoint"
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_names_and_shapes(file: WeightFile, network: nn.Module) -> None:
    wanted = network.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in file.state],
        "unexpected": [name for name in file.state if name not in wanted],
        "of another shape or type": [
            f"{name} {_form(file.state[name])} instead of {_form(tensor)}"
            for name, tensor in wanted.items()
            if name in file.state and _form(file.state[name]) != _form(tensor)
        ],
    }
    found = [f"{kind}: {few(names)}" for kind, names in faults.items() if names]
    if found:
        raise WeightError(
            f"{file.path}: does not hold the network it describes; {'; '.join(found)}"
        )
