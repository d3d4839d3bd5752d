"""configs/imagenet against the paper's tables, written down here once more."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from videogn.commands.setup import spec_of
from videogn.config import Config
from videogn.config_files import load_config
from videogn.engine import image_experiments
from videogn.engine.experiments import Experiment
from videogn.engine.optim import build_optimizer
from videogn.engine.plan import TrainPlan, make_plan
from videogn.engine.report.table8 import settings_of
from videogn.models.build import build_network
from videogn.models.norm import is_norm

FOLDER = Path(__file__).parents[1] / "configs" / "imagenet"
TRAIN_IMAGES = 1_281_167

# Name -> arch, norm, groups, channels per group, images per GPU, the paper's error.
PAPER = {
    "r50_bn_b32": ("resnet50", "bn", None, None, 32, 23.6),
    "r50_bn_b16": ("resnet50", "bn", None, None, 16, 23.7),
    "r50_bn_b8": ("resnet50", "bn", None, None, 8, 24.8),
    "r50_bn_b4": ("resnet50", "bn", None, None, 4, 27.3),
    "r50_bn_b2": ("resnet50", "bn", None, None, 2, 34.7),
    "r50_gn_b32": ("resnet50", "gn", 32, None, 32, 24.1),
    "r50_gn_b16": ("resnet50", "gn", 32, None, 16, 24.2),
    "r50_gn_b8": ("resnet50", "gn", 32, None, 8, 24.0),
    "r50_gn_b4": ("resnet50", "gn", 32, None, 4, 24.2),
    "r50_gn_b2": ("resnet50", "gn", 32, None, 2, 24.1),
    "r50_ln_b32": ("resnet50", "ln", None, None, 32, 25.3),
    "r50_in_b32": ("resnet50", "in", None, None, 32, 28.4),
    "r50_gn_g64_b32": ("resnet50", "gn", 64, None, 32, 24.6),
    "r50_gn_g16_b32": ("resnet50", "gn", 16, None, 32, 24.6),
    "r50_gn_g8_b32": ("resnet50", "gn", 8, None, 32, 24.4),
    "r50_gn_g4_b32": ("resnet50", "gn", 4, None, 32, 24.6),
    "r50_gn_g2_b32": ("resnet50", "gn", 2, None, 32, 24.7),
    "r50_gn_c64_b32": ("resnet50", "gn", None, 64, 32, 24.4),
    "r50_gn_c32_b32": ("resnet50", "gn", None, 32, 32, 24.5),
    "r50_gn_c16_b32": ("resnet50", "gn", None, 16, 32, 24.2),
    "r50_gn_c8_b32": ("resnet50", "gn", None, 8, 32, 24.3),
    "r50_gn_c4_b32": ("resnet50", "gn", None, 4, 32, 24.8),
    "r50_gn_c2_b32": ("resnet50", "gn", None, 2, 32, 25.6),
    "r101_bn_b32": ("resnet101", "bn", None, None, 32, 22.0),
    "r101_gn_b32": ("resnet101", "gn", 32, None, 32, 22.4),
    "r101_bn_b2": ("resnet101", "bn", None, None, 2, 31.9),
    "r101_gn_b2": ("resnet101", "gn", 32, None, 2, 23.0),
    "vgg16_none_b32": ("vgg16", "none", None, None, 32, 29.2),
    "vgg16_bn_b32": ("vgg16", "bn", None, None, 32, 28.0),
    "vgg16_gn_b32": ("vgg16", "gn", 32, None, 32, 27.6),
}
OF_LAYERS = {"resnet50": 53, "resnet101": 104, "vgg16": 13}
"""Norm layers: one for each convolution, those of shortcuts with them."""

# Images per GPU -> batches of an epoch: 1,281,167 images in batches of 8 times as many.
EPOCH = {32: 5005, 16: 10010, 8: 20019, 4: 40037, 2: 80073}

EXPERIMENTS = ("table1", "table2", "table3", "resnet101", "vgg16")


def config_of(name: str) -> Config:
    return load_config(FOLDER / f"{name}.yaml").config


def plan_of(config: Config) -> TrainPlan:
    norm = spec_of(config.model).norm
    return make_plan(config.train, num_videos=TRAIN_IMAGES, world_size=8, norm=norm, of_images=True)


def experiment(name: str) -> Experiment:
    made = getattr(image_experiments, name)()
    assert isinstance(made, Experiment)
    return made


def test_every_cell_has_its_file_and_no_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"base", *PAPER}
    cells = {cell.name for name in EXPERIMENTS for cell in experiment(name).cells}
    assert cells == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_file_is_the_papers_training(name: str) -> None:
    arch, norm, groups, channels, images, error = PAPER[name]
    config = config_of(name)
    train, clip = config.train, config.clip
    assert (config.model.arch, config.model.norm) == (arch, norm)
    assert (config.model.num_classes, config.model.width, config.model.depths) == (1000, None, None)
    assert config.model.dropout == (0.5 if arch == "vgg16" else 0)
    assert (clip.num_frames, clip.short_side_min, clip.crop_size) == (1, 256, 224)
    assert (train.val_clip, clip.augmentation, clip.flip_probability) == ("center", "area", 0.5)
    assert (train.color_jitter, train.lighting, train.rand_augment) == (0.4, 0.1, 0)
    assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (train.momentum, train.weight_decay, train.norm_weight_decay) == (0.9, 1e-4, 1e-4)
    assert (train.schedule, train.warmup_iterations, train.precise_bn_batches) == ("step", 0, 0)
    assert (train.epochs, train.val_epochs, train.accumulation) == (100, 1, 1)

    plan, epoch = plan_of(config), EPOCH[images]
    assert (plan.iterations, plan.val_interval) == (100 * epoch, epoch)
    assert plan.global_batch == 8 * images
    rate = (0.01 if arch == "vgg16" else 0.1) * images / 32
    # The first and the last batch between one drop and the next, by epochs.
    for power, (first, end) in enumerate([(0, 30), (30, 60), (60, 90), (90, 100)]):
        for iteration in (first * epoch, end * epoch - 1):
            assert plan.schedule.at(iteration) == pytest.approx(rate / 10**power)

    with torch.device("meta"):
        layers = [m for m in build_network(spec_of(config.model)).modules() if is_norm(m)]
    assert len(layers) == (0 if norm == "none" else OF_LAYERS[arch])
    if norm in ("gn", "ln", "in"):
        for layer in layers:
            assert isinstance(layer, nn.GroupNorm)
            wanted = {"ln": 1, "in": layer.num_channels, "gn": groups}[norm]
            assert layer.num_groups == (wanted or layer.num_channels // channels)
    else:
        assert all(isinstance(layer, nn.BatchNorm2d) for layer in layers)

    header = (FOLDER / f"{name}.yaml").read_text().partition("_BASE_")[0]
    assert f"videogn pretrain configs/imagenet/{name}.yaml --gpus 8\n" in header
    assert f"8 GPUs, {images} images per GPU." in header
    assert re.search(r"epochs: ([\d.]+) %\.\n", header)[1] == str(error)


def test_the_papers_iterations() -> None:
    plan = plan_of(config_of("r50_gn_b32"))
    assert plan.iterations == 500_500
    assert plan.schedule.milestones == (150_150, 300_300, 450_450)
    assert plan_of(config_of("r50_gn_b2")).iterations == 8_007_300
    for name in PAPER:
        assert not [line for line in plan_of(config_of(name)).lines() if line.startswith("note")]


@pytest.mark.parametrize("name", ["r50_gn_b32", "r50_bn_b2", "vgg16_bn_b32", "vgg16_none_b32"])
def test_every_parameter_is_decayed_alike(name: str) -> None:
    """Biases, gamma and beta with the kernels (section 4.1)."""
    config = config_of(name)
    with torch.device("meta"):
        network = build_network(spec_of(config.model))
    optimizer = build_optimizer(
        network,
        learning_rate=0.1,
        momentum=config.train.momentum,
        weight_decay=config.train.weight_decay,
        norm_weight_decay=config.train.norm_weight_decay,
    )
    decayed = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decayed == {id(p): 1e-4 for p in network.parameters()}
    assert all(group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize("norm", ["bn", "ln", "in", "gn"])
@pytest.mark.parametrize(("arch", "blocks"), [("resnet50", 16), ("resnet101", 33)])
def test_a_network_starts_as_the_paper_says(arch: str, blocks: int, norm: str) -> None:
    model = replace(config_of("r50_gn_b32").model, arch=arch, norm=norm, width=8, num_groups=8)
    torch.manual_seed(0)
    network = build_network(spec_of(model))
    zero = {name for name, p in network.named_parameters() if p.ndim == 1 and not p.any()}
    ones = {name for name, p in network.named_parameters() if p.ndim == 1 and (p == 1).all()}
    last = {name for name in zero if name.endswith("bn3.weight")}
    assert len(last) == blocks
    assert zero - last == {n for n, _ in network.named_parameters() if n.endswith("bias")}
    assert len(ones) == OF_LAYERS[arch] - blocks
    for name, kernel in network.named_parameters():
        if kernel.ndim == 4 and kernel.numel() > 2000:
            fan_out = kernel.shape[0] * kernel.shape[2] * kernel.shape[3]
            assert kernel.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
    strides = {name: m.stride for name, m in network.named_modules() if hasattr(m, "padding")}
    strided = {name for name, stride in strides.items() if stride in ((2, 2), 2)}
    inner = {f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in ("conv2", "downsample.0")}
    assert strided == inner | {"conv1", "maxpool"}


@pytest.mark.parametrize("table", EXPERIMENTS)
def test_a_tables_cells_are_its_files_and_the_papers_numbers(table: str) -> None:
    made = experiment(table)
    assert made.name == table
    assert (made.measure, made.images) == ("error", True)
    assert len({(cell.row, cell.column) for cell in made.cells}) == len(made.cells)
    assert len({cell.name for cell in made.cells}) == len(made.cells)
    for cell in made.cells:
        assert cell.config == f"imagenet/{cell.name}"
        assert cell.published == (PAPER[cell.name][-1],)
        assert cell.overrides == []
        loaded = vars_of(config_of(cell.name))
        # A file's settings fit its own cell, and no other of the table.
        fitting = [other.name for other in made.cells if other.fits(settings_of(loaded))]
        assert fitting == [cell.name]


def vars_of(config: Config) -> dict[str, dict]:
    return {"model": vars(config.model), "train": vars(config.train)}


def test_printed_tables_look_like_the_papers() -> None:
    one, two, three = (experiment(f"table{number}") for number in (1, 2, 3))
    assert (one.rows, one.columns) == (("val error",), ("BN", "LN", "IN", "GN"))
    assert (two.rows, two.columns) == (("BN", "GN"), ("32", "16", "8", "4", "2"))
    assert two.difference == ("GN", "BN")
    assert three.columns == ("64", "32", "16", "8", "4", "2", "1")
    numbers = {row: [c.published[0] for c in three.cells if c.row == row] for row in three.rows}
    assert list(numbers.values()) == [
        [24.6, 24.1, 24.6, 24.4, 24.6, 24.7, 25.3],
        [24.4, 24.5, 24.2, 24.3, 24.8, 25.6, 28.4],
    ]
    # One group is LN and one channel a group is IN: Table 1's trainings and numbers.
    of_one = {cell.name: cell.published for cell in three.cells if cell.column == "1"}
    assert of_one == {c.name: c.published for c in one.cells if c.column in ("LN", "IN")}
