import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from videogn.errors import WeightError
from videogn.models.containers import read_content

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "conv1_w": RANDOM.standard_normal((4, 3, 2, 2)).astype(np.float32),
    "fortran": np.asfortranarray(RANDOM.standard_normal((3, 5))),
    "big_endian": RANDOM.standard_normal(6).astype(">f4"),
    "half": RANDOM.standard_normal((2, 2)).astype(np.float16),
    "steps": np.arange(3),
    "empty": np.zeros((0, 4), np.float32),
    "single": np.array(2.5),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WeightError) as error:
        read_content(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def check_arrays(tensors):
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].shape == array.shape
        assert np.array_equal(tensors[name].numpy(), array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpys_pickles_of_every_protocol_are_read(tmp_path, protocol):
    content = {"blobs": ARRAYS, "cfg": "a: 1", "lr": np.float32(0.5)}
    path = write(tmp_path / "weights.txt", pickle.dumps(content, protocol))
    found = read_content(path)
    assert found.kind == "pickle"
    check_arrays(found.tensors)
    assert found.where.endswith("weights.txt['blobs']")


@pytest.mark.parametrize("protocol", range(3))
def test_both_spellings_of_numpys_modules_and_python_2s_texts_are_read(tmp_path, protocol):
    array = ARRAYS["conv1_w"]
    data = pickle.dumps({"conv1_w": array}, protocol, fix_imports=True)
    # Other releases of numpy write the same under these names.
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        path = write(tmp_path / "a.pkl", data.replace(old, new))
        assert torch.equal(read_content(path).tensors["conv1_w"], torch.from_numpy(array))


def python2_pickle(array: np.ndarray, protocol: int) -> bytes:
    """As Python 2 wrote {'blobs': {'conv1_w': array}}: byte strings for texts and data."""
    shape = "".join(f"I{size}\n" for size in array.shape)
    data = array.tobytes()
    if protocol == 0:
        # repr as Python 2 has it.
        written = ("S'" + "".join(f"\\x{byte:02x}" for byte in data) + "'\n").encode()
    else:
        written = b"T" + struct.pack("<i", len(data)) + data
    head = (
        "(dp0\nS'blobs'\np1\n(dp2\nS'conv1_w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n"
        "(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\np7\ntp8\nRp9\n(I1\n"
        f"({shape}tp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n"
        "(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\n"
    ).encode()
    return head + written + b"tp17\nbss."


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_pickle_of_python_2_is_read(tmp_path, protocol):
    array = ARRAYS["conv1_w"]
    path = write(tmp_path / "affine.pkl", python2_pickle(array, protocol))
    assert torch.equal(read_content(path).tensors["conv1_w"], torch.from_numpy(array))


def test_plain_containers_in_a_pickle_are_read(tmp_path):
    content = OrderedDict(model=OrderedDict(a=np.ones(2)), __author__="torchvision")
    content["others"] = [{1, 2}, frozenset({3}), (1, None, True), b"bytes", bytearray(b"x"), 2.5]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = read_content(write(tmp_path / "a.pkl", pickle.dumps(content, protocol)))
        assert list(found.tensors) == ["a"]
        assert found.author == "torchvision"


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def marker_call(tmp_path):
    return Calls(os.system, f"touch {tmp_path / 'executed'}")


def text_pickle(*lines: str) -> bytes:
    return "\n".join(lines).encode()


HOSTILE = {
    "os.system by REDUCE": (
        lambda folder: pickle.dumps({"blobs": {"a": marker_call(folder)}}, 2),
        "asks to load posix.system",
    ),
    "STACK_GLOBAL": (
        lambda folder: pickle.dumps({"blobs": {"a": marker_call(folder)}}, 4),
        "asks to load posix.system",
    ),
    "builtins.eval": (
        lambda folder: pickle.dumps({"a": Calls(eval, f"open('{folder}/executed', 'w')")}, 2),
        "asks to load __builtin__.eval|asks to load builtins.eval",
    ),
    "Python 2's GLOBAL": (
        lambda folder: text_pickle("cos", "system", f"(S'touch {folder}/executed'", "tR."),
        "asks to load os.system",
    ),
    "INST": (
        lambda folder: text_pickle(f"(S'touch {folder}/executed'", "ios", "system", "."),
        "makes objects",
    ),
    "OBJ": (
        lambda folder: text_pickle("(cbuiltins", "list", "S'x'", "o."),
        "makes objects",
    ),
    "NEWOBJ": (
        lambda folder: b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "makes objects",
    ),
    "torch": (
        lambda folder: pickle.dumps({"a": torch.zeros(2)}, 2),
        "asks to load torch._utils._rebuild_tensor_v2",
    ),
    "torch's loader": (
        lambda folder: text_pickle("ctorch.hub", "load", "(S'x'", "tR."),
        "asks to load torch.hub.load",
    ),
    "numpy's loader": (
        lambda folder: text_pickle("cnumpy", "load", "(S'x'", "tR."),
        "asks to load numpy.load",
    ),
    "numpy's file access": (
        lambda folder: text_pickle("cnumpy._core.multiarray", "fromfile", "(S'x'", "tR."),
        "asks to load numpy._core.multiarray.fromfile",
    ),
    "line ends in a name": (
        lambda folder: b"\x80\x04\x8c\x02os\x8c\x08sys\ntem\x1b\x93.",
        r"asks to load os\.sys\\ntem\\x1b, and",
    ),
    "line ends in the name of a tensor": (
        lambda folder: pickle.dumps({"a\nb": np.ones(2)}, 2),
        r"named tensors: 'a\\nb' \(ndarray\)|named tensors: 'a\\nb' \(PickledArray\)",
    ),
    "an attribute of something allowed": (
        lambda folder: b"\x80\x04\x8c\x08builtins\x8c\x0dlist.__base__\x93.",
        "asks to load builtins.list.__base__",
    ),
    "object array": (
        lambda folder: pickle.dumps({"a": np.array([marker_call(folder)], object)}, 2),
        "asks to load posix.system",
    ),
    "harmless object array": (
        lambda folder: pickle.dumps({"a": np.array([{}, []], object)}, 2),
        "array of Python objects, which could run code",
    ),
    "object array, protocol 5": (
        lambda folder: pickle.dumps({"a": np.array([[1, "x"]], object)}, 5),
        "array of Python objects, which could run code",
    ),
    "array of texts": (
        lambda folder: pickle.dumps({"a": np.array(["x"])}, 2),
        "array of type '<U1'",
    ),
    "structured array": (
        lambda folder: pickle.dumps({"a": np.zeros(2, [("x", "f4")])}, 2),
        "array of type",
    ),
    "EXT1": (lambda folder: b"\x80\x02\x82\x01.", "makes objects"),
    "EXT2": (lambda folder: b"\x80\x02\x83\x01\x00.", "makes objects"),
    "EXT4": (lambda folder: b"\x80\x02\x84\x01\x00\x00\x00.", "makes objects"),
    "persistent id": (lambda folder: b"\x80\x02X\x01\x00\x00\x00aQ.", "makes objects"),
    "persistent id as text": (lambda folder: text_pickle("(dS'a'", "Psome", "s."), "makes objects"),
    "buffer from outside": (lambda folder: b"\x80\x05\x97.", "makes objects"),
    "attributes of a class": (
        lambda folder: text_pickle("cnumpy", "dtype", "(dS'make'", "S'x'", "sb."),
        "sets attributes of an object",
    ),
    "a call of a text": (
        lambda folder: text_pickle("(dS'a'", "S'b'", "(tRs."),
        "calls what is no container or array",
    ),
    "bytes in another encoding": (
        lambda folder: text_pickle("c_codecs", "encode", "(S'x'", "S'rot13'", "tR."),
        "is damaged",
    ),
    "a number for bytes": (
        lambda folder: text_pickle("cbuiltins", "bytearray", "(I99999999999", "tR."),
        "is damaged",
    ),
    "a shape of much more than the data": (
        lambda folder: pickle.dumps({"a": ARRAYS["single"].reshape(1)}, 2).replace(
            b"K\x01K\x01\x85", b"K\x01\x8a\x05\x00\x00\x00\x00\x40\x85"
        ),
        r"an array of shape \(274877906944,\) has 8 bytes",
    ),
    "a memo of billions": (
        lambda folder: b"\x80\x02}r\xff\xff\xff\x7f.",
        None,
    ),
    "a text of billions": (
        lambda folder: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3f.",
        "damaged|memory",
    ),
    "nested without end": (
        lambda folder: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "holds a list",
    ),
    "a dict within itself": (
        lambda folder: b"\x80\x02}q\x00U\x05modelh\x00s.",
        r"is not a state dict of named tensors: 'model' \(dict\)",
    ),
    "a list as a key": (lambda folder: b"\x80\x02}]Ns.", "is damaged"),
    # Hashing these would end the process.
    "deep tuples as a key": (
        lambda folder: b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
        "a tuple as a key",
    ),
    "deep tuples as keys": (
        lambda folder: b"\x80\x02}()" + b"\x85" * 200_000 + b"Nu.",
        "a tuple as a key",
    ),
    "deep tuples in a dict": (
        lambda folder: b"\x80\x02()" + b"\x85" * 200_000 + b"Nd.",
        "a tuple as a key",
    ),
    "deep tuples in a set": (
        lambda folder: b"\x80\x04\x8f()" + b"\x85" * 200_000 + b"\x90.",
        "a tuple as a key",
    ),
    "deep tuples in a frozen set": (
        lambda folder: b"\x80\x04()" + b"\x85" * 200_000 + b"\x91.",
        "a tuple as a key",
    ),
    "deep tuples in a call": (
        lambda folder: b"\x80\x02cbuiltins\nset\n](" + b")" + b"\x85" * 200_000 + b"e\x85R.",
        "a tuple as a key",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path, kind):
    make, message = HOSTILE[kind]
    path = write(tmp_path / "a.pkl", make(tmp_path))
    if message is None:
        assert read_content(path).tensors == {}
    else:
        with pytest.raises(WeightError, match=message) as error:
            read_content(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_hostile_pickle_leaves_nothing_behind_for_the_next(tmp_path):
    for kind, (make, _) in HOSTILE.items():
        if "deep" in kind:
            continue
        with contextlib.suppress(WeightError):
            read_content(write(tmp_path / "a.pkl", make(tmp_path)))
    check_arrays(read_content(write(tmp_path / "b.pkl", pickle.dumps(ARRAYS, 2))).tensors)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_deep_tuples_in_a_torch_file_are_refused_before_torch_hashes_them(tmp_path, kind):
    deep = b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."
    if kind == "zip":
        with (
            zipfile.ZipFile(io.BytesIO(FILES["zip"])) as good,
            zipfile.ZipFile(tmp_path / "a", "w") as bad,
        ):
            for name in good.namelist():
                bad.writestr(name, deep if name.endswith("data.pkl") else good.read(name))
    else:
        numbers = [pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001, {})]
        write(tmp_path / "a", b"".join([*numbers, deep, pickle.dumps([], 2)]))
    assert "it makes 200000 tuples" in refusal(tmp_path / "a")


def test_npz_is_read_with_our_remark(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        np.savez_compressed(file, **ARRAYS, videogn='{"a": 1}')
    found = read_content(tmp_path / "a")
    assert (found.kind, found.description) == ("npz", '{"a": 1}')
    check_arrays(found.tensors)


def test_object_arrays_of_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([marker_call(tmp_path)], object))
    assert "array of Python objects" in refusal(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"), "has 0 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", b"1234"), "has the shape"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80."), "Python objects"),
        (npy("__import__('os').system('x')"), "is damaged"),
        (npy("(" * 5000), "is damaged|memory"),
        (npy("{}", version=b"\x09\x00"), "is damaged"),
        (b"\x93NUMPY", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_crafted_members_of_an_npz_are_refused(tmp_path, data, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(WeightError, match=message):
        read_content(tmp_path / "a.npz")


def test_an_npz_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10_000_000))
    assert "would unpack to 10 MiB" in refusal(tmp_path / "a.npz")


def test_a_tensor_of_one_number_that_says_it_is_many_is_refused(tmp_path):
    # Copying it would take 4 TiB.
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "a.pth")
    assert "'a' (Tensor)" in refusal(tmp_path / "a.pth")


