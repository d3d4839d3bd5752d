"""Runs that log the percentiles of a layer (paper, Figure 6)."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import drive
from torch import nn

from videogn.cli import main
from videogn.commands import run_parts
from videogn.config import Config
from videogn.engine import trainer
from videogn.engine.runs import RunFolder, read_log
from videogn.stopping import EXIT_CODE, stop_request

VGG = ["model.arch=vgg16", "model.depths=[1,1,1]", "model.norm=none", "clip.num_frames=1"]
CONV3_1 = "features.8"
I3D_CONV = "blocks.1.res_blocks.0.branch2.conv_b"
LOGGED = [2, 3, 4, 6]
"""Iterations of the tiny run with a progress line."""
REHEARSED = 2
"""Passes before the first step."""


def entries_of(folder: Path) -> list[dict]:
    return [e for e in read_log(RunFolder(folder).log) if e["kind"] == "percentiles"]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are the same bit for bit on CPUs alone; GPUs have a test of their own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class Witness:
    """Keeps all that a layer gives in training, by a hook of its own."""

    def __init__(self, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs: list[np.ndarray] = []
        self.hooks: list[int] = []
        self.network: nn.Module | None = None

        def build(*arguments: object) -> nn.Module:
            network = real(*arguments)
            network.get_submodule(layer).register_forward_hook(self.look)
            self.network = network
            return network

        real = run_parts.build_model
        monkeypatch.setattr(run_parts, "build_model", build)

    def look(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if module.training:
            self.outputs.append(output.detach().numpy().copy())
            self.hooks.append(len(module._forward_hooks))

    def percentiles(self, call: int) -> list[float]:
        values = self.outputs[call].astype(np.float64)
        return list(np.percentile(values, [1, 20, 80, 99]))


@pytest.mark.parametrize(
    ("layer", "words", "times"), [(CONV3_1, VGG, 1), (I3D_CONV, ["train.accumulation=2"], 2)]
)
def test_logged_percentiles_are_those_of_the_first_batch_of_the_iteration(
    tiny, monkeypatch, layer: str, words: list[str], times: int
) -> None:
    witness, out = Witness(layer, monkeypatch), tiny.folder / "run"
    words = [*words, f"train.percentile_layer={layer}", f"out={out}"]
    assert main(["train", str(tiny.config), *words]) == 0
    entries = entries_of(out)
    assert [entry["iteration"] for entry in entries] == LOGGED
    assert {entry["layer"] for entry in entries} == {layer}
    assert len(witness.outputs) == REHEARSED + 6 * times
    for entry in entries:
        call = REHEARSED + (entry["iteration"] - 1) * times
        assert entry["values"] == pytest.approx(witness.percentiles(call), rel=1e-6)
        assert entry["values"][0] < 0 < entry["values"][3]
    # The witness's own hook is there at all steps; another one in those that are logged.
    per_step = [witness.hooks[REHEARSED + n * times] for n in range(6)]
    assert per_step == [2 if number in LOGGED else 1 for number in range(1, 7)]
    assert witness.network is not None
    assert sum(len(m._forward_hooks) for m in witness.network.modules()) == 1
    assert (out / "percentiles.png").read_bytes().startswith(b"\x89PNG")


def test_looking_changes_nothing_of_a_run_and_may_begin_when_it_goes_on(tiny) -> None:
    words = ["train", str(tiny.config), *VGG, "data.val=''"]
    plain, seen = tiny.folder / "plain", tiny.folder / "seen"
    assert main([*words, f"out={plain}"]) == 0
    assert main([*words, f"out={seen}", f"train.percentile_layer={CONV3_1}"]) == 0
    assert losses_of(seen) == losses_of(plain)
    assert not (plain / "percentiles.png").exists()
    assert (seen / "percentiles.png").exists()
    longer = [f"out={plain}", "train.iterations=8", f"train.percentile_layer={CONV3_1}"]
    assert main([*words, *longer]) == 0
    assert [entry["iteration"] for entry in entries_of(plain)] == [8]


def losses_of(folder: Path) -> list[float]:
    return [e["loss"] for e in read_log(RunFolder(folder).log) if e["kind"] == "train"]


@pytest.mark.parametrize("broken_by", ["death in a step", "death in a save", "signal"])
def test_a_run_that_goes_on_has_the_log_of_an_unbroken_one(
    tiny, monkeypatch, broken_by: str
) -> None:
    words = ["train", str(tiny.config), *VGG, f"train.percentile_layer={CONV3_1}"]
    unbroken, broken = tiny.folder / "unbroken", tiny.folder / "broken"
    assert main([*words, f"out={unbroken}"]) == 0
    step, saved = trainer.train_step, trainer._saved

    def broken_step(run: object, batches: object, iteration: int, *rest: object) -> object:
        if broken_by == "death in a step" and iteration == 5:
            raise KeyboardInterrupt
        if broken_by == "signal" and iteration == 3:
            # Iteration 4 is logged; its milestone is left to the run that goes on.
            patch.setattr(stop_request, "signal", signal.SIGTERM)
        return step(run, batches, iteration, *rest)

    def broken_save(run: object, meter: object, state: object) -> object:
        if broken_by == "death in a save" and state.iteration == 4:
            raise KeyboardInterrupt
        return saved(run, meter, state)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", broken_step)
        patch.setattr(trainer, "_saved", broken_save)
        code = main([*words, f"out={broken}"])
    assert code == (EXIT_CODE if broken_by == "signal" else 130)
    assert [entry["iteration"] for entry in entries_of(broken)][-1] == 4
    assert main([*words, f"out={broken}"]) == 0
    assert [entry["iteration"] for entry in entries_of(unbroken)] == LOGGED
    assert entries_of(broken) == entries_of(unbroken)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.percentile_layer=features.9x"], ["no layer 'features.9x'", "features.9"]),
        ([f"train.percentile_layer={CONV3_1}", "train.compile=true"], ["train.compile", "exclude"]),
        (
            [f"train.percentile_layer={CONV3_1}", "compute.graphs='on'"],
            ["compute.graphs=on needs", "no train.percentile_layer"],
        ),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_anything_starts(
    tiny, capsys, words: list[str], told: list[str]
) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), *VGG, f"out={out}", *words]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("train.percentile_layer", *told))
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_layer_that_no_pass_calls_is_told_before_the_first_step(tiny, capsys) -> None:
    words = ["train", str(tiny.config), f"out={tiny.folder / 'run'}", "train.iterations=2"]
    assert main([*words, "train.percentile_layer=blocks.1.res_blocks"]) == 2
    error = capsys.readouterr().err
    assert "percentile_layer=blocks.1.res_blocks: the layer is not called" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_fused_norms_and_recomputed_activations_leave_convolutions_to_look_at(
    tiny, monkeypatch, capsys
) -> None:
    """Kernels by Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = ["train.iterations=1", "data.val=''", "train.clips_per_gpu=2"]
    fused = ["train.memory_format=channels_last_3d", "compute.norms=fused"]
    fused += ["compute.convolutions=2d", "compute.recompute=act+conv_c"]
    layer, found = "blocks.1.res_blocks.0.branch2.conv_c", {}
    for name, words in {"plain": [], "fused": fused}.items():
        words = [*sizes, *words, f"out={tiny.folder / name}", f"train.percentile_layer={layer}"]
        assert main(["train", str(tiny.config), *words]) == 0
        [entry] = entries_of(tiny.folder / name)
        found[name] = entry["values"]
    assert found["fused"] == pytest.approx(found["plain"], rel=1e-3, abs=1e-4)
    capsys.readouterr()
    act = layer.replace("conv_c", "act_a")
    words = [*sizes, *fused, f"out={tiny.folder / 'act'}", f"train.percentile_layer={act}"]
    assert main(["train", str(tiny.config), *words]) == 2
    assert "the layer is not called in a training pass" in capsys.readouterr().err


@pytest.mark.dist
def test_two_ranks_log_those_of_the_first_ranks_clips(tiny) -> None:
    """In the first iteration weights are equal: its clips are the first half of one process's."""
    words = ["train", str(tiny.config), *VGG, "data.val=''", "train.iterations=2"]
    words += [f"train.percentile_layer={CONV3_1}", "train.log_interval=1"]
    drive([*words, "train.clips_per_gpu=2"], 2, tiny.folder, folder="two")
    assert main([*words, "train.clips_per_gpu=2", f"out={tiny.folder / 'one'}"]) == 0
    two, one = (entries_of(tiny.folder / name) for name in ("two", "one"))
    assert [entry["iteration"] for entry in two] == [1, 2]
    # One process of 2 clips begins with the clips that the first of two ranks begins with.
    assert two[0]["values"] == pytest.approx(one[0]["values"], rel=1e-3)
    assert two[1]["values"] != pytest.approx(one[1]["values"], rel=1e-3)


def test_no_layer_is_looked_at_by_itself() -> None:
    assert Config().train.percentile_layer is None
