"""The paper's experiments on ImageNet (section 4.1): top-1 errors in percent.

Tables share trainings: a cell of the same name is the same training in each of them.
"""

from collections.abc import Mapping
from typing import Any

from videogn.engine.experiments import Cell, Experiment

BATCHES = (32, 16, 8, 4, 2)
"""Images per GPU, of eight GPUs."""
BY_BATCH = {"bn": (23.6, 23.7, 24.8, 27.3, 34.7), "gn": (24.1, 24.2, 24.0, 24.2, 24.1)}

NUMBERS = (64, 32, 16, 8, 4, 2, 1)
"""Of Table 3: of groups in its upper half, of channels per group in its lower one."""
BY_GROUPS = (24.6, 24.1, 24.6, 24.4, 24.6, 24.7, 25.3)
BY_CHANNELS = (24.4, 24.5, 24.2, 24.3, 24.8, 25.6, 28.4)

CORNER = "images per GPU"


def table1() -> Experiment:
    """Table 1: norms at 32 images per GPU."""
    errors = {"bn": 23.6, "ln": 25.3, "in": 28.4, "gn": 24.1}
    return Experiment(
        name="table1",
        title="ImageNet validation, ResNet-50, 32 images per GPU: top-1 error (%)",
        corner="norm",
        measure="error",
        images=True,
        cells=tuple(
            _cell(f"r50_{norm}_b32", "val error", norm.upper(), error, _norm(norm))
            for norm, error in errors.items()
        ),
    )


def table2() -> Experiment:
    """Table 2: BN and GN by images per GPU."""
    return Experiment(
        name="table2",
        title="ImageNet validation, ResNet-50, by images per GPU: top-1 error (%)",
        corner=CORNER,
        measure="error",
        images=True,
        cells=tuple(
            _cell(f"r50_{norm}_b{batch}", norm.upper(), str(batch), error, _norm(norm), batch=batch)
            for norm, errors in BY_BATCH.items()
            for batch, error in zip(BATCHES, errors, strict=True)
        ),
        difference=("GN", "BN"),
    )


def table3() -> Experiment:
    """Table 3: GN by its groups, and by the channels of each.

    One group is LN and one channel per group is IN: the paper repeats Table 1's numbers there, and
    so these cells are Table 1's trainings, with ``model.norm=ln`` and ``in``.
    """
    groups = [_by_groups(number, error) for number, error in zip(NUMBERS, BY_GROUPS, strict=True)]
    channels = [
        _by_channels(number, error) for number, error in zip(NUMBERS, BY_CHANNELS, strict=True)
    ]
    return Experiment(
        name="table3",
        title="ImageNet validation, ResNet-50, 32 images per GPU, by group: top-1 error (%)",
        corner="number of groups or channels",
        measure="error",
        images=True,
        cells=(*groups, *channels),
    )


def resnet101() -> Experiment:
    """ResNet-101, in the text of section 4.1."""
    errors = {("bn", 32): 22.0, ("bn", 2): 31.9, ("gn", 32): 22.4, ("gn", 2): 23.0}
    return Experiment(
        name="resnet101",
        title="ImageNet validation, ResNet-101, by images per GPU: top-1 error (%)",
        corner=CORNER,
        measure="error",
        images=True,
        cells=tuple(
            _cell(
                f"r101_{norm}_b{batch}",
                norm.upper(),
                str(batch),
                error,
                _norm(norm),
                arch="resnet101",
                batch=batch,
            )
            for (norm, batch), error in errors.items()
        ),
        difference=("GN", "BN"),
    )


def vgg16() -> Experiment:
    """VGG-16 without norms, with BN and with GN, in Figure 6."""
    errors = {"none": 29.2, "bn": 28.0, "gn": 27.6}
    return Experiment(
        name="vgg16",
        title="ImageNet validation, VGG-16, 32 images per GPU: top-1 error (%)",
        corner="norm",
        measure="error",
        images=True,
        cells=tuple(
            _cell(
                f"vgg16_{norm}_b32",
                "val error",
                norm if norm == "none" else norm.upper(),
                error,
                _norm(norm),
                arch="vgg16",
            )
            for norm, error in errors.items()
        ),
    )


def _by_groups(number: int, error: float) -> Cell:
    row = "groups (1: LN)"
    if number == 1:
        return _cell("r50_ln_b32", row, "1", error, _norm("ln"))
    name = "r50_gn_b32" if number == 32 else f"r50_gn_g{number}_b32"
    return _cell(name, row, str(number), error, _groups(number))


def _by_channels(number: int, error: float) -> Cell:
    row = "channels per group (1: IN)"
    if number == 1:
        return _cell("r50_in_b32", row, "1", error, _norm("in"))
    settings = {"model.norm": "gn", "model.channels_per_group": number}
    return _cell(f"r50_gn_c{number}_b32", row, str(number), error, settings)


def _norm(norm: str) -> Mapping[str, Any]:
    """What identifies a norm; GN has 32 groups where nothing else is said."""
    return _groups(32) if norm == "gn" else {"model.norm": norm}


def _groups(number: int) -> Mapping[str, Any]:
    return {"model.norm": "gn", "model.num_groups": number, "model.channels_per_group": None}


def _cell(
    name: str,
    row: str,
    column: str,
    error: float,
    norm: Mapping[str, Any],
    *,
    arch: str = "resnet50",
    batch: int = 32,
) -> Cell:
    """The training of ``configs/imagenet/NAME.yaml``."""
    return Cell(
        name=name,
        config=f"imagenet/{name}",
        row=row,
        column=column,
        settings={"model.arch": arch, **norm, "train.clips_per_gpu": batch},
        published=(error,),
    )
