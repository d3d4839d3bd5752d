"""How a network computes while it is tested on a CPU: plainly, as 2D convolutions, or compiled.

Speeds are measured in docs/testing.md; all give the same scores but for rounding.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videogn.engine.arithmetic import dtype_of
from videogn.engine.evaluator import fastest_format
from videogn.engine.pass_size import Measure
from videogn.errors import RunError, UserError, first_line
from videogn.models.cpu_halves import make_sound
from videogn.models.folding import CONVOLUTION_TYPES, fold_batch_norms
from videogn.models.in_place import work_in_place
from videogn.models.norm import GROUP_NORMS
from videogn.models.views import LAST, use_views

COMPILE_PAYS = 10_000_000_000
"""Frames times pixels of a test from which compiling, half a minute to two on each process, is
repaid several times over on two cores."""

COMPILER_SECONDS = 60
"""For a few lines, which take a second; then the compiler counts as broken."""


ROUNDED = (*CONVOLUTION_TYPES, nn.Linear)
"""Layers whose weights autocast takes in the lower precision."""


@dataclass(frozen=True)
class Choice:
    """A recipe.

    Attributes:
        recipe: eager, views or compiled.
        notes: lines for people.
    """

    recipe: str
    notes: tuple[str, ...] = ()


def choose_recipe(
    wanted: str,
    precision: str,
    device: torch.device,
    *,
    view: tuple[int, int, int] | None,
    num_views: int,
    norm: str,
) -> Choice:
    """The recipe of a test: the same on every rank, and when the test is started again.

    Args:
        wanted: auto, eager, views or compiled.
        precision: fp32, tf32, bf16 or fp16.
        view: (T, H, W) of all views; None where sizes differ.
        num_views: of the whole list, whatever is scored already.
        norm: of the network, a key of :data:`videogn.models.norm.NORMS`.

    Raises:
        UserError: the recipe that is asked for cannot be had here.
    """
    if device.type != "cpu":
        if wanted in ("views", "compiled"):
            raise UserError(f"test.recipe={wanted} is for CPUs; set test.recipe=auto on a GPU")
        return Choice("eager")
    notes = _precision_notes(precision)
    if wanted == "compiled":
        return Choice(wanted, (*notes, *_check_compiled(view)))
    if wanted != "auto":
        return Choice(wanted, notes)
    if view is None or num_views * view[0] * view[1] * view[2] < COMPILE_PAYS:
        return Choice("views", notes)
    # Where group norms read halves, the compiler's code for them is slower than ours.
    if dtype_of(precision) != torch.float32 and norm in GROUP_NORMS:
        return Choice("views", notes)
    fault = compiler_fault()
    if fault is None:
        return Choice("compiled", notes)
    note = f"note: {fault}; the network is not compiled, which would make this test shorter"
    return Choice("views", (*notes, note))


def _check_compiled(view: tuple[int, int, int] | None) -> tuple[str, ...]:
    fault = compiler_fault()
    if fault is not None:
        raise UserError(
            f"test.recipe=compiled: {fault}; install a C++ compiler, or set test.recipe=views"
        )
    if view is None:
        return ("note: test.recipe=compiled compiles anew for every width of these whole frames",)
    return ()


def compiler_fault() -> str | None:
    """Why torch.compile cannot work on this CPU; None where the compiler has been seen to work."""
    # The one that torch takes.
    default = "clang++" if sys.platform == "darwin" else "g++"
    command = shlex.split(os.environ.get("CXX") or default) or [default]
    if shutil.which(command[0]) is None:
        return f"there is no C++ compiler ({command[0]})"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"the C++ compiler lacks Python's headers ({headers / 'Python.h'}, python3-dev)"
    return _fault_of(command, headers)


def _fault_of(command: list[str], headers: Path) -> str | None:
    """Compile and link a few lines, and say what fails."""
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "tried.cpp", Path(folder) / "tried.so"
        source.write_text("#include <Python.h>\n#include <vector>\nstd::vector<int> tried;\n")
        options = [*threads, "-shared", "-fPIC", f"-I{headers}", str(source), "-o", str(library)]
        try:
            done = subprocess.run(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMPILER_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the C++ compiler {command[0]} does not run ({first_line(error)})"
        if done.returncode == 0 and library.exists():
            return None
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    return f"the C++ compiler {command[0]} does not work ({said})"


def _precision_notes(precision: str) -> tuple[str, ...]:
    # A CPU computes tf32 as fp32.
    if precision in ("fp32", "tf32") or (precision == "bf16" and cpu_has_bf16()):
        return ()
    return (
        f"note: this CPU has no instructions for {precision}, which is slower than fp32 on it; "
        "set test.precision=fp32",
    )


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 by instructions of its own (AVX-512 BF16 or AMX)."""
    cpu = torch.cpu
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(cpu, name, lambda: False)()) for name in asked)


def make_ready(
    network: nn.Module, recipe: str, view: tuple[int, int, int], precision: str = "fp32"
) -> torch.memory_format:
    """Change a network into what a recipe computes with: batch norms folded, channels last.

    The compiler has no use for convolutions as views: with weights frozen for 3D ones it is faster.

    Args:
        network: in evaluation mode from here on.
        view: (T, H, W) of a clip that it takes.
        precision: of autocast, within which it is to be called. What autocast would round in every
            pass is rounded once.

    Returns:
        The order in memory that its clips shall have.
    """
    fold_batch_norms(network, view)
    if dtype_of(precision) != torch.float32:
        for module in network.modules():
            if isinstance(module, ROUNDED):
                module.to(dtype_of(precision))
    layout = fastest_format(network)
    if recipe == "views":
        use_views(network)
        work_in_place(network)
    if dtype_of(precision) != torch.float32:
        make_sound(network)
    if recipe != "eager" and any(isinstance(part, nn.Conv3d) for part in network.modules()):
        layout = LAST
    network.to(memory_format=layout)
    return layout


def compiled(measure: Measure) -> Measure:
    """A measure that is compiled for each shape of views when it meets the first of it.

    The network's weights become constants: they must not change any more.

    Raises:
        RunError: of the measure, where compiling fails.
    """
    from torch._inductor import config

    # A module, for its weights are what torch calls frozen.
    program = torch.compile(_Measured(measure), dynamic=False)

    def run(views: Tensor) -> tuple[Tensor, ...]:
        # For this call alone: others in the process may train what they compile.
        with config.patch(freezing=True):
            try:
                found: tuple[Tensor, ...] = program(views)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                line = str(error).strip().splitlines()[0]
                raise RunError(
                    f"the network cannot be compiled here: {line}; set test.recipe=views"
                ) from error
        return found

    return run


class _Measured(nn.Module):
    def __init__(self, measure: Measure) -> None:
        super().__init__()
        self._measure: Callable[[Tensor], tuple[Tensor, ...]] = measure

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """What the measure keeps of views."""
        return self._measure(views)
