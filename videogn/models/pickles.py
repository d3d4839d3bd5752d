"""Pickles of numbers, plain containers and numpy arrays, read without running anything.

Whatever a pickle names is replaced by a stand-in or refused; nothing is imported for it.
"""

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from videogn.errors import WeightError
from videogn.models.weights import few

ARRAY_TYPES = {
    kind + size
    for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248"), ("b", "1"))
    for size in sizes
}
"""Types of number that an array may have: kind and bytes."""


def array_of(
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


class PickledArray:
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


def _reconstruct(*args: Any) -> PickledArray:
    return PickledArray()


def _new_dtype(code: Any, *args: Any) -> _Dtype:
    return _Dtype(code)


def _scalar(where: str, dtype: Any, data: Any) -> Any:
    value = array_of(where, dtype.text, (), False, _as_bytes(data))
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


class Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
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
        return array_of(str(self.path), dtype.text, shape, order == "F", _as_bytes(data))

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
        if isinstance(instance, PickledArray):
            _, shape, dtype, fortran, data = state
            if not isinstance(dtype, _Dtype):
                raise TypeError("an array without a type")
            if "O" in dtype.text:
                data = b""  # a list of whatever; the type alone is told
            instance.value = array_of(str(self.path), dtype.text, shape, fortran, _as_bytes(data))
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
