"""Fused group and batch norm beside plain formulas in float64, whose gradients autograd takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from videogn.models.kernels import norm, norm_operators, tiling
from videogn.models.kernels.norm import batch_norm, batch_norm_statistics, group_norm

# Of the interpreter of Triton 3.6.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

LAST = torch.channels_last_3d
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of one rounding."""


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...] = (2, 12, 2, 3, 5)
    num_groups: int = 3
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    residual: bool = True
    relu: bool = True
    mean: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """Inputs of one layer and the gradient of its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    grad: Tensor


def draw(case: Case, device: torch.device) -> Layer:
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def laid_out(values: Tensor) -> Tensor:
        values = values.to(device, case.dtype)
        if not case.channels_last:
            return values
        return values.contiguous(memory_format=LAST if values.ndim == 5 else torch.channels_last)

    channels = case.shape[1]
    return Layer(
        laid_out(normal(*case.shape) + case.mean).requires_grad_(),
        (normal(channels) + 1).to(device).requires_grad_(),
        normal(channels).to(device).requires_grad_(),
        laid_out(normal(*case.shape)).requires_grad_() if case.residual else None,
        laid_out(normal(*case.shape)),
    )


def in_float64(layer: Layer) -> Layer:
    def wide(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().double().requires_grad_()

    return Layer(*map(wide, (layer.x, layer.weight, layer.bias, layer.residual, layer.grad)))


def run(layer: Layer, function: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of x, weight, bias and the residual."""
    inputs = [layer.x, layer.weight, layer.bias]
    if layer.residual is not None:
        inputs.append(layer.residual)
    y = function(layer.x, layer.weight, layer.bias, residual=layer.residual)
    return y, list(torch.autograd.grad(y, inputs, layer.grad.detach()))


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    axes: Callable[[Tensor], Tensor],
    mask: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    """The layer by its formula; ``axes`` brings what shares statistics into the last axis.

    With a mask in place of ReLU: where a value is within rounding of 0, both sides are right.
    """
    values = axes(x)
    mean = values.mean(-1, keepdim=True)
    var = (values - mean).square().mean(-1, keepdim=True)
    normal = (values - mean) / (var + eps).sqrt()
    # The same view of an index tensor says where each value came from.
    places = axes(torch.arange(x.numel(), device=x.device).view(x.shape)).reshape(-1)
    back = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    back = back.index_copy(0, places, normal.reshape(-1)).view(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    y = back * weight.view(shape) + bias.view(shape)
    if residual is not None:
        y = y + residual
    return y if mask is None else y * mask


def by_group(num_groups: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.reshape(x.shape[0], num_groups, -1)


def by_channel(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def check(case: Case, device: torch.device, *, eps: float = 1e-5) -> None:
    layer = draw(case, device)
    fused = partial(group_norm, num_groups=case.num_groups, eps=eps, relu=case.relu)
    y, grads = run(layer, fused)
    assert y.dtype == case.dtype
    assert y.stride() == layer.x.stride()
    compare(case, layer, y, grads, by_group(case.num_groups), eps)


def compare(
    case: Case,
    layer: Layer,
    y: Tensor,
    grads: list[Tensor],
    axes: Callable[[Tensor], Tensor],
    eps: float,
) -> None:
    """Within a few roundings of x's dtype, and of float32's relative to the statistics.

    A mean m of values with a spread of 1 is known in float32 to m * 2^-24, which moves every
    normalised value as much.
    """
    reference = partial(plain, axes=axes, eps=eps)
    mask = (y > 0).double() if case.relu else None
    wanted, wanted_grads = run(in_float64(layer), partial(reference, mask=mask))
    spread = axes(layer.x.detach().double()).std(-1, correction=0).min().item()
    small = 1 / (spread**2 + eps) ** 0.5
    inner = 40 * ROUNDING[torch.float32] * (1 + abs(case.mean) * small)
    if case.relu:
        linear, _ = run(in_float64(layer), partial(reference, mask=None))
        # Whoever is on the wrong side of 0 is so by rounding alone.
        wrong = (linear > 0) != (y > 0)
        size = linear.abs().max().item()
        assert linear[wrong].abs().max().item() <= inner * size if wrong.any() else True
    for name, ours, theirs in zip(
        ("y", "x", "weight", "bias", "residual"), (y, *grads), (wanted, *wanted_grads), strict=False
    ):
        rounding = 2 * ROUNDING[ours.dtype]
        scale = theirs.abs().max().item()
        if name == "x":
            # What cancels in the gradient of x was rounded at its full size.
            scale = max(scale, (small * layer.grad.abs().max() * layer.weight.abs().max()).item())
        if name in ("weight", "bias"):
            scale = max(scale, layer.grad.abs().double().sum().item() / layer.x.shape[1])
        error = (ours.double() - theirs).abs().max().item()
        assert error <= (rounding + inner) * scale + 1e-7, (name, error, scale, case)


@st.composite
def cases(draw_from: st.DrawFn) -> Case:
    samples, num_groups, per_group = (draw_from(st.integers(1, top)) for top in (3, 4, 7))
    spatial = draw_from(
        st.one_of(
            st.tuples(*[st.integers(1, 4)] * 3),
            st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.tuples(st.just(3), st.just(11), st.just(13)),
        )
    )
    return Case(
        (samples, num_groups * per_group, *spatial),
        num_groups,
        draw_from(st.sampled_from(list(ROUNDING))),
        *(draw_from(st.booleans()) for _ in range(3)),
        draw_from(st.sampled_from([0.0, 100.0])),
        draw_from(st.integers(0, 99)),
    )


EXAMPLES = settings(
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@EXAMPLES
@given(case=cases())
def test_group_norm_is_its_formula(device: torch.device, case: Case) -> None:
    if case.dtype != torch.float32:
        # A mean of 100 leaves nothing of a spread of 1 in bfloat16.
        case = replace(case, mean=case.mean / 100)
    # One value in a group has a spread of 0, and is divided by the root of eps.
    check(case, device, eps=1e-2)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Tiles so small that small tensors take every path: several splits, whole and partial."""
    if device.type == "cpu":
        for name, value in {
            "_TILE_BYTES": 128,
            "_STATS_TILE_BYTES": 64,
            "_STATS_PROGRAMS": 12,
            "_SUMS_PROGRAMS": 12,
            "_MAP_PROGRAMS": 4,
        }.items():
            monkeypatch.setattr(tiling, name, value)
        monkeypatch.setattr(norm_operators, "_MERGE_BLOCK", 8)
        monkeypatch.setattr(norm_operators, "_MERGE_SPLITS", 2)
        # The module's plans are left as they are.
        monkeypatch.setattr(tiling, "plan", tiling.plan.__wrapped__)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e3, 1e4])
def test_group_norm_of_many_tiles_holds_at_large_means(
    device: torch.device, mean: float, channels_last: bool
) -> None:
    case = Case((1, 4, 3, 13, 11), 2, mean=mean, channels_last=channels_last)
    check(case, device)
    if device.type == "cpu":
        assert tiling.plan(1, 4, 429, channels_last, False, 4).sums.splits > 1


def test_the_mean_and_the_spread_hold_at_large_means(device: torch.device) -> None:
    layer = draw(Case((2, 8, 4, 9, 7), mean=1e4), device)
    mean, rstd = norm.norm_stats(layer.x.detach(), 4, False, 1e-5)
    values = layer.x.detach().double().reshape(2, 4, -1)
    # Half a step of float32 at 1e4 is 4.9e-4.
    torch.testing.assert_close(mean.double(), values.mean(-1), rtol=0, atol=5e-4)
    wanted = (values.var(-1, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "case",
    [
        Case((3, 5, 1, 1, 1), 1, residual=False),
        Case((1, 130, 1, 2, 2), 13, torch.bfloat16),
        Case((2, 8, 5, 31), 4, torch.float16, relu=False),
        Case((2, 1, 2, 2, 3), 1, channels_last=False),
        Case((1, 32, 2, 4, 4), 32, residual=False, relu=False),
    ],
    ids=str,
)
def test_group_norm_of_odd_shapes(device: torch.device, case: Case) -> None:
    check(case, device, eps=1e-2)


def torch_layer(device: torch.device, channels: int, training: bool) -> nn.BatchNorm3d:
    layer = nn.BatchNorm3d(channels).to(device).train(training)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_batch_norm_is_torchs_layer(
    device: torch.device, channels_last: bool, training: bool
) -> None:
    layer = draw(Case((3, 6, 2, 5, 7), channels_last=channels_last, mean=3), device)
    twin = torch_layer(device, 6, training).double()
    means, variances = twin.running_mean.float(), twin.running_var.float()
    y, grads = run(
        layer,
        partial(
            batch_norm, running_mean=means, running_var=variances, training=training, relu=True
        ),
    )
    wide = in_float64(layer)
    twin.weight, twin.bias = nn.Parameter(wide.weight), nn.Parameter(wide.bias)
    wanted = (twin(wide.x) + wide.residual) * (y > 0)
    wanted_grads = torch.autograd.grad(
        wanted, (wide.x, twin.weight, twin.bias, wide.residual), wide.grad
    )
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(means.double(), twin.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variances.double(), twin.running_var, rtol=1e-6, atol=1e-6)


def test_the_stored_variance_of_channels_that_never_change_is_never_negative(
    device: torch.device,
) -> None:
    x = torch.tensor([0.0, 3.0, 1e4], device=device).view(1, 3, 1, 1, 1).expand(2, 3, 2, 2, 2)
    means, variances = torch.zeros(3, device=device), torch.ones(3, device=device)
    for _ in range(2):
        batch_norm_statistics(x, means, variances, 1.0, 1e-5)
    assert torch.equal(means, x[0, :, 0, 0, 0])
    assert bool((variances >= 0).all())
    assert float(variances.max()) < 1e-9


@pytest.mark.parametrize("residual", [True, False])
def test_results_are_the_same_bits_in_every_run(device: torch.device, residual: bool) -> None:
    case = Case((2, 12, 3, 9, 7), dtype=torch.bfloat16, residual=residual)
    runs = [run(draw(case, device), partial(group_norm, num_groups=3, relu=True)) for _ in "12"]
    for first, second in zip([runs[0][0], *runs[0][1]], [runs[1][0], *runs[1][1]], strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("relu", [True, False])
def test_tensors_with_gaps_and_gradients_without_strides(device: torch.device, relu: bool) -> None:
    wide = draw(Case((2, 12, 2, 3, 5)), device).x.detach()
    weight, bias = torch.ones(6, device=device), torch.zeros(6, device=device)
    for x in (wide[:, ::2], wide[:, :6], wide[:, :6].transpose(2, 4)):
        apart, dense = (v.requires_grad_() for v in (x.detach().clone(), x.contiguous()))
        gap = x.detach().requires_grad_()
        outputs = [group_norm(v, weight, bias, 2, relu=relu) for v in (gap, apart, dense)]
        for values, output in zip((gap, apart, dense), outputs, strict=True):
            torch.testing.assert_close(output, outputs[-1])
            output.sum().backward()
            torch.testing.assert_close(values.grad, values.grad.contiguous())
        torch.testing.assert_close(gap.grad, dense.grad, rtol=1e-4, atol=1e-6)


def test_no_gradient_of_a_residual_is_made_where_none_is_needed(device: torch.device) -> None:
    layer = draw(Case(), device)
    y = group_norm(layer.x, layer.weight, layer.bias, 3, residual=layer.residual.detach())
    grads = torch.autograd.grad(y, (layer.x, layer.weight, layer.bias), layer.grad)
    _, wanted = run(layer, partial(group_norm, num_groups=3))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, wanted[:3], strict=True))
    # Without ReLU the gradient of the residual is the output's itself.
    y = group_norm(layer.x, layer.weight, layer.bias, 3, residual=layer.residual)
    assert torch.equal(torch.autograd.grad(y, layer.residual, layer.grad)[0], layer.grad)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_nan_and_infinity_are_not_hidden(device: torch.device) -> None:
    layer = draw(Case(residual=False), device)
    for bad in (float("nan"), float("inf")):
        x = layer.x.detach().clone()
        x[0, 0, 0, 0, 0] = bad
        y = group_norm(x, layer.weight, layer.bias, 3, relu=True)
        assert y[0, :4].isnan().all()
        assert y[0, 4:].isfinite().all()


def test_an_empty_batch_has_an_empty_output(device: torch.device) -> None:
    x = torch.empty(0, 6, 2, 3, 3, device=device, requires_grad=True)
    weight, bias = (torch.ones(6, device=device, requires_grad=True) for _ in "12")
    y = group_norm(x, weight, bias, 2, relu=True)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert not weight.grad.any()
    with pytest.raises(ValueError, match="more than one value"):
        batch_norm(x, weight, bias, None, None, training=True)


def test_autocast_keeps_the_dtype_of_x(device: torch.device) -> None:
    layer = draw(Case(dtype=torch.bfloat16), device)
    with torch.autocast(device.type, torch.bfloat16):
        y, grads = run(layer, partial(group_norm, num_groups=3, relu=True))
    assert y.dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [torch.bfloat16, *[torch.float32] * 2, torch.bfloat16]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own making
@pytest.mark.parametrize(("residual", "relu"), [(True, True), (True, False), (False, True)])
def test_operators_keep_torchs_rules(device: torch.device, residual: bool, relu: bool) -> None:
    layer = draw(Case((1, 4, 1, 2, 3), 2, residual=residual), device)
    mean, rstd = norm.norm_stats(layer.x.detach(), 2, False, 1e-5)
    library.opcheck(norm.norm_stats, (layer.x.detach(), 2, False, 1e-5))
    arguments = (layer.x, mean, rstd, layer.weight, layer.bias, layer.residual, relu, False)
    library.opcheck(norm.norm_act, arguments)


@pytest.mark.parametrize("relu", [True, False])
def test_compiled_in_one_graph_it_is_the_same(device: torch.device, relu: bool) -> None:
    layer = draw(Case(dtype=torch.bfloat16), device)
    fused = partial(group_norm, num_groups=3, relu=relu)
    backend = "aot_eager" if device.type == "cpu" else "inductor"
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    y, grads = run(layer, compiled)
    wanted, wanted_grads = run(layer, fused)
    assert y.stride() == wanted.stride()
    for ours, theirs in zip([y, *grads], [wanted, *wanted_grads], strict=True):
        assert torch.equal(ours, theirs)


class Calls(TorchDispatchMode):
    """Names of the operators of videogn that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "videogn":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


def test_the_activation_alone_is_computed_again(device: torch.device) -> None:
    layer = draw(Case(), device)

    def policy(_context, operator, *_args, **_options):
        again = operator == torch.ops.videogn.norm_act.default
        return CheckpointPolicy.MUST_RECOMPUTE if again else CheckpointPolicy.MUST_SAVE

    def block(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        hidden = group_norm(x, weight, bias, 3, relu=True)
        return group_norm(hidden, weight, bias, 3, residual=residual, relu=True) * 2

    def kept(x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(
            block, x, weight, bias, residual, use_reentrant=False, context_fn=contexts
        )

    with Calls() as calls:
        y, grads = run(layer, kept)
    wanted, wanted_grads = run(
        layer, lambda x, weight, bias, *, residual: block(x, weight, bias, residual)
    )
    for ours, theirs in zip([y, *grads], [wanted, *wanted_grads], strict=True):
        assert torch.equal(ours, theirs)
    assert calls.names.count("norm_stats") == 2
    assert calls.names.count("norm_act") == 4
    assert calls.names.count("norm_act_backward") == 2


def test_meta_tensors_have_shapes_alone() -> None:
    layer = draw(Case(), torch.device("cpu"))
    on_meta = Layer(*(value.detach().to("meta").requires_grad_() for value in vars(layer).values()))
    y, grads = run(on_meta, partial(group_norm, num_groups=3, relu=True))
    assert y.shape == layer.x.shape
    assert y.stride() == layer.x.stride()
    assert [grad.shape for grad in grads] == [
        value.shape for value in (layer.x, layer.weight, layer.bias, layer.residual)
    ]


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x = torch.randn(2, 6, 1, 2, 2, device=device)
    weight, bias = torch.ones(6, device=device), torch.zeros(6, device=device)
    with pytest.raises(ValueError, match="6 channels cannot be shared out to 4 groups"):
        group_norm(x, weight, bias, 4)
    with pytest.raises(ValueError, match=r"weight and bias must be \(6,\)"):
        group_norm(x, weight[:5], bias, 3)
    with pytest.raises(ValueError, match="residual must be"):
        group_norm(x, weight, bias, 3, residual=x[:1])
    with pytest.raises(TypeError, match="must be float32, float16 or bfloat16"):
        group_norm(x.double(), weight, bias, 3)
    with pytest.raises(ValueError, match="running_mean"):
        batch_norm(x, weight, bias, None, None, training=False)
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_norm_statistics(x[:1, :, :, :1, :1], bias.clone(), weight.clone(), 0.1, 1e-5)


def test_a_second_derivative_is_refused(device: torch.device) -> None:
    layer = draw(Case(residual=False), device)
    y = group_norm(layer.x, layer.weight, layer.bias, 3)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.square().sum(), layer.x, create_graph=True)


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not norm.is_available("cpu")
    with pytest.raises(RuntimeError, match="use plain ones there"):
        group_norm(torch.randn(1, 2, 1, 2, 2), torch.ones(2), torch.zeros(2), 1)


def test_devices_that_have_kernels(device: torch.device) -> None:
    assert norm.is_available(device)
    assert norm.is_available(device.type)
    assert not norm.is_available("meta")


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("samples", [1, 2])
def test_more_values_than_32_bits_count(samples: int, channels_last: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    frames, channels, num_groups, side = 34 // samples, 64, 4, 1001
    shape = (samples, channels, frames, side, side)
    memory_format = LAST if channels_last else torch.contiguous_format

    def values() -> Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=memory_format)
        return empty.normal_()

    torch.manual_seed(0)
    x, grad = values().requires_grad_(), values()
    assert x.numel() > 2**31
    weight, bias = (torch.rand(channels, device="cuda").requires_grad_() for _ in "12")
    y = group_norm(x, weight, bias, num_groups, relu=True)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, weight, bias), grad)

    def frame(tensor: Tensor, t: int) -> Tensor:
        return tensor.detach()[:, :, t].double().reshape(samples, num_groups, -1)

    def over_frames(value: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([value(t).sum(-1, keepdim=True) for t in range(frames)]).sum(0)

    size = channels // num_groups * frames * side**2
    per_channel = (samples, num_groups, channels // num_groups, 1)
    scale = weight.detach().double().view(1, num_groups, -1, 1).expand(per_channel)
    shift = bias.detach().double().view(1, num_groups, -1, 1).expand(per_channel)
    mean = over_frames(lambda t: frame(x, t)) / size
    rstd = (over_frames(lambda t: (frame(x, t) - mean).square()) / size + 1e-5).rsqrt()

    def normal(t: int) -> Tensor:
        return (frame(x, t) - mean) * rstd

    def behind(t: int) -> Tensor:
        """The gradient behind ReLU."""
        return frame(grad, t) * (frame(y, t) > 0)

    def channelwise(values: Tensor) -> Tensor:
        return values.view(*per_channel[:3], -1)

    def weighted(t: int) -> Tensor:
        return (channelwise(behind(t)) * scale).reshape(samples, num_groups, -1)

    first = over_frames(weighted) / size
    second = over_frames(lambda t: weighted(t) * normal(t)) / size
    for t in (0, frames // 2, frames - 1):
        wanted = (channelwise(normal(t)) * scale + shift).relu().reshape_as(normal(t))
        torch.testing.assert_close(frame(y, t), wanted, rtol=2**-7, atol=1e-3)
        wanted = rstd * (weighted(t) - first - normal(t) * second)
        torch.testing.assert_close(frame(grad_x, t), wanted, rtol=2**-7, atol=1e-3)
    wanted = over_frames(lambda t: channelwise(behind(t))).sum(0).flatten()
    torch.testing.assert_close(grad_bias.double(), wanted, rtol=1e-4, atol=1)
    wanted = over_frames(lambda t: channelwise(behind(t) * normal(t))).sum(0).flatten()
    torch.testing.assert_close(grad_weight.double(), wanted, rtol=1e-4, atol=1)


@pytest.mark.gpu
def test_a_cuda_graph_replays_it() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    case = Case((2, 64, 4, 28, 28), 32, torch.bfloat16)
    layer, other = (draw(replace(case, seed=seed), torch.device("cuda")) for seed in (0, 1))
    fused = partial(group_norm, num_groups=32, relu=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(layer, fused)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = run(layer, fused)
    with torch.no_grad():
        for name, values in vars(layer).items():
            values.copy_(getattr(other, name))
    graph.replay()
    wanted, wanted_grads = run(other, fused)
    for ours, theirs in zip([y, *grads], [wanted, *wanted_grads], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [((2, 64, 8, 56, 57), 32), ((3, 96, 4, 29, 31), 32), ((2, 2048, 4, 7, 7), 32)],
)
def test_sizes_of_a_network(
    shape: tuple[int, ...], num_groups: int, channels_last: bool, dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for residual in (True, False):
        check(Case(shape, num_groups, dtype, channels_last, residual), torch.device("cuda"))
