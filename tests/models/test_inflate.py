from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.i3d import i3d
from videogn.models.inflate import TEMPORAL_INITS, inflate_state_dict, source_name
from videogn.models.norm import NORMS
from videogn.models.resnet2d import resnet50
from videogn.models.sources import read_source
from videogn.models.spec import ARCHITECTURES, NetworkSpec, WeightInfo
from videogn.models.weights import write_weights

SPEC = NetworkSpec("i3d_r50", "gn", 8, None, "nonlocal_paper", 5, 8, (2, 2, 2, 2), 0.5)
FULL = NetworkSpec("i3d_r50", "gn", 32, None, "nonlocal_paper", 1000, 64, (3, 4, 6, 3), 0.5)

PEERS = {
    "torchvision bn": ("bn", lambda: torchvision.models.resnet50()),
    "torchvision gn": (
        "gn",
        lambda: torchvision.models.resnet50(norm_layer=partial(nn.GroupNorm, 32)),
    ),
    "timm gn": ("gn", lambda: timm.create_model("resnet50_gn")),
}


def network_2d(spec=SPEC, **changes):
    spec = replace(spec, arch="resnet50", **changes)
    return build_network(spec)


def source_of(network, tmp_path, change=lambda state: None):
    state = network.state_dict()
    change(state)
    torch.save(state, tmp_path / "source.pth")
    return read_source(tmp_path / "source.pth")


@pytest.mark.parametrize("temporal_init", TEMPORAL_INITS)
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_every_tensor_has_the_2d_networks_values(tmp_path, randomise, norm, temporal_init):
    network = randomise(network_2d(norm=norm))
    source = source_of(network, tmp_path)
    state, report = inflate_state_dict(source, replace(SPEC, norm=norm), temporal_init)
    kernels = [name for name, tensor in state.items() if tensor.ndim == 5]
    assert sorted(report.inflated) == [name for name in sorted(kernels) if state[name].shape[2] > 1]
    used = set()
    for name, tensor in state.items():
        flat = source.state[source_name(name)]
        used.add(source_name(name))
        if tensor.ndim != 5:
            assert torch.equal(tensor, flat)
            continue
        steps = tensor.shape[2]
        torch.testing.assert_close(tensor.sum(2), flat)
        for step in range(steps):
            share = 1 / steps if temporal_init == "mean" else float(step == steps // 2)
            torch.testing.assert_close(tensor[:, :, step], flat * share)
    assert used == set(source.state)
    assert set(report.loaded) | set(report.inflated) == set(state)
    assert report.skipped == report.fresh == report.missing == report.unexpected == ()


def test_names_are_one_to_one_on_the_full_network():
    for norm, count in (("gn", 161), ("bn", 320)):
        with torch.device("meta"):
            wanted = i3d(norm=norm).state_dict()
            peer = resnet50(norm=norm).state_dict()
        assert {source_name(name) for name in wanted} == set(peer)
        assert len(wanted) == len(peer) == count
    with pytest.raises(ValueError, match=r"blocks\.2\.weight"):
        source_name("blocks.2.weight")


@pytest.mark.parametrize("peer", PEERS)
def test_full_network_does_on_a_still_clip_what_the_librarys_does_on_the_image(
    tmp_path, randomise, peer
):
    norm, make = PEERS[peer]
    library = randomise(make())
    save_file(library.state_dict(), tmp_path / "source.safetensors")
    spec = replace(FULL, norm=norm)
    state, _ = inflate_state_dict(read_source(tmp_path / "source.safetensors"), spec, "center")
    network = build_network(spec).eval()
    network.load_state_dict(state)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library(image)
        logits = network(image.unsqueeze(2).expand(-1, -1, 8, -1, -1))
    assert expected.std() > 1e-2
    assert (logits - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_mean_inflation_is_exact_too_where_time_is_padded_by_repetition(tmp_path, randomise, norm):
    library = randomise(network_2d(norm=norm))
    spec = replace(SPEC, norm=norm)
    state, _ = inflate_state_dict(source_of(library, tmp_path), spec, "mean")
    network = build_network(spec).eval()
    network.load_state_dict(state)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv3d)):
        repeat_ends(conv)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library.features(image)
        features = network.features(image.unsqueeze(2).expand(-1, -1, 32, -1, -1))
    for step in features.unbind(2):
        assert (step - expected).norm() / expected.norm() < 1e-4


