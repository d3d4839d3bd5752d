"""From a file to the tensors in it, without running anything the file holds.

Which kind of file it is shows in its first bytes, never in its name. Files come from strangers:
every fault of one, however crafted, is a :class:`WeightError` of one line.
"""

import io
import json
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videogn.errors import WeightError
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

ARRAY_TYPES = {
    kind + size
    for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248"), ("b", "1"))
    for size in sizes
}
"""Types of number that an array may have: kind and bytes."""


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
    return _array(f"{path}: {name}", dtype.str, shape, fortran, body)


def _array(
    where: str, dtype: str, shape: Any, fortran: Any, data: bytes | bytearray
) -> NDArray[Any]:
    """An array of numbers from what a file says of it.

    Raises:
        WeightError: it is of no numbers, or the data are not what the shape needs.
    """
    found = re.fullmatch(r"[<>|=]?([a-zA-Z]\d*)", dtype)
    if found is None or found[1] not in ARRAY_TYPES:
        what = "Python objects, which could run code" if "O" in dtype else f"type {dtype!r}"
        raise WeightError(
            f"{where}: refused, for it has an array of {what}; save arrays of numbers alone"
        )
    sizes = list(shape) if isinstance(shape, (tuple, list)) else [-1]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise WeightError(f"{where}: is damaged: an array has the shape {few([repr(shape)])}")
    numbers = np.dtype(dtype)
    if math.prod(sizes) * numbers.itemsize != len(data):
        raise WeightError(
            f"{where}: is damaged: an array of shape {tuple(sizes)} has {len(data)} bytes; "
            "copy it again"
        )
    return np.frombuffer(bytes(data), numbers).reshape(sizes, order="F" if fortran else "C")


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _Unpickler(file, path).load()
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


class _Array:
    """An array between its making and the arrival of its data."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None


class _Dtype:
    """A type of number between its making and the arrival of its byte order."""

    def __init__(self, code: Any) -> None:
        self.code = str(code)
        self.order = ""

    @property
    def text(self) -> str:
        return self.order + self.code.lstrip("<>|=")


class _Call:
    """Something that a pickle may call, or name as an argument; it is called by us alone."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _reconstruct(*args: Any) -> _Array:
    return _Array()


def _new_dtype(code: Any, *args: Any) -> _Dtype:
    return _Dtype(code)


def _scalar(where: str, dtype: Any, data: Any) -> Any:
    value = _array(where, dtype.text, (), False, _as_bytes(data))
    return value.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _as_bytes(data: Any) -> bytes | bytearray:
    """Data of an array; Python 2's are texts, for it did not tell bytes from texts."""
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, (bytes, bytearray)):
        return data
    raise TypeError(f"data of type {type(data).__name__}")


def _copy_bytes(data: Any = b"") -> bytes:
    # Of a number n bytes() would make n zeros.
    return bytes(_as_bytes(data))


def _as_key(value: Any) -> Any:
    """A key of a dict or an element of a set; hashing deeply nested tuples ends the process."""
    if value is not None and type(value) not in (str, int, float, bool, bytes):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


def _new_dict(items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {_as_key(key): value for key, value in pairs}


def _new_set(items: Any = ()) -> set[Any]:
    return {_as_key(item) for item in items}


CONTAINERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "list"): list,
    ("builtins", "dict"): _new_dict,
    ("builtins", "set"): _new_set,
    ("builtins", "frozenset"): _new_set,
    ("builtins", "bytes"): _copy_bytes,
    ("builtins", "bytearray"): _copy_bytes,
    ("collections", "OrderedDict"): _new_dict,
    ("_codecs", "encode"): _encode,
}
"""What may be called besides numpy's arrays; the arguments are plain values."""


_REFUSED = [
    instruction[0]
    for instruction in (
        pickle.INST,
        pickle.OBJ,
        pickle.NEWOBJ,
        pickle.NEWOBJ_EX,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.PERSID,
        pickle.BINPERSID,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
    )
]
"""Instructions that make objects of classes, or take them from outside the pickle."""


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Reads numbers, texts, plain containers and numpy arrays; refuses whatever else is named.

    Nothing that a pickle names is ever imported or called. It gets stand-ins, from which arrays
    are made here, so that numpy's own unpickling never sees its data. It is the unpickler in
    Python, for the one in C lays out a memo as large as the pickle asks for.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        # Python 2's texts are bytes, which latin1 keeps as they are.
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for something named."""
        found = self._known(module, name)
        if found is None:
            asked = f"{module}.{name}"[:200].encode("unicode_escape").decode()
            raise WeightError(
                f"{self.path}: refused, for it asks to load {asked}, and loading it could "
                "run code; where you trust it, save its arrays alone as npz or safetensors, or "
                "with torch.save(model.state_dict(), PATH)"
            )
        return found

    def _known(self, module: str, name: str) -> Any:
        numpy_module = re.fullmatch(r"numpy(?:\._?core)?(?:\.(multiarray|numeric))?", module)
        if numpy_module:
            return {
                "_reconstruct": _Call(_reconstruct),
                "_frombuffer": _Call(self._from_buffer),
                "scalar": _Call(self._scalar),
                "dtype": _Call(_new_dtype),
                "ndarray": "numpy.ndarray",
            }.get(name)
        make = CONTAINERS.get((module.replace("__builtin__", "builtins"), name))
        return None if make is None else _Call(make)

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
        return _array(str(self.path), dtype.text, shape, order == "F", _as_bytes(data))

    def _scalar(self, dtype: Any, data: Any) -> Any:
        return _scalar(str(self.path), dtype, data)

    def _reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Call) or not isinstance(args, tuple):
            raise WeightError(f"{self.path}: refused, for it calls what is no container or array")
        self.stack[-1] = function.make(*args)

    def _build(self) -> None:
        state = self.stack.pop()
        instance = self.stack[-1]
        if isinstance(instance, _Array):
            _, shape, dtype, fortran, data = state
            if not isinstance(dtype, _Dtype):
                raise TypeError("an array without a type")
            if "O" in dtype.text:
                data = b""  # a list of whatever; the type alone is told
            instance.value = _array(str(self.path), dtype.text, shape, fortran, _as_bytes(data))
        elif isinstance(instance, _Dtype):
            instance.order = str(state[1])  # "|" of single bytes, "<" or ">"
        elif state:
            raise WeightError(f"{self.path}: refused, for it sets attributes of an object")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_as_key(key)] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_new_dict(zip(items[::2], items[1::2], strict=True)))

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_new_dict(zip(items[::2], items[1::2], strict=True)))

    def _add_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_new_set(items))

    def _make_set(self) -> None:
        items = self.pop_mark()
        self.stack.append(_new_set(items))

    def _refuse(self) -> None:
        raise WeightError(
            f"{self.path}: refused, for it makes objects that are no numpy arrays or plain "
            "containers; save its arrays alone, as npz or safetensors"
        )

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys(_REFUSED, _refuse),
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _make_set,
    }


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
    if isinstance(value, _Array):
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
