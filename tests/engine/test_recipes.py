"""Recipes of the test on a CPU: which is chosen, and that all compute the same."""

import copy
import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from videogn.engine import recipes
from videogn.engine.evaluator import class_scores, pooled_features
from videogn.engine.pass_size import make_pass_size
from videogn.engine.recipes import (
    COMPILE_PAYS,
    choose_recipe,
    compiled,
    compiler_fault,
    cpu_has_bf16,
    make_ready,
)
from videogn.errors import UserError
from videogn.models import i3d
from videogn.models.norm import is_norm
from videogn.models.views import LAST

CPU = torch.device("cpu")
VIEW = (8, 256, 256)
LONG = COMPILE_PAYS // (8 * 256 * 256) + 1
CLIP = (8, 64, 64)


def chosen(wanted: str = "auto", precision: str = "fp32", **changes: object) -> recipes.Choice:
    facts = {"view": VIEW, "num_views": LONG, "norm": "gn"} | changes
    return choose_recipe(wanted, precision, CPU, **facts)  # type: ignore[arg-type]


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_auto_compiles_long_tests_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "compiler_fault", lambda: None)
    assert chosen() == recipes.Choice("compiled")
    assert chosen(num_views=LONG - 1) == recipes.Choice("views")
    assert chosen(view=None) == recipes.Choice("views")


@pytest.mark.parametrize(
    ("norm", "precision", "recipe"),
    [
        ("gn", "bf16", "views"),
        ("ln", "bf16", "views"),
        ("bn", "bf16", "compiled"),
        ("gn", "tf32", "compiled"),
        ("none", "bf16", "compiled"),
    ],
)
def test_group_norms_of_halves_are_not_compiled(
    norm: str, precision: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "compiler_fault", lambda: None)
    monkeypatch.setattr(recipes, "cpu_has_bf16", lambda: True)
    assert chosen(norm=norm, precision=precision) == recipes.Choice(recipe)
    assert chosen("compiled", norm=norm, precision=precision).recipe == "compiled"


def test_auto_falls_back_and_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    choice = chosen()
    assert choice.recipe == "views"
    assert len(choice.notes) == 1
    assert "there is no C++ compiler (g++)" in choice.notes[0]
    assert "\n" not in choice.notes[0]
    assert chosen(num_views=1).notes == ()


def test_compiling_that_was_asked_for_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_compiler(monkeypatch)
    with pytest.raises(UserError, match=r"recipe=compiled: there is no C.*set test.recipe=views"):
        chosen("compiled")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(UserError, match=r"/no/such/compiler.*or set test\.recipe=views"):
        chosen("compiled")


def test_a_compiler_without_headers_of_python_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(recipes.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in str(compiler_fault())
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(recipes, "_fault_of", lambda command, headers: None)
    assert compiler_fault() is None


def compiler_of(folder: Path, script: str) -> str:
    path = folder / "my c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return shlex.quote(str(path))


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo no cc1plus >&2; echo more >&2; exit 1", r"does not work \(no cc1plus\)"),
        ("exit 4", r"does not work \(exit code 4\)"),
        ("exit 0", "does not work"),  # and no file made
        ("exec sleep 60", "does not run"),
    ],
)
def test_a_broken_compiler_is_left_by_auto_and_told_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, fault: str
) -> None:
    monkeypatch.setattr(recipes, "COMPILER_SECONDS", 1)
    # It does tell its version, which is all that torch asks of one.
    answer = 'if [ "$1" = --version ]; then exec echo 14.2; fi;'
    monkeypatch.setenv("CXX", compiler_of(tmp_path, f"{answer} {script}"))
    choice = chosen("auto")
    assert choice.recipe == "views"
    assert re.search(fault, choice.notes[0])
    with pytest.raises(UserError, match=rf"recipe=compiled: .*{fault}.*set test\.recipe=views"):
        chosen("compiled")


def test_a_compiler_that_works_is_found_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if compiler_fault():
        pytest.skip(str(compiler_fault()))
    monkeypatch.setenv("CXX", "env g++")
    assert compiler_fault() is None


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "compiler_fault", lambda: None)
    for wanted in ("eager", "views", "compiled"):
        assert chosen(wanted, num_views=1) == recipes.Choice(wanted)
    assert "every width" in chosen("compiled", view=None).notes[0]


def test_a_cpu_without_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "cpu_has_bf16", lambda: False)
    (note,) = chosen("views", "bf16").notes
    assert "no instructions for bf16" in note
    assert "test.precision=fp32" in note
    monkeypatch.setattr(recipes, "cpu_has_bf16", lambda: True)
    assert chosen("views", "bf16").notes == ()
    assert isinstance(cpu_has_bf16(), bool)