def repeat_ends(conv: nn.Conv3d) -> None:
    """Pad time with the first and last step in place of zeros."""
    steps = conv.padding[0]
    conv.padding = (0, *conv.padding[1:])
    conv.register_forward_pre_hook(
        lambda _, args: nn.functional.pad(args[0], (0, 0, 0, 0, steps, steps), mode="replicate")
    )


def test_a_classifier_of_other_classes_starts_afresh_and_always_the_same(tmp_path, randomise):
    source = source_of(randomise(network_2d()), tmp_path)
    spec = replace(SPEC, num_classes=100)
    state, report = inflate_state_dict(source, spec, "mean")
    again, _ = inflate_state_dict(source, spec, "mean")
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    assert set(report.fresh) == {"blocks.6.proj.weight", "blocks.6.proj.bias"}
    assert report.fresh_classifier
    assert state["blocks.6.proj.weight"].shape == (100, 256)
    assert state["blocks.6.proj.weight"].std().item() == pytest.approx(0.01, rel=0.03)
    assert not state["blocks.6.proj.bias"].any()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_a_source_without_classifier_gets_one(tmp_path):
    source = source_of(network_2d(), tmp_path, lambda s: (s.pop("fc.weight"), s.pop("fc.bias")))
    _, report = inflate_state_dict(source, SPEC, "mean")
    assert report.skipped == ()
    assert report.fresh_classifier


def test_known_class_names_decide_with_the_count(tmp_path):
    names = ("a", "b", "c", "d", "e")
    info = WeightInfo(
        replace(SPEC, arch="resnet50"), names, (0.5,) * 3, (0.5,) * 3, None, None, None
    )
    write_weights(tmp_path / "source", network_2d().state_dict(), info)
    source = read_source(tmp_path / "source")
    for wanted, fresh in ((None, False), (names, False), (names[::-1], True)):
        _, report = inflate_state_dict(source, SPEC, "mean", wanted)
        assert report.fresh_classifier == fresh


def test_batch_counters_may_be_missing(tmp_path):
    def drop(state):
        for name in [name for name in state if name.endswith("num_batches_tracked")]:
            del state[name]

    source = source_of(network_2d(norm="bn"), tmp_path, drop)
    spec = replace(SPEC, norm="bn")
    state, report = inflate_state_dict(source, spec, "mean")
    assert len(report.fresh) == 1 + 8 * 3 + 4
    assert not report.fresh_classifier
    build_network(spec).load_state_dict(state)
    assert {state[name].item() for name in report.fresh} == {0}


@pytest.mark.parametrize(
    ("network", "spec", "message"),
    [
        ({"norm": "bn"}, {}, "ImageNet BN weights cannot be reused for a net of norm gn"),
        ({}, {"norm": "bn"}, "no running statistics, which bn needs.*--norm gn"),
        ({}, {"norm": "none"}, "gamma and beta, for which a net without norms has no place"),
        (
            {"depths": (3, 4, 23, 3)},
            {},
            "depths 3,4,23,3 and 2,2,2,2 is wanted; give --arch i3d_r101 or --depths 3,4,23,3",
        ),
        ({"depths": (2, 2, 4, 2)}, {}, "depths 2,2,4,2 and 2,2,2,2 is wanted; give --depths 2,2,4"),
        ({"width": 16}, {}, "width 16 and 8 is wanted; give --width 16"),
        ({}, {"arch": "resnet50"}, "--arch resnet50: .*choose from i3d_r50, i3d_r101"),
    ],
)
def test_other_networks_are_refused_with_the_remedy(tmp_path, network, spec, message):
    source = source_of(network_2d(**network), tmp_path)
    with pytest.raises(WeightError, match=message):
        inflate_state_dict(source, replace(SPEC, **spec), "mean")


def test_groups_that_the_source_was_not_trained_with_are_refused(tmp_path):
    described = replace(SPEC, arch="resnet50", num_groups=4)
    info = WeightInfo(described, None, (0.5,) * 3, (0.5,) * 3, None, None, None)
    write_weights(tmp_path / "source", network_2d(num_groups=4).state_dict(), info)
    with pytest.raises(WeightError, match="num_groups 4 and 8 is wanted; give --num-groups 4"):
        inflate_state_dict(read_source(tmp_path / "source"), SPEC, "mean")


