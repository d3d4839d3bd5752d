"""Which form of a network is chosen where."""

import pytest
import torch

from videogn.commands.setup import spec_of as spec_of_config
from videogn.config import ComputeConfig, ModelConfig
from videogn.engine import compute
from videogn.engine.compute import A_GPU, Machine, choose_execution, replays_passes, uses_graphs
from videogn.errors import ConfigError
from videogn.models.spec import NetworkSpec

CPU = Machine(cuda=False, kernels=False, cudnn=None)
NO_TRITON = Machine(cuda=True, kernels=False, cudnn=91500)
FAULTY = Machine(cuda=True, kernels=True, cudnn=91002)
LAST, PLAIN = torch.channels_last_3d, torch.contiguous_format


def spec_of(norm: str = "gn", arch: str = "i3d_r50") -> NetworkSpec:
    return spec_of_config(ModelConfig(arch=arch, norm=norm))


def chosen(machine: Machine, norm: str = "gn", precision: str = "bf16", **compute: str):
    config = ComputeConfig(**compute)
    return choose_execution(config, spec_of(norm), machine, precision=precision)


@pytest.mark.parametrize("norm", ["gn", "bn", "ln", "in"])
def test_a_gpu_with_triton_has_everything(norm: str) -> None:
    execution = chosen(A_GPU, norm)
    assert execution.norms == "fused"
    assert execution.memory_format == LAST


@pytest.mark.parametrize(
    ("machine", "norm", "layout"),
    [
        (CPU, "gn", PLAIN),
        (CPU, "bn", PLAIN),
        (NO_TRITON, "gn", PLAIN),
        (NO_TRITON, "bn", LAST),
        (A_GPU, "sync_bn", LAST),
        (A_GPU, "none", LAST),
    ],
)
def test_elsewhere_torch_has_the_norms_and_their_best_order(machine, norm, layout) -> None:
    execution = chosen(machine, norm)
    assert execution.norms == "eager"
    assert execution.memory_format == layout


def test_the_cpu_trains_as_torch_does() -> None:
    execution = chosen(CPU, "bn", "fp32")
    assert (execution.norms, execution.convolutions) == ("eager", "3d")
    assert execution.recompute == "none"


def test_networks_of_stills_stay_as_they_are() -> None:
    spec = spec_of(arch="resnet50")
    execution = choose_execution(ComputeConfig(), spec, A_GPU, precision="bf16")
    assert (execution.norms, execution.convolutions) == ("eager", "3d")
    assert execution.memory_format == PLAIN


