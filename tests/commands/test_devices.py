"""The commands on a GPU and on a CPU: the same tests for both, so that each shows what they do."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from videogn.cli import main
from videogn.commands import run_parts
from videogn.data.dataset import DeviceViews, TestDataset
from videogn.data.list_checks import VideoRecord
from videogn.data.opening import VideoOpener
from videogn.distributed import World
from videogn.engine import trainer
from videogn.engine.evaluator import class_scores
from videogn.engine.meter import memory_in_use
from videogn.engine.pass_size import make_pass_size
from videogn.engine.precise_bn import update_statistics
from videogn.engine.runs import RunFolder, read_log
from videogn.engine.trainer import wrap_for_ranks
from videogn.models import i3d
from videogn.models.norm import make_norm, use_native_sync
from videogn.models.weights import read_weights

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _settings_as_before():
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark)
    yield
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch) -> torch.device:
    """Where the commands compute: they take a GPU where there is one."""
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return torch.device(request.param)


def on_cpu(words: list[str]) -> None:
    """Run a command as where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(words) == 0


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(RunFolder(folder).log) if entry["kind"] == "train"]


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("norm", "precision"),
    [("gn", "fp32"), ("gn", "tf32"), ("gn", "bf16"), ("gn", "fp16"), ("bn", "bf16")],
)
def test_a_few_videos_are_learnt(tiny, device, norm, precision, capsys) -> None:
    few = tiny.folder / "few.txt"
    lines = tiny.train_list.read_text().splitlines()[:4]
    few.write_text("".join(f"{tiny.train_list.parent / line}\n" for line in lines))
    out = tiny.folder / "run"
    words = [f"data.train={few}", "data.val=", "data.allow_outside_root=true", f"out={out}"]
    words += [f"model.norm={norm}", f"train.precision={precision}", "model.dropout=0"]
    words += ["train.iterations=40", "train.log_interval=10", "train.checkpoint_interval=100"]
    words += ["train.base_lr=0.1", "clip.flip_probability=0", "clip.short_side_max=32"]
    assert main(["train", str(tiny.config), *words]) == 0
    losses = losses_of(out)
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0]
    printed = capsys.readouterr().out
    assert "GiB" in printed
    [start] = [entry for entry in read_log(RunFolder(out).log) if entry["kind"] == "start"]
    assert start["device"].startswith(device.type)
    # Shapes never change, so cuDNN may try out what is fastest; and only tf32 rounds.
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
    waits = [entry["data_wait"] for entry in read_log(RunFolder(out).log) if "data_wait" in entry]
    assert all(0 <= wait <= 1 for wait in waits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_percentiles_of_a_layer_are_those_of_what_it_gave(
    tiny, device, precision: str, monkeypatch
) -> None:
    """Where a GPU fuses norms, and would capture the pass."""
    layer, given = "blocks.1.res_blocks.0.branch2.conv_b", []

    def look(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        given.append((output.dtype, output.detach().double().cpu().numpy()))

    def find(network: torch.nn.Module, name: str, form: str = "") -> torch.nn.Module:
        found = real(network, name, form)
        if form:  # the network that trains: layers may have been replaced for it
            found.register_forward_hook(look)
        return found

    real = run_parts.find_layer
    monkeypatch.setattr(run_parts, "find_layer", find)
    out = tiny.folder / "run"
    words = [f"out={out}", "data.val=", "train.iterations=3", f"train.precision={precision}"]
    words += [f"train.percentile_layer={layer}", "train.log_interval=1"]
    assert main(["train", str(tiny.config), *words]) == 0
    entries = [e for e in read_log(RunFolder(out).log) if e["kind"] == "percentiles"]
    assert len(entries) == 3
    # The last steps: a rehearsal and tuning come before.
    for entry, (dtype, values) in zip(entries, given[-3:], strict=True):
        assert dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        expected = np.percentile(values, [1, 20, 80, 99])
        assert entry["values"] == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize(("norm", "precision"), [("gn", "fp32"), ("bn", "bf16"), ("gn", "fp16")])
def test_a_broken_run_goes_on(tiny, device, norm, precision, monkeypatch) -> None:
    """Bit for bit on a CPU. A GPU's sums have no fixed order: there it is close."""
    words = ["train", str(tiny.config), f"model.norm={norm}", f"train.precision={precision}"]
    words += ["train.ema_decay=0.5", "data.num_workers=0"]
    unbroken, broken = tiny.folder / "unbroken", tiny.folder / "broken"
    assert main([*words, f"out={unbroken}"]) == 0
    real_step = trainer.train_step

    def dying_step(run, batches, iteration, *rest):
        if iteration == 5:
            raise KeyboardInterrupt
        return real_step(run, batches, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dying_step)
        assert main([*words, f"out={broken}"]) == 130
    assert read_weights(RunFolder(broken).last).training["iteration"] == 4
    assert main([*words, f"out={broken}"]) == 0
    ours, theirs = (tensors_of(RunFolder(folder).last) for folder in (unbroken, broken))
    assert ours.keys() == theirs.keys()
    same = sum(torch.equal(ours[name], theirs[name]) for name in ours)
    print(f"{device}, {norm}, {precision}: {same} of {len(ours)} tensors are bit-equal")
    for name, tensor in ours.items():
        if device.type == "cpu":
            assert torch.equal(tensor, theirs[name]), name
            continue
        error = (tensor.double() - theirs[name].double()).norm()
        assert error <= (1e-3 if precision == "fp32" else 5e-2) * tensor.double().norm() + 1e-6, (
            name
        )


def test_a_loss_that_is_not_finite_ends_the_run(tiny, device, capsys) -> None:
    out = tiny.folder / "run"
    words = ["train", str(tiny.config), f"out={out}", "train.base_lr=1e30"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "not finite at iteration" in told
    saved = read_weights(RunFolder(out).last)
    number = int(told.split("not finite at iteration ")[1].split(";")[0])
    assert saved.training["iteration"] == number - 1


@pytest.mark.parametrize("pixels", ["cpu", "device"])
@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_scores_are_those_of_a_cpu(tiny, device, norm, pixels) -> None:
    run = tiny.folder / "run"
    on_cpu(["train", str(tiny.config), f"out={run}", f"model.norm={norm}"])
    words = ["test", str(RunFolder(run).config), "--checkpoint", str(run), "test.precision=fp32"]
    on_cpu([*words, "data.pixels=cpu", "--out", str(tiny.folder / "cpu")])
    here = tiny.folder / "here"
    assert main([*words, f"data.pixels={pixels}", "--out", str(here)]) == 0
    found = []
    for folder in (tiny.folder / "cpu", here):
        with np.load(folder / "scores.npz") as file:
            assert file["ok"].all()
            found.append(file["view_logits"].astype(np.float64))
    # Colours that are worked out on the device may be another level by rounding.
    bound = 1e-5 if pixels == "cpu" else 2e-2
    assert np.abs(found[0] - found[1]).max() <= bound * max(1, np.abs(found[0]).max())


def test_bf16_scores_are_near(tiny, device) -> None:
    run = tiny.folder / "run"
    on_cpu(["train", str(tiny.config), f"out={run}"])
    words = ["test", str(RunFolder(run).config), "--checkpoint", str(run)]
    found = []
    for precision in ("fp32", "bf16"):
        out = tiny.folder / precision
        assert main([*words, f"test.precision={precision}", "--out", str(out)]) == 0
        with np.load(out / "scores.npz") as file:
            found.append(file["view_probs"])
        assert json.loads((out / "results.json").read_text())["precision"] == precision
    assert np.abs(found[0] - found[1]).max() < 0.02


@pytest.mark.parametrize("planar", [False, True])
def test_views_are_the_same_on_every_device(tiny, device, planar) -> None:
    paths = sorted((tiny.train_list.parent / "train").iterdir())[:3]
    dataset = TestDataset(
        [VideoRecord(str(path), 0, path.name) for path in paths],
        num_frames=8,
        frame_stride=2,
        num_clips=3,
        num_crops=3,
        protocol="slowfast",
        short_side=48,
        crop_size=48,
        open_video=VideoOpener("pyav", None),
        planar=planar,
    )
    for place in range(3):
        video = dataset.read(place)
        ours, theirs = video.on(device), video.on(torch.device("cpu"))
        assert isinstance(ours, DeviceViews)
        assert ours.frames.device.type == device.type
        for span in ((0, None), (2, 5)):
            difference = ours.stack(*span).cpu().int() - theirs.stack(*span).int()
            assert difference.abs().max() <= (1 if planar else 0)


@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_fill_their_room_and_no_more(device, norm, precision) -> None:
    network = i3d(norm=norm, num_classes=5).eval().to(device)
    sizes = make_pass_size(
        network, class_scores, fixed=None, precision=precision, device=device, sharing=1
    )
    view = (8, 64, 80)
    unit = sizes._probe(view)
    sizes._room_bytes = int(4.5 * unit)
    assert sizes.spans(12, view) == [(0, 4), (4, 8), (8, 12)]
    if device.type == "cpu":
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode(), trainer.autocast(device, precision):
        class_scores(network)(torch.randn(4, 3, *view, device=device))
    # Workspaces of the libraries do not grow with the views; nothing may take much more.
    assert torch.cuda.max_memory_allocated(device) - before <= 1.15 * 4 * unit


def test_precise_statistics_are_those_of_all_clips(device) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU()).to(device).train()
    clips = [torch.randn(2, 3, 2, 5, 5) * (n + 1) for n in range(3)]
    moved = [batch.to(device) for batch in clips]
    assert update_statistics(network, moved, 3, World(0, 1, device), lambda: False)
    weights = {name: t.detach().double().cpu() for name, t in network[0].named_parameters()}
    pixels = torch.cat(clips).double().transpose(1, 4)
    features = pixels @ weights["weight"].flatten(1).T + weights["bias"]
    features = features.flatten(0, -2)
    # A GPU may round the factors of a convolution.
    kwargs = {"rtol": 2e-3, "atol": 2e-3} if device.type == "cuda" else {}
    found = network[1].running_mean.double().cpu(), network[1].running_var.double().cpu()
    torch.testing.assert_close(found[0], features.mean(0), **kwargs)
    torch.testing.assert_close(found[1], features.var(0, correction=0), **kwargs)


def test_synchronised_norms_are_plain_ones_for_one_process(device) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, 3, 3, device=device)
    network, peer = nn.Sequential(make_norm("sync_bn")(4)), make_norm("bn")(4)
    network, peer = network.to(device), peer.to(device)
    assert wrap_for_ranks(network, World(0, 1, device)) is network
    if device.type == "cuda":
        network = use_native_sync(network)
    torch.testing.assert_close(network(x), peer(x))
    torch.testing.assert_close(network[0].running_var, peer.running_var)


def test_memory_in_use_is_told(device) -> None:
    kept = torch.ones(2**22, device=device)
    assert memory_in_use(device) >= kept.nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_compiled_network_learns_what_the_eager_one_does(tiny) -> None:
    """Three steps; compiling takes half a minute, on a CPU longer than it is worth."""
    found = []
    for compiled in ("false", "true"):
        out = tiny.folder / compiled
        words = [f"out={out}", "train.iterations=3", "train.log_interval=1", "data.val="]
        assert main(["train", str(tiny.config), *words, f"train.compile={compiled}"]) == 0
        found.append(losses_of(out))
    for eager, fast in zip(*found, strict=True):
        assert math.isclose(eager, fast, rel_tol=1e-2)
