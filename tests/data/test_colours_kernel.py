"""The kernel that makes images of planes, in Triton's interpreter, beside torch's operations."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videogn.data import colours, frames
from videogn.data.frames import MATRICES, Form
from videogn.data.rgb import CHROMA_STEPS, Box

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted():
    """The kernel's module as the interpreter runs it, whatever else imported it before."""
    path = Path(colours.__file__).with_name("colours_triton.py")
    spec = importlib.util.spec_from_file_location("interpreted_colours", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
        yield module


def form_of(draw) -> Form:
    height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    size = draw(st.sampled_from([(height, width), (24, 24), (31, 17), (9, 50)]))
    kept = None
    if min(size) > 5 and draw(st.booleans()):
        kept = Box(2, 3, size[0] - 4, size[1] - 5)
    return Form(
        pixels=draw(st.sampled_from(sorted(CHROMA_STEPS))),
        num_frames=draw(st.integers(1, 3)),
        height=height,
        width=width,
        quarters=0,
        matrix=draw(st.sampled_from(sorted(MATRICES))),
        full_range=draw(st.booleans()),
        size=size,
        kept=kept,
        mirror=draw(st.booleans()),
    )


def check(form: Form, kernels, device: str) -> None:
    generator = torch.Generator().manual_seed(form.height)
    shape = form.num_frames, form.frame_bytes
    samples = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    expected = frames._finished(samples, form).permute(0, 2, 3, 1)
    found = colours.finish(samples.to(device), frames._conversion(form), kernels).cpu()
    assert found.shape == expected.shape
    # Sums in another order may round to the level beside.
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@settings(max_examples=25)
@given(st.data())
def test_images_are_those_of_torchs_operations(interpreted, data) -> None:
    check(form_of(data.draw), interpreted, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(st.data())
def test_images_on_a_gpu_are_those_of_torchs_operations(data) -> None:
    kernels = colours.kernels_for(torch.device("cuda", 0))
    assert kernels is not None
    check(form_of(data.draw), kernels, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("side", [180, 224, 256])
def test_a_real_clip_on_a_gpu(side) -> None:
    form = Form("yuv420p", 32, side, side, 0, 1, False, (224, 224), None, True)
    check(form, colours.kernels_for(torch.device("cuda", 0)), "cuda")


def test_a_machine_that_cannot_compile_does_without(monkeypatch, caplog) -> None:
    def fail(name: str):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(colours.importlib, "import_module", fail)
    assert colours.kernels_for(torch.device("cpu")) is None
    assert not caplog.records
    assert colours._tried.__wrapped__(torch.device("cpu")) is None
    assert "torch's own operations: Failed to find C compiler." in caplog.text


def clips_of(layout: str, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, 3, T, H, W) random uint8 clips, colours first or last in memory."""
    generator = torch.Generator().manual_seed(sum(shape))
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clips.contiguous(memory_format=LAYOUTS[layout])


LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last_3d}
MEAN, STD = (0.45, 0.4, 0.35), (0.225, 0.25, 0.2)


def check_normalized(layouts, shape, dtype, kernels, device: str) -> None:
    given, wanted = layouts
    clips, layout = clips_of(given, shape), LAYOUTS[wanted]
    scale = [1 / (255 * s) for s in STD]
    shift = [-m / s for m, s in zip(MEAN, STD, strict=True)]
    found = torch.full(shape, torch.nan, dtype=dtype, device=device).to(memory_format=layout)
    assert colours.normalized(clips.to(device), scale, shift, found, kernels)
    values = (clips.double() / 255).movedim(1, 4)
    expected = ((values - torch.tensor(MEAN).double()) / torch.tensor(STD).double()).movedim(4, 1)
    bound = 2e-6 if dtype is torch.float32 else 2**-7
    assert (found.cpu().double() - expected).abs().max() < bound


PAIRS = [(given, wanted) for given in LAYOUTS for wanted in LAYOUTS]


@pytest.mark.parametrize("layouts", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_input_is_that_of_the_formula(interpreted, layouts, dtype) -> None:
    check_normalized(layouts, (2, 3, 5, 11, 13), dtype, interpreted, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layouts", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (2, 3, 5, 11, 13), (8, 3, 32, 224, 224)])
def test_input_on_a_gpu_is_that_of_the_formula(layouts, dtype, shape) -> None:
    kernels = colours.kernels_for(torch.device("cuda", 0))
    check_normalized(layouts, shape, dtype, kernels, "cuda")


def test_clips_with_gaps_are_left_to_torch(interpreted) -> None:
    cut = clips_of("last", (2, 3, 4, 8, 8))[..., 2:6]
    ones, out = [1.0] * 3, torch.zeros(cut.shape)
    assert colours.strides_of(cut) is None
    assert not colours.normalized(cut, ones, ones, out, interpreted)
    assert not out.any()


def test_frames_and_clips_go_through_the_kernels(interpreted, monkeypatch) -> None:
    """All that use them get the same from either way; turned frames are left to torch."""
    from videogn.data import transforms

    form = Form("yuv420p", 3, 20, 24, 0, 1, False, (16, 20), Box(2, 1, 12, 14), True)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 256, (form.num_bytes,), dtype=torch.uint8, generator=generator)
    turned = form._replace(quarters=1, size=(20, 16), kept=None)

    def results():
        for one in (form, turned):
            images = frames.Frames(one, samples).rgb()
            yield images
            yield transforms.normalize(images[None], MEAN, STD)

    expected = list(results())
    for module in (frames, transforms):
        monkeypatch.setattr(module, "kernels_for", lambda device: interpreted)
    for ours, theirs, bound in zip(results(), expected, (1, 0.03, 0, 2e-6), strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs.double()).abs().max() <= bound
