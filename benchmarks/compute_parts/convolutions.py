"""Section convs: every distinct convolution in each form, timed and compared with float32."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compute_parts.networks import cudnn
from compute_parts.norms import view
from compute_parts.scale import Bench
from compute_parts.shapes import ConvShape, work_of
from compute_parts.timing import Failure, Timer, attempt, free

WRONG = 2e-2
"""Relative error of bf16 results beyond which they are wrong; roundings leave about 4e-3."""
FORMS = {
    "3D contiguous": (torch.contiguous_format, None),
    "3D last": (torch.channels_last_3d, None),
    "2D views": (torch.channels_last_3d, "native"),
}
STEM_FORMS = {
    f"stem {stem}": (torch.channels_last_3d, stem)
    for stem in ("time", "time_padded", "space", "space_padded")
}


@dataclass(frozen=True)
class Case:
    """A convolution's random tensors: x in bf16, the gradient of its output, its weights."""

    shape: ConvShape
    x: Tensor
    grad: Tensor
    weight: Tensor


def measure_convs(bench: Bench, seconds: float) -> None:
    """Milliseconds forward + backward of each distinct convolution of pv32, and of both stems."""
    timer, page = bench.within(seconds), bench.page
    page.title(f"Convolutions, {bench.scale.clips} clips of pv32, bf16: ms forward + backward")
    page.say("Floor: counted FLOPs at the matmul rate. Wrong: forms that differ from float32.")
    page.say()
    page.table("convolution", "times", "floor", *FORMS, "largest error", "wrong")
    totals: dict[str, float] = dict.fromkeys(FORMS, 0.0)
    work = work_of(bench.scale, "pv32", bench.scale.clips, view(bench))
    stems = [shape for shape in work.convs if shape.is_stem]
    plain = sorted((s for s in work.convs if not s.is_stem), key=lambda s: -s.flops * work.convs[s])
    for shape in plain:
        if timer.left() < 0:
            page.row("time is up")
            break
        cells, errors = measure_shape(bench, shape, FORMS)
        for name, cell in cells.items():
            taken = float("nan") if isinstance(cell, Failure) else cell
            totals[name] += taken * work.convs[shape]
        floor = 3e3 * shape.flops / bench.known.get("matmul", float("nan"))
        free()
        page.row(str(shape), work.convs[shape], floor, *cells.values(), *verdict(errors))
    page.row("all of them", sum(work.convs[s] for s in plain), None, *totals.values())
    bench.known |= {f"convs {name}": total for name, total in totals.items()}
    measure_stems(bench, timer, stems[0])


def measure_stems(bench: Bench, timer: Timer, shape: ConvShape) -> None:
    """The stem in its own forms; only the gradient of its weights is asked for."""
    forms = {name: form for name, form in FORMS.items() if name != "2D views"} | STEM_FORMS
    bench.page.title(f"Stem, {shape}: ms forward + backward (weights alone)")
    bench.page.table("form", "ms", "largest error", "wrong")
    for name, form in forms.items():
        if timer.left() < 0:
            bench.page.row("time is up")
            break
        cells, errors = measure_shape(bench, shape, {name: form})
        free()
        bench.page.row(name, cells[name], *verdict(errors))


def verdict(errors: dict[str, float]) -> tuple[float | None, str]:
    # NaN is wrong too.
    wrong = [name for name, error in errors.items() if not error < WRONG]
    return max(errors.values(), default=None), ", ".join(wrong)


def measure_shape(
    bench: Bench, shape: ConvShape, forms: dict[str, Any]
) -> tuple[dict[str, float | Failure], dict[str, float]]:
    """Milliseconds and relative errors of each form of a convolution."""
    case = attempt(lambda: case_of(bench, shape))
    if isinstance(case, Failure):
        return dict.fromkeys(forms, case), {}
    truth = attempt(lambda: reference(case))
    cells: dict[str, float | Failure] = {}
    errors: dict[str, float] = {}
    for name, (memory_format, stem) in forms.items():
        cells[name] = attempt(lambda m=memory_format, s=stem: milliseconds(bench, case, m, s))
        if not isinstance(cells[name], Failure) and not isinstance(truth, Failure):
            found = attempt(lambda m=memory_format, s=stem: results(case, m, s))
            if not isinstance(found, Failure):
                errors[name] = max(map(relative_error, found, truth))
    return cells, errors


def case_of(bench: Bench, shape: ConvShape) -> Case:
    def draw(size: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return torch.randn(size, device=bench.device).mul_(scale).bfloat16()

    module = shape.module()
    fan_in = module.weight[0].numel()
    return Case(
        shape, draw(shape.in_size), draw(shape.out_size), draw(module.weight.shape, fan_in**-0.5)
    )


def form_of(case: Case, memory_format: torch.memory_format, stem: str | None) -> nn.Module:
    convolution = case.shape.module().to(case.x.device)
    convolution.weight.data = case.weight.clone()
    whole = nn.Sequential(convolution)
    if stem is not None:
        from videogn.models.views import use_views

        use_views(whole, stem)
    return whole.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def prepared(
    case: Case, memory_format: torch.memory_format, stem: str | None
) -> tuple[Tensor, Tensor, nn.Module, list[Tensor]]:
    module = form_of(case, memory_format, stem)
    x = case.x.to(memory_format=memory_format)
    inputs = list(module.parameters())
    if not case.shape.is_stem:
        x = x.detach().requires_grad_()
        inputs.append(x)
    return x, case.grad.to(memory_format=memory_format), module, inputs


def milliseconds(
    bench: Bench, case: Case, memory_format: torch.memory_format, stem: str | None
) -> float:
    x, grad, module, inputs = prepared(case, memory_format, stem)
    call = lambda _: torch.autograd.grad(module(x), inputs, grad)  # noqa: E731
    return 1e3 * bench.timer.kernel(call, repeats=7, warm_up=3)


def results(case: Case, memory_format: torch.memory_format, stem: str | None) -> list[Tensor]:
    """Output and gradients."""
    x, grad, module, inputs = prepared(case, memory_format, stem)
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def reference(case: Case) -> list[Tensor]:
    """The same of the same numbers in float32, by contiguous tensors and without TF32."""
    convolution = case.shape.module().to(case.x.device)
    convolution.weight.data = case.weight.float()
    x = case.x.float()
    inputs: list[Tensor] = [convolution.weight]
    if not case.shape.is_stem:
        inputs.append(x.requires_grad_())
    with cudnn(allow_tf32=False):
        y = convolution(x)
        grads = torch.autograd.grad(y, inputs, case.grad.float())
    return [y.detach(), *grads]


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found.float() - truth).norm() / truth.norm())
