"""From a file to the tensors in it, without running anything the file holds.

Which kind of file it is shows in its first bytes, never in its name. Files come from strangers:
every fault of one, however crafted, is a :class:`WeightError` of one line.
"""

import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videogn.errors import WeightError
from videogn.models.pickles import PickledArray, Unpickler, array_of
from videogn.models.weights import METADATA_KEY, few, is_safetensors, refuse_unreadable

WRAPPERS = ("state_dict", "model", "model_state", "blobs")
"""Keys under which training programs save a state dict."""

ZIP_START = b"PK\x03\x04"

TORCH_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[:-1]
"""A torch file of before 1.6 begins with this number, pickled."""

PICKLE_STARTS = (b"\x80", b"(", b"}", b"c")
"""First byte of a pickled dict: of protocol 2 or later, or of Python 2's 0 and 1."""

MAX_EXPANSION = 50
"""Bytes that a compressed npz may unpack to, for each of its own; float weights stay below 2."""

MAX_TUPLES = 20_000
"""Tuples in a torch file: two to five for each tensor. Tuples as deep as this are still hashed."""

LEGACY_PICKLES = 5
"""Pickles at the start of a torch file of before 1.6: its mark, versions, the dict, the keys."""

MAX_DEPTH = 4
"""Dicts within dicts around a state dict."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        kind: ``safetensors``, ``torch``, ``pickle`` or ``npz``.
        tensors: by the names of the file, without ``module.``.
        where: the file and the keys that lead to the tensors, for messages.
        class_names: in label order, where the file has them as mmaction2 saves them.
        description: the text that this program puts beside the tensors, unchecked.
        author: who made the file, as detectron2's converters say.
    """

    kind: str
    tensors: dict[str, Tensor]
    where: str
    class_names: tuple[str, ...] | None = None
    description: str | None = None
    author: str | None = None


def read_content(path: Path) -> Content:
    """Read a weight file of any kind.

    Raises:
        WeightError: it is missing, damaged, of no known kind, holds something else than named
            tensors, or asks for more than numbers.
    """
    refuse_unreadable(path)
    try:
        kind = _kind(path)
        return _content(path, kind, READERS[kind](path))
    except WeightError:
        raise
    except (MemoryError, RecursionError) as error:
        raise WeightError(
            f"{path}: asks for more memory than there is, or is nested too deeply; "
            "it is damaged or made to do harm"
        ) from error


def _kind(path: Path) -> str:
    if is_safetensors(path):
        return "safetensors"
    with path.open("rb") as file:
        start = file.read(len(TORCH_LEGACY_START))
    if start.startswith(ZIP_START):
        return "npz" if _is_npz(path) else "torch"
    if start == TORCH_LEGACY_START:
        return "torch"
    if start.startswith(PICKLE_STARTS):
        return "pickle"
    raise WeightError(
        f"{path}: is neither a safetensors nor a torch weight file, nor a pickle or npz of "
        "numpy arrays, or is damaged; give weights, or copy it again"
    )


def _is_npz(path: Path) -> bool:
    """Whether a zip archive is numpy's; torch's has a pickle and no ``.npy``."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        # Besides BadZipFile: errors of many kinds where the directory's fields are damaged.
        raise _damaged(path, error, "torch weight file") from error
    return bool(names) and all(name.endswith(".npy") for name in names)


def _damaged(path: Path, error: Exception, kind: str) -> WeightError:
    # The first sentence: torch goes on at length about how checkpoints get damaged.
    reason = str(error).partition("\n")[0].partition(". ")[0][:200] or type(error).__name__
    reason = reason if reason.isprintable() else ascii(reason)
    return WeightError(f"{path}: is damaged, cut off or no {kind} ({reason}); copy it again")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        # A SafetensorError, or torch's for a type it lacks.
        raise WeightError(f"{path}: is damaged or cut off ({error}); copy it again") from error
    return {"state_dict": tensors, METADATA_KEY: metadata.get(METADATA_KEY)}


def read_description(path: Path) -> str | None:
    """What a safetensors file says of itself under ``videogn``; None where it does not.

    Raises:
        WeightError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text: str | None = (file.metadata() or {}).get(METADATA_KEY)
            return text
    except SafetensorError as error:
        raise WeightError(f"{path}: is damaged or cut off ({error}); copy it again") from error