def test_nothing_is_half_loaded(tmp_path):
    source = source_of(network_2d(), tmp_path)
    state = {name: t for name, t in source.state.items() if name != "bn1.bias"}
    broken = replace(source, state=state | {"layer1.0.se.weight": torch.zeros(1)})
    message = r"1 missing: bn1.bias; 1 unexpected: layer1.0.se.weight; nothing was loaded"
    with pytest.raises(WeightError, match=message):
        inflate_state_dict(broken, SPEC, "mean")


ARCHITECTURES_3D = [name for name, each in ARCHITECTURES.items() if each.family == "i3d"]


@pytest.mark.parametrize("arch", ARCHITECTURES_3D)
def test_every_video_architecture_is_inflated_to_the_2d_function(tmp_path, randomise, arch):
    library = randomise(network_2d())
    spec = replace(SPEC, arch=arch)
    state, report = inflate_state_dict(source_of(library, tmp_path), spec, "center")
    longer = [name for name, t in state.items() if t.ndim == 5 and t.shape[2] > 1]
    assert set(report.inflated) == set(longer)
    assert (len(longer) == 0) == arch.startswith("c2d")
    network = build_network(spec).eval()
    network.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library.features(image)
        features = network.features(image.unsqueeze(2).expand(-1, -1, 16, -1, -1))
    for step in features.unbind(2):
        assert (step - expected).norm() / expected.norm() < 1e-4


FAMILIES = {
    "bn": ("bn", "sync_bn", "frozen_bn"),
    "gn": ("gn", "ln", "in"),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("trained", ["bn", "gn"])
def test_weights_become_norms_of_their_family_and_no_others(tmp_path, trained, norm):
    source = source_of(network_2d(norm=trained), tmp_path)
    spec = replace(SPEC, norm=norm)
    if norm in FAMILIES[trained]:
        state, report = inflate_state_dict(source, spec, "mean")
        build_network(spec).load_state_dict(state)
        assert bool(report.skipped) == (norm == "frozen_bn")  # it counts no batches
        return
    with pytest.raises(WeightError) as error:
        inflate_state_dict(source, spec, "mean")
    assert f"--norm {norm} is wanted" in str(error.value)
    assert f"Give --norm {' or '.join(FAMILIES[trained])}" in str(error.value)


def test_networks_without_norms_are_inflated_to_none_alone(tmp_path):
    source = source_of(network_2d(norm="none"), tmp_path)
    state, _ = inflate_state_dict(source, replace(SPEC, norm="none"), "mean")
    build_network(replace(SPEC, norm="none")).load_state_dict(state)
    with pytest.raises(WeightError, match=r"have no norm layers, and gn has\. Give --norm none"):
        inflate_state_dict(source, SPEC, "mean")


def test_our_own_weights_keep_the_norm_they_were_trained_with(tmp_path):
    described = replace(SPEC, arch="resnet50", norm="ln")
    info = WeightInfo(described, None, (0.5,) * 3, (0.5,) * 3, None, None, None)
    write_weights(tmp_path / "source", network_2d(norm="ln").state_dict(), info)
    source = read_source(tmp_path / "source")
    with pytest.raises(
        WeightError, match="has weights of ln and --norm gn is wanted; it was trained"
    ):
        inflate_state_dict(source, SPEC, "mean")
    inflate_state_dict(source, replace(SPEC, norm="ln"), "mean")


def test_kernels_of_one_time_step_are_inflated_as_2d_ones(tmp_path):
    network = network_2d(norm="bn")
    flat = network.state_dict()
    long = {name: t.unsqueeze(2) if t.ndim == 4 else t for name, t in flat.items()}
    spec = replace(SPEC, norm="bn")
    expected, _ = inflate_state_dict(source_of(network, tmp_path), spec, "mean")
    torch.save(long, tmp_path / "source.pth")
    state, _ = inflate_state_dict(read_source(tmp_path / "source.pth"), spec, "mean")
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_video_network_is_not_inflated(tmp_path):
    info = WeightInfo(SPEC, None, (0.5,) * 3, (0.5,) * 3, None, None, None)
    write_weights(tmp_path / "source", build_network(SPEC).state_dict(), info)
    source = read_source(tmp_path / "source")
    with pytest.raises(WeightError, match="is of i3d_r50, a video network already"):
        inflate_state_dict(source, SPEC, "mean")


def test_an_unknown_temporal_init_is_refused(tmp_path):
    with pytest.raises(WeightError, match=r"'sum'.*mean, center"):
        inflate_state_dict(source_of(network_2d(), tmp_path), SPEC, "sum")