def test_class_names_of_mmengine_and_of_mmcv_are_found(tmp_path):
    state = {"a": torch.zeros(1)}
    for meta in ({"dataset_meta": {"classes": ["x", "y"]}}, {"CLASSES": ("x", "y")}):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "a.pth")
        assert read_content(tmp_path / "a.pth").class_names == ("x", "y")
    for meta in ({"CLASSES": None}, {"CLASSES": [1, 2]}, {"dataset_meta": {"classes": []}}, [1]):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "a.pth")
        assert read_content(tmp_path / "a.pth").class_names is None


@pytest.mark.parametrize("start", [b"text", b"", b"\x00" * 100, b"GIF89a", b"\x93NUMPY"])
def test_other_files_are_refused(tmp_path, start):
    assert "is neither" in refusal(write(tmp_path / "a", start))


def small_files() -> dict[str, bytes]:
    tensors = {"conv1.weight": torch.ones(2, 3, 2, 2), "bn1.bias": torch.zeros(3)}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    files = {}
    for kind in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save({"state_dict": tensors}, buffer, _use_new_zipfile_serialization=kind == "zip")
        files[kind] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files["npz"] = buffer.getvalue()
    files["python2"] = python2_pickle(ARRAYS["conv1_w"], 0)
    for protocol in (2, 5):
        files[f"pickle{protocol}"] = pickle.dumps({"blobs": arrays, "lr": np.float32(1)}, protocol)
    return files


