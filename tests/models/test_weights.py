import json
import os
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videogn.errors import RunError, WeightError
from videogn.models.build import build_network
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import (
    few,
    load_into,
    load_model,
    read_info,
    read_weights,
    write_weights,
)

SPEC = NetworkSpec("i3d_r50", "bn", 32, None, "nonlocal", 3, 4, (1, 1), 0.5)
INFO = WeightInfo(SPEC, ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "r50.pth", "00", "mean")


def network_and_file(tmp_path, randomise, **changes):
    spec = replace(SPEC, **changes)
    network = randomise(build_network(spec))
    path = tmp_path / "weights.safetensors"
    write_weights(path, network.state_dict(), replace(INFO, spec=spec))
    return network, path


def rewrite(path: Path, change) -> None:
    """Change the JSON header's metadata or drop tensors, leaving a sound safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load_file(path)
    change(metadata, tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("changes", [{}, {"norm": "gn", "num_groups": 4}, {"arch": "resnet50"}])
def test_a_written_network_comes_back_bit_for_bit(tmp_path, randomise, changes):
    network, path = network_and_file(tmp_path, randomise, **changes)
    loaded = load_model(path)
    assert not loaded.training
    expected = network.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(t, expected[name]) for name, t in loaded.state_dict().items())
    clip = torch.randn(1, 3, 1 if changes.get("arch") else 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(clip), network(clip))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_description_comes_back(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    file = read_weights(path)
    assert file.info == read_info(path) == INFO
    assert file.training is None
    assert file.optimizer == {}
    assert len(file.sha256) == 64


def test_optimizer_tensors_and_training_state_come_back(tmp_path, randomise):
    network = randomise(build_network(SPEC))
    path = tmp_path / "checkpoint.safetensors"
    momentum = {"optimizer/blocks.0.conv.weight/momentum_buffer": torch.randn(4, 3, 5, 7, 7)}
    training = {"iteration": 3, "failed": {"ä": "b"}, "best": float("nan"), "list": [1, 2.5]}
    write_weights(path, network.state_dict() | momentum, INFO, training)
    file = read_weights(path)
    assert list(file.optimizer) == list(momentum)
    assert torch.equal(*[next(iter(d.values())) for d in (file.optimizer, momentum)])
    assert set(file.state) == set(network.state_dict())
    assert str(file.training) == str(training)
    load_into(network, SPEC, file)


def test_equal_weights_make_equal_files_in_any_memory_layout(tmp_path, randomise):
    network, path = network_and_file(tmp_path, randomise)
    other = tmp_path / "other.bin"
    network.to(memory_format=torch.channels_last_3d)
    write_weights(other, dict(reversed(network.state_dict().items())), INFO)
    assert other.read_bytes() == path.read_bytes()


def test_load_into_fills_another_network(tmp_path, randomise):
    network, path = network_and_file(tmp_path, randomise)
    other = build_network(SPEC)
    load_into(other, replace(SPEC, dropout=0.1, num_groups=2), read_weights(path))
    expected = network.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in other.state_dict().items())


def test_load_into_refuses_another_network_naming_both_values(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    wanted = replace(SPEC, norm="gn", num_groups=4, num_classes=400, layout="zoo", width=8)
    network = build_network(wanted)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(WeightError) as error:
        load_into(network, wanted, read_weights(path))
    for fault in (
        "model.norm is gn but the file has bn",
        "model.num_classes is 400 but the file has 3",
        "model.layout is zoo but the file has nonlocal",
        "model.width is 8 but the file has 4",
    ):
        assert fault in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def refusal(path) -> str:
    """The message, which must name the file; the header alone is enough for most faults."""
    with pytest.raises(WeightError) as error:
        load_model(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_missing_file_folder_and_pipe_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")


def test_other_kinds_of_files_are_refused_whatever_their_name(tmp_path):
    path = tmp_path / "weights.safetensors"
    for content in (b"", b"{}", b"some text that is long enough", b"PK\x03\x04" * 10):
        path.write_bytes(content)
        assert "not safetensors" in refusal(path)
    torch.save({"a": torch.zeros(1)}, path)
    assert "videogn inflate" in refusal(path)


def test_foreign_safetensors_are_sent_to_inflate(tmp_path):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "a")
    assert "videogn inflate" in refusal(tmp_path / "a")


def test_the_name_does_not_matter(tmp_path, randomise):
    network, path = network_and_file(tmp_path, randomise)
    renamed = path.rename(tmp_path / "weights.pth")
    assert set(load_model(renamed).state_dict()) == set(network.state_dict())


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.9999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, randomise, share):
    _, path = network_and_file(tmp_path, randomise)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    assert "cut off" in refusal(path)
    with pytest.raises(WeightError):
        read_info(path)


def test_every_flipped_bit_is_noticed(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    raw = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    in_tensors = torch.randint(len(raw) // 2, len(raw), (20,), generator=generator).tolist()
    in_header = [raw.index(b"0.4") + 2, raw.index(b"mean") + 1, raw.index(b"blocks.0") + 7]
    for position in (*in_tensors, *in_header):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        refusal(path)


def test_faults_of_the_description_are_refused(tmp_path, randomise):
    def set_description(text):
        return lambda metadata, _: metadata.update(videogn=text)

    for text, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "format version None"),
        ('{"format_version": 2}', "format version 2"),
        ('{"format_version": 1}', "Field required"),
    ):
        _, path = network_and_file(tmp_path, randomise)
        rewrite(path, set_description(text))
        assert message in refusal(path)


def test_an_altered_description_is_refused(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    rewrite(path, lambda m, _: m.update(videogn=m["videogn"].replace('"a", "b"', '"b", "a"')))
    with pytest.raises(WeightError, match="class names are not those it was written with"):
        read_info(path)
    assert "class names are not those it was written with" in refusal(path)

    _, path = network_and_file(tmp_path, randomise)
    rewrite(path, lambda m, _: m.update(videogn=m["videogn"].replace("r50.pth", "r99.pth")))
    assert read_info(path).source == "r99.pth"
    assert "not what was written" in refusal(path)


def test_dropped_and_swapped_tensors_are_refused(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    rewrite(path, lambda _, tensors: tensors.pop("blocks.0.conv.weight"))
    assert "not what was written" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    network = build_network(SPEC)
    network.blocks[0].norm.bias.data[1] = value
    write_weights(tmp_path / "a", network.state_dict(), INFO)
    assert "infinite values in blocks.0.norm.bias" in refusal(tmp_path / "a")


def test_tensors_of_another_network_are_listed(tmp_path):
    state = build_network(SPEC).state_dict()
    state["blocks.0.conv.weight"] = state["blocks.0.conv.weight"][:, :, 0].clone()
    state["blocks.0.norm.bias"] = state["blocks.0.norm.bias"].half()
    del state["blocks.4.proj.bias"]
    state |= {f"extra.{number}": torch.zeros(1) for number in range(8)}
    write_weights(tmp_path / "a", state, INFO)
    message = refusal(tmp_path / "a")
    assert "missing: blocks.4.proj.bias" in message
    assert "unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more" in message
    assert "blocks.0.conv.weight float32 (4, 3, 7, 7) instead of float32 (4, 3, 5, 7, 7)" in message
    assert "blocks.0.norm.bias float16 (4,) instead of float32 (4,)" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "c2d"}, "choose from i3d_r50, i3d_r101"),
        ({"norm": "gnn"}, "choose from bn, frozen_bn"),
        ({"layout": "slow"}, "choose from nonlocal"),
        ({"norm": "gn", "num_groups": 3}, "4 channels"),
        ({"width": 1 << 20}, "instead of"),
    ],
)
def test_descriptions_that_no_network_has_are_refused(tmp_path, changes, message):
    info = replace(INFO, spec=replace(SPEC, **changes))
    write_weights(tmp_path / "a", build_network(SPEC).state_dict(), info)
    assert message in refusal(tmp_path / "a")


def test_a_failed_write_leaves_the_earlier_file(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_weights(path, build_network(SPEC).state_dict(), INFO, {"a": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_the_disk_refuses_is_a_run_error(tmp_path, randomise):
    _, path = network_and_file(tmp_path, randomise)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"cannot be written.*File too large.*MiB free"):
            write_weights(path, build_network(SPEC).state_dict(), INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_few_names_then_a_count():
    assert few(["a", "b"]) == "a, b"
    assert few("abcdef") == "a, b, c, d, e and 1 more"
    assert few("abc", 1) == "a and 2 more"
    assert few([]) == ""