def _read_torch(path: Path) -> Any:
    try:
        _check_nesting(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (WeightError, MemoryError, RecursionError):
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error, "torch weight file") from error
        raise WeightError(
            f"{path}: refused, for it asks to load {found[1]}, and loading it could run code; "
            "where you trust it, save its tensors alone: torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:
        # torch raises errors of many kinds for damaged files, none of which it documents.
        raise _damaged(path, error, "torch weight file") from error


def _check_nesting(path: Path) -> None:
    """Refuse what ends the process within torch: deeply nested tuples, which it hashes as keys."""
    with path.open("rb") as file:
        is_legacy = file.read(len(ZIP_START)) != ZIP_START  # as torch decides
        if is_legacy:
            file.seek(0)
            count = sum(_count_tuples(file) for _ in range(LEGACY_PICKLES))
    if not is_legacy:
        with zipfile.ZipFile(path) as archive:
            pickles = [each for each in archive.infolist() if each.filename.endswith(".pkl")]
            _check_expansion(path, pickles)
            count = sum(_count_tuples(io.BytesIO(archive.read(each))) for each in pickles)
    if count > MAX_TUPLES:
        raise WeightError(
            f"{path}: refused, for it makes {count} tuples where a ResNet needs some thousands; "
            "it is made to do harm, or is no ResNet"
        )


def _count_tuples(file: IO[bytes]) -> int:
    """Instructions in the next pickle of a file that make tuples."""
    return sum(opcode.name.startswith("TUPLE") for opcode, _, _ in pickletools.genops(file))


def _check_expansion(path: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_EXPANSION * path.stat().st_size:
        raise WeightError(
            f"{path}: refused, for it would unpack to {unpacked / 2**20:.0f} MiB, more "
            f"than {MAX_EXPANSION} times its size; it is damaged or made to do harm"
        )


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_expansion(path, members)
            return {
                member.filename.removesuffix(".npy"): _parse_npy(path, member.filename, data)
                for member in members
                for data in [archive.read(member)]
            }
    except (WeightError, MemoryError, RecursionError):
        raise
    except Exception as error:
        # zipfile, zlib and numpy raise errors of many kinds for damaged archives.
        raise _damaged(path, error, "npz of numpy arrays") from error


def _parse_npy(path: Path, name: str, data: bytes) -> Any:
    """One array of an npz; a text stays a text."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    body = data[file.tell() :]
    if dtype.kind == "U" and shape == () and len(body) == dtype.itemsize:
        return str(np.frombuffer(body, dtype)[0])
    return array_of(f"{path}: {name}", dtype.str, shape, fortran, body)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return Unpickler(file, path).load()
        except (WeightError, MemoryError, RecursionError):
            raise
        except Exception as error:
            # Its instructions act on a stack, and damaged ones fail in every way there is.
            raise _damaged(path, error, "pickle of numpy arrays") from error


READERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "npz": _read_npz,
    "pickle": _read_pickle,
}
"""Kind of file -> what reads it."""


def _content(path: Path, kind: str, content: Any) -> Content:
    """The state dict inside what a file held, under names without ``module.``."""
    wrappers: list[str] = []
    around: list[Mapping[Any, Any]] = []
    while isinstance(content, Mapping) and len(around) < MAX_DEPTH:
        around.append(content)
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        wrappers.append(f"[{inner!r}]")
        content = content[inner]
    where = str(path) if kind == "safetensors" else f"{path}{''.join(wrappers)}"
    if not isinstance(content, Mapping):
        raise WeightError(
            f"{where}: holds a {type(content).__name__}, not a state dict; "
            "save with torch.save(model.state_dict(), PATH)"
        )
    return Content(
        kind,
        _tensors(where, content, kind),
        where,
        class_names=_class_names(around),
        description=_text(around, METADATA_KEY),
        author=_text(around, "__author__"),
    )


def _tensors(where: str, content: Mapping[Any, Any], kind: str) -> dict[str, Tensor]:
    entries = {key: value for key, value in content.items() if not _is_remark(key, value, kind)}
    tensors = {key: _tensor(value) for key, value in entries.items()}
    wrong = [
        f"{key!r} ({type(entries[key]).__name__})"
        for key, tensor in tensors.items()
        if tensor is None or not isinstance(key, str) or not key.isprintable()
    ]
    if wrong:
        raise WeightError(
            f"{where}: is not a state dict of named tensors: {few(wrong)}; "
            "save with torch.save(model.state_dict(), PATH)"
        )
    return {
        name.removeprefix("module."): tensor
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _is_remark(key: Any, value: Any, kind: str) -> bool:
    """Whether an entry stands beside tensors by right: our description; Caffe2's counters."""
    if key == METADATA_KEY:
        return isinstance(value, str)
    return kind == "pickle" and isinstance(value, (int, float, str, bool))


def _tensor(value: Any) -> Tensor | None:
    """A dense tensor of the CPU with memory of its own; None where the value is none."""
    if isinstance(value, PickledArray):
        value = value.value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        return None
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return None
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return None  # one number that says it were many: copying it would fill the memory
    return value


def _text(around: Iterable[Mapping[Any, Any]], key: str) -> str | None:
    return next((w[key] for w in around if isinstance(w.get(key), str)), None)


def _class_names(around: Iterable[Mapping[Any, Any]]) -> tuple[str, ...] | None:
    """Names of classes under ``meta``: ``dataset_meta.classes`` (mmengine) or ``CLASSES``."""
    for wrapper in around:
        meta = wrapper.get("meta")
        if not isinstance(meta, Mapping):
            continue
        data_set = meta.get("dataset_meta")
        found = data_set.get("classes") if isinstance(data_set, Mapping) else meta.get("CLASSES")
        if isinstance(found, (list, tuple)) and found and all(isinstance(n, str) for n in found):
            return tuple(found)
    return None


def parse_description(where: str, text: str) -> dict[str, Any]:
    """The JSON object that this program writes beside tensors.

    Raises:
        WeightError: it is none.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{where}: its description is not JSON; convert it again") from error
    if not isinstance(tree, dict):
        raise WeightError(f"{where}: its description is not a JSON object; convert it again")
    return tree
