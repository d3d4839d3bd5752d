"""Writing the weights of a video ResNet as other programs read them.

Only tensors and plain containers are written, so that readers need not trust the file. Beside the
tensors, under the key ``videogn``, stands what the file of this program says of itself, so that
class names, norm, layout and input scale come back.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videogn.errors import WeightError
from videogn.files import atomic_path
from videogn.models.names import CAFFE2, MMACTION2, PYTORCHVIDEO, SLOWFAST, NameTable
from videogn.models.norm import BATCH_NORMS
from videogn.models.plain_resnet import COUNTER
from videogn.models.spec import WeightInfo
from videogn.models.weights import METADATA_KEY

PICKLE_PROTOCOL = 2
"""The newest that Python 2 reads, which Caffe2's programs run on."""


@dataclass(frozen=True)
class Target:
    """One kind of file that weights are written as.

    Attributes:
        title: whose files they are.
        names: their names.
        norms: keys of ``NORMS`` that these programs can build.
        wrap: the tensors by name and a file's description -> what is saved.
        save: writes that to a path.
        counters: whether BN's counts of batches are kept.
    """

    title: str
    names: NameTable
    norms: tuple[str, ...]
    wrap: Callable[[dict[str, Tensor], WeightInfo], dict[str, Any]]
    save: Callable[[dict[str, Any], Path], None]
    counters: bool = True


def to_target(target: Target, plain: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
    """Tensors under the names of a target.

    Args:
        plain: under plain names, kernels (O, I, t, H, W).
        norm: a key of ``NORMS``: some programs name a norm after its kind.
    """
    kept = {
        name: tensor
        for name, tensor in plain.items()
        if target.counters or not name.endswith(COUNTER)
    }
    return {
        target.names.to_file(name, batch_norm=norm in BATCH_NORMS): tensor.contiguous()
        for name, tensor in kept.items()
    }


def write_target(path: Path, target: Target, tensors: dict[str, Tensor], info: WeightInfo) -> None:
    """Write a file of another program whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        target.save(target.wrap(tensors, info), temporary)


def norm_note(key: str, norm: str) -> str | None:
    """What the target's program makes of a norm that it cannot build; None where it can."""
    target = TARGETS[key]
    if norm in target.norms:
        return None
    return (
        f"warning: {target.title} builds {', '.join(target.norms)}, not {norm}: the weights are "
        "under its names, and the network must come from elsewhere"
    )


def check_stages(depths: tuple[int, ...], key: str) -> None:
    """Refuse networks of another number of stages than these programs have.

    Raises:
        WeightError: there are not four.
    """
    if len(depths) != 4:
        raise WeightError(
            f"a network of {len(depths)} stages cannot be written as {TARGETS[key].title}'s, "
            "which have 4; give --to videogn, onnx or torch-export"
        )


def _description(info: WeightInfo) -> str:
    return json.dumps(info.to_json())


def _wrap_slowfast(tensors: dict[str, Tensor], info: WeightInfo) -> dict[str, Any]:
    # What slowfast/utils/checkpoint.py looks for; it tests and fine-tunes from model_state alone.
    return {"epoch": 0, "model_state": tensors, METADATA_KEY: _description(info)}


def _wrap_pytorchvideo(tensors: dict[str, Tensor], info: WeightInfo) -> dict[str, Any]:
    return {"model_state": tensors, METADATA_KEY: _description(info)}


def _wrap_mmaction2(tensors: dict[str, Tensor], info: WeightInfo) -> dict[str, Any]:
    classes = {} if info.class_names is None else {"classes": list(info.class_names)}
    return {
        "state_dict": tensors,
        "meta": {"dataset_meta": classes},
        METADATA_KEY: _description(info),
    }


def _wrap_blobs(tensors: dict[str, Tensor], info: WeightInfo) -> dict[str, Any]:
    return {
        "blobs": {name: tensor.numpy() for name, tensor in tensors.items()},
        METADATA_KEY: _description(info),
    }


def _save_torch(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)


def _save_pickle(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=PICKLE_PROTOCOL)


ALL_NORMS = ("bn", "frozen_bn", "sync_bn", "gn", "ln", "in", "none")

TARGETS = {
    "pytorchvideo": Target(
        title="pytorchvideo",
        names=PYTORCHVIDEO,
        norms=ALL_NORMS,  # its builders call what they are given
        wrap=_wrap_pytorchvideo,
        save=_save_torch,
    ),
    "slowfast": Target(
        title="PySlowFast",
        names=SLOWFAST,
        norms=("bn", "sync_bn", "frozen_bn"),
        wrap=_wrap_slowfast,
        save=_save_torch,
    ),
    "mmaction2": Target(
        title="mmaction2",
        names=MMACTION2,
        norms=("bn", "sync_bn", "frozen_bn", "gn"),
        wrap=_wrap_mmaction2,
        save=_save_torch,
    ),
    "nonlocal": Target(
        title="video-nonlocal-net",
        names=CAFFE2,
        norms=("bn", "frozen_bn"),
        wrap=_wrap_blobs,
        save=_save_pickle,
        counters=False,
    ),
}
"""Value of ``--to`` -> kind of file; their usual layout and input stand in ``FORMATS``."""