def test_tf32_is_fp32_on_a_cpu() -> None:
    assert chosen("views", "tf32").notes == ()


def test_gpus_have_no_recipes() -> None:
    gpu = torch.device("cuda")
    facts = {"view": VIEW, "num_views": LONG, "norm": "bn"}
    assert choose_recipe("auto", "bf16", gpu, **facts).recipe == "eager"  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"test\.recipe=views is for CPUs"):
        choose_recipe("views", "bf16", gpu, **facts)  # type: ignore[arg-type]


def trained(norm: str, depths: tuple[int, ...] = (1, 1)) -> nn.Module:
    """A small network with the statistics of training."""
    torch.manual_seed(0)
    network = i3d(norm=norm, width=32, depths=depths, num_classes=5, layout="zoo").eval()
    with torch.no_grad():
        for module in network.modules():
            if is_norm(module):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                if hasattr(module, "running_var"):
                    module.running_var.uniform_(0.5, 2.0)
                    module.running_mean.normal_()
    return network


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("measure_of", [class_scores, pooled_features])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_views_compute_what_eager_computes(norm: str, measure_of) -> None:  # type: ignore[no-untyped-def]
    network = trained(norm)
    clips = torch.randn(2, 3, *CLIP)
    with torch.inference_mode():
        expected = measure_of(network)(clips)
        layout = make_ready(network, "views", CLIP)
        assert layout == LAST
        last = clips.contiguous(memory_format=LAST)
        for found, exact in zip(measure_of(network)(last), expected, strict=True):
            assert relative(found, exact) < 1e-4
        # Of each video by itself, whatever it is beside: within the rounding of a sum.
        alone = measure_of(network)(last[:1].clone(memory_format=LAST))
        for found, exact in zip(alone, expected, strict=True):
            assert relative(found, exact[:1]) < 1e-4


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_views_in_bf16_are_within_its_rounding(norm: str) -> None:
    """Emulated where the CPU has no bf16, which is slow: small clips."""
    network, view = trained(norm), (4, 32, 32)
    clips = torch.randn(2, 3, *view)
    with torch.inference_mode():
        (expected,) = pooled_features(network)(clips)
        make_ready(network, "views", view)
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = pooled_features(network)(clips.contiguous(memory_format=LAST))
    assert relative(found, expected) < 6e-3


@pytest.mark.parametrize("recipe", ["eager", "views"])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_weights_rounded_once_give_the_bits_of_autocast(norm: str, recipe: str) -> None:
    network, view = trained(norm), (6, 32, 32)
    once = copy.deepcopy(network)
    clips = torch.randn(2, 3, *view)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layout = make_ready(network, recipe, view)
        expected = class_scores(network)(clips.contiguous(memory_format=layout))
        make_ready(once, recipe, view, "bf16")
        found = class_scores(once)(clips.bfloat16().contiguous(memory_format=layout))
    weights = [m.weight.dtype for m in once.modules() if isinstance(m, (nn.Conv3d, nn.Linear))]
    assert set(weights) == {torch.bfloat16}
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)


def test_a_network_of_images_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert not any(isinstance(m, nn.Conv3d) for m in network.modules())
    network.forward = lambda clips: network[0](clips[:, :, 0])  # type: ignore[method-assign]
    assert make_ready(network, "views", CLIP) == torch.contiguous_format


def test_a_pass_takes_no_more_memory_than_the_probe_finds_for_eager() -> None:
    """Copies of clips in another order would be counted as memory that views need."""
    found = {}
    for recipe in ("eager", "views"):
        network = trained("bn")
        layout = make_ready(network, recipe, CLIP)
        size = make_pass_size(
            network,
            class_scores,
            fixed=None,
            precision="fp32",
            device=CPU,
            sharing=1,
            memory_format=layout,
        )
        found[recipe] = size._probe(CLIP)
    assert 0.5 < found["views"] / found["eager"] <= 1.3


@pytest.mark.slow
def test_compiled_computes_what_eager_computes() -> None:
    if compiler_fault():
        pytest.skip(str(compiler_fault()))
    from torch._inductor import config

    network = trained("gn", depths=(1,))
    clips = torch.randn(1, 3, *CLIP)
    with torch.inference_mode():
        expected = class_scores(copy.deepcopy(network))(clips)
        make_ready(network, "views", CLIP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own compiler
            found = compiled(class_scores(network))(clips.contiguous(memory_format=LAST))
    for value, exact in zip(found, expected, strict=True):
        assert relative(value, exact) < 1e-4
    assert not config.freezing
