import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from videogn.engine.evaluator import class_scores
from videogn.engine.pass_size import PassSize, make_pass_size
from videogn.models.i3d import i3d

VIEW = (4, 8, 8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))
def test_every_view_is_in_one_pass_that_fits(num_views: int, unit: int, fitting: int) -> None:
    sizes = PassSize(None, fitting * unit, lambda view: unit)
    spans = sizes.spans(num_views, VIEW)
    assert [view for first, stop in spans for view in range(first, stop)] == list(range(num_views))
    assert max(stop - first for first, stop in spans) <= max(1, fitting)
    # As few passes as there can be, and as even.
    assert len(spans) == -(-num_views // max(1, fitting))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_a_pass_has_no_more_pixels_than_is_good(num_views: int, most: int, fitting: int) -> None:
    pixels = math.prod(VIEW)
    sizes = PassSize(None, fitting, lambda view: 1, most_pixels=most * pixels + pixels // 2)
    spans = sizes.spans(num_views, VIEW)
    assert max(stop - first for first, stop in spans) <= min(most, fitting)
    assert len(spans) == -(-num_views // min(most, fitting))
    assert (
        len(PassSize(None, 99, lambda view: 1, most_pixels=1).spans(num_views, VIEW)) == num_views
    )


def test_what_was_too_large_is_halved_whatever_the_room() -> None:
    sizes = PassSize(None, 10**6, lambda view: 1, most_pixels=8 * math.prod(VIEW))
    for expected in (8, 4, 2, 1):
        spans = sizes.spans(16, VIEW)
        assert spans[0] == (0, expected)
        assert sizes.shrink() is (expected > 1)


def test_a_cpus_passes_grow_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of 32 x 256 x 256 is two mebipixels; a GPU takes all that its memory holds."""
    for threads, expected in ((1, 10), (2, 10), (4, 5), (20, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        sizes = make_pass_size(
            nn.Identity(),
            lambda network: lambda views: (views.mean(),),
            fixed=None,
            precision="fp32",
            device=torch.device("cpu"),
            sharing=1,
        )
        assert len(sizes.spans(10, (32, 256, 256))) == expected


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_given_size_is_kept(num_views: int, fixed: int) -> None:
    spans = PassSize(fixed, 0, lambda view: 1).spans(num_views, VIEW)
    assert [stop - first for first, stop in spans[:-1]] == [fixed] * (len(spans) - 1)
    assert spans[-1][1] == num_views


def test_the_probe_is_asked_once_and_bytes_grow_with_the_pixels() -> None:
    asked = []

    def probe(view: tuple[int, int, int]) -> int:
        asked.append(view)
        return 100

    sizes = PassSize(None, 1000, probe)
    assert len(sizes.spans(10, VIEW)) == 1
    assert len(sizes.spans(10, (4, 16, 16))) == 5
    assert asked == [VIEW]
    assert sizes.shrink()  # to half of two views of 400 bytes
    assert [last - first for first, last in sizes.spans(10, VIEW)] == [4, 4, 2]


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_the_probe_finds_what_the_tensors_of_a_pass_take(norm: str) -> None:
    """Against sums over the layers' outputs: more than any two, less than all of them."""
    network = i3d(norm=norm, width=8, channels_per_group=4, depths=(1, 1, 1, 1), num_classes=3)
    network.eval()
    outputs: list[int] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, i, out: outputs.append(4 * out.numel()))
    view = (16, 64, 64)
    with torch.inference_mode():
        network(torch.zeros(1, 3, *view))
    found: list[int] = []

    def measure_of(probed: nn.Module):
        assert next(probed.parameters()).device.type == "meta"
        return class_scores(probed)

    sizes = make_pass_size(
        network,
        measure_of,
        fixed=None,
        precision="fp32",
        device=torch.device("cpu"),
        sharing=1,
    )
    original = sizes._probe
    sizes._probe = lambda shape: found.append(original(shape)) or found[0]
    sizes.spans(3, view)
    two_largest = sum(sorted(outputs)[-2:])
    assert two_largest <= found[0] < sum(outputs)
    assert next(network.parameters()).device.type == "cpu"