@pytest.mark.parametrize(
    ("machine", "norm", "compute", "words"),
    [
        (CPU, "gn", {"norms": "fused"}, "need a CUDA device and Triton"),
        (A_GPU, "sync_bn", {"norms": "fused"}, "model.norm=sync_bn"),
        (CPU, "gn", {"recompute": "act"}, "set compute.recompute=none"),
        (CPU, "gn", {"recompute": "block"}, "set compute.recompute=none"),
        (A_GPU, "sync_bn", {"recompute": "block"}, "set compute.recompute=none"),
        (CPU, "gn", {"convolutions": "2d"}, "set train.memory_format=channels_last_3d"),
        (FAULTY, "gn", {"convolutions": "3d"}, "compute.convolutions=2d"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(machine, norm, compute, words) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(machine, norm, **compute)


def test_a_faulty_cudnn_is_no_matter_in_float32_and_is_avoided_by_auto() -> None:
    assert chosen(FAULTY, precision="fp32", convolutions="3d").convolutions == "3d"
    assert chosen(FAULTY).convolutions == "2d"
    assert chosen(A_GPU).convolutions == "mixed"
    with pytest.raises(ConfigError, match=r"9\.10\.2"):
        chosen(FAULTY, convolutions="mixed")


def test_the_compiler_chooses_for_itself_what_to_compute_again() -> None:
    config = ComputeConfig(recompute="act")
    with pytest.raises(ConfigError, match=r"train\.compile"):
        choose_execution(config, spec_of(), A_GPU, precision="bf16", compiled=True)


def test_recomputing_is_for_video() -> None:
    config = ComputeConfig(recompute="block")
    with pytest.raises(ConfigError, match=r"not model\.arch=vgg16"):
        choose_execution(config, spec_of(arch="vgg16"), A_GPU, precision="bf16")


def test_the_line_says_what_is_done() -> None:
    assert str(chosen(CPU)) == "eager norms, 3d convolutions, contiguous"
    assert str(chosen(A_GPU, recompute="act")).endswith("act recomputed")


@pytest.mark.parametrize(
    ("graphs", "machine", "change", "used"),
    [
        ("auto", A_GPU, {}, True),
        ("auto", CPU, {}, False),
        ("auto", NO_TRITON, {}, False),
        ("on", A_GPU, {}, True),
        ("auto", A_GPU, {"accumulation": 2}, False),
        ("auto", A_GPU, {"compiled": True}, False),
        ("auto", A_GPU, {"watched": True}, False),
        ("auto", A_GPU, {"watched": False}, True),
        ("off", A_GPU, {}, False),
    ],
)
def test_where_a_step_is_captured(graphs, machine, change, used) -> None:
    config = ComputeConfig(graphs=graphs)
    execution = choose_execution(config, spec_of(), machine, precision="bf16")
    step = {"accumulation": 1, "compiled": False} | change
    assert uses_graphs(config, execution, machine, **step) == used


@pytest.mark.parametrize("change", [{"accumulation": 2}, {"compiled": True}, {"watched": True}])
def test_capturing_what_cannot_be_captured_is_refused(change) -> None:
    config = ComputeConfig(graphs="on")
    execution = choose_execution(config, spec_of(), A_GPU, precision="bf16")
    step = {"accumulation": 1, "compiled": False} | change
    with pytest.raises(ConfigError, match=r"train\.accumulation=1"):
        uses_graphs(config, execution, A_GPU, **step)


@pytest.mark.parametrize(
    ("machine", "compute", "replayed"),
    [
        (A_GPU, {}, True),
        (A_GPU, {"graphs": "on"}, True),
        (A_GPU, {"graphs": "off"}, False),
        (A_GPU, {"norms": "eager"}, False),
        (NO_TRITON, {}, False),
        (CPU, {}, False),
        # Asked for in training; a test on a CPU goes on without.
        (CPU, {"graphs": "on"}, False),
    ],
)
def test_which_tests_have_graphs(machine: Machine, compute: dict[str, str], replayed: bool) -> None:
    config = ComputeConfig(**compute)
    execution = choose_execution(config, spec_of(), machine, precision="bf16")
    assert replays_passes(config, execution, machine) == replayed


def test_kernels_that_do_not_run_are_told_of_and_left(monkeypatch, caplog) -> None:
    def broken(*_arguments: object, **_options: object) -> torch.Tensor:
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(compute, "group_norm", broken)
    device = torch.device("cpu", 7)  # of which nothing is remembered
    assert not Machine.of(device).kernels
    assert "norms are computed by torch's own layers: no C compiler" in caplog.text
    assert "and more" not in caplog.text


def test_kernels_that_are_wrong_are_told_of_and_left(monkeypatch, caplog) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(compute, "group_norm", lambda x, *_, **__: x + 1)
    assert not Machine.of(torch.device("cpu", 5)).kernels
    assert "torch's own layers: a kernel's result is wrong" in caplog.text


def test_kernels_that_run_are_found(monkeypatch) -> None:
    assert not Machine.of(torch.device("cpu")).kernels
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert Machine.of(torch.device("cpu")).kernels


def test_kernels_are_left_alone_where_a_machine_is_only_looked_at(monkeypatch) -> None:
    def never(*_arguments: object, **_options: object) -> torch.Tensor:
        raise AssertionError("computed")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(compute, "group_norm", never)
    assert Machine.untried(torch.device("cpu", 6)).kernels