FILES = small_files()


def survives(path: Path) -> None:
    """Reading either succeeds or ends with a readable refusal."""
    message = str(path)
    try:
        read_content(path)
    except WeightError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "a"


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(kind=st.sampled_from(sorted(FILES)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(scratch, kind, share):
    data = FILES[kind]
    assert "\n" not in refusal(write(scratch, data[: int(len(data) * share)]))


@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(
    kind=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
)
def test_overwritten_bytes_never_end_in_another_error(scratch, kind, changes):
    data = bytearray(FILES[kind])
    for share, value in changes:
        data[int(len(data) * share)] = value
    survives(write(scratch, bytes(data)))


@FUZZ
@given(st.lists(st.sampled_from([op.code for op in pickletools.opcodes]), max_size=12), st.binary())
def test_random_instructions_never_end_in_another_error(scratch, codes, rest):
    survives(write(scratch, b"\x80\x02" + "".join(codes).encode("latin1") + rest + b"."))


def test_safetensors_cut_off_or_altered_are_refused(tmp_path):
    save_file({"a": torch.zeros(4)}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    for length in (9, 20, len(data) - 1):
        assert "damaged" in refusal(write(tmp_path / "b", data[:length]))
    assert "damaged" in refusal(write(tmp_path / "b", data.replace(b"F32", b"Q99")))
