"""Table 8 of the paper, and which of its cells a tested network belongs to.

A setting is a leaf of the config that stands in ``results.json``, named as on the command line.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Setting = Callable[[str], Any]
"""Name of a setting -> its value, None where it is not known."""
Percent = tuple[float, float]
"""Top-1 and top-5 accuracy in percent."""


@dataclass(frozen=True)
class Column:
    """Clips as long as ``num_frames`` x ``frame_stride``, and how many a GPU had at a time."""

    num_frames: int
    frame_stride: int
    clips_per_gpu: int


@dataclass(frozen=True)
class Cell:
    """One network of the table."""

    norm: str
    column: Column


COLUMNS = (Column(32, 2, 8), Column(32, 2, 4), Column(64, 1, 4))
NORMS = ("bn", "gn")
PUBLISHED: dict[Cell, Percent] = {
    Cell(norm, column): accuracy
    for norm, accuracies in {
        "bn": ((73.3, 90.7), (72.1, 90.0), (73.3, 90.8)),
        "gn": ((73.0, 90.6), (72.8, 90.6), (74.5, 91.7)),
    }.items()
    for column, accuracy in zip(COLUMNS, accuracies, strict=True)
}

VAL_VIDEOS = 19_761
"""Length of the released validation list of Kinetics-400."""

CLASSES = 400
ARCH = "i3d_r50"
LAYOUTS = ("nonlocal", "nonlocal_paper")
GROUPS = 32

TEST = {
    "test.protocol": ("paper", "the test that the paper describes is paper"),
    "test.num_clips": (10, "the paper takes 10 clips"),
    "test.num_crops": (
        1,
        "the paper's view, which it does not state, is taken for one of whole frames",
    ),
    "test.average": ("prob", "the paper averages softmax scores, prob"),
    "clip.short_side_min": (256, "the paper's short side is 256"),
    "clip.fps": (None, "the paper keeps each video's own frame rate"),
    "data.stream": ("best", "the other numbers are of each file's best video stream"),
}
"""Setting -> the paper's value and a sentence on it."""

RECIPE = {
    "model.layout": (
        "nonlocal",
        "the released network is nonlocal",
    ),
    "train.schedule": ("step", "the paper's schedule has steps"),
    "train.label_smoothing": (0, "the paper has none"),
    "train.mixup_alpha": (0, "the paper has none"),
    "train.cutmix_alpha": (0, "the paper has none"),
    "train.rand_augment": (0, "the paper has none"),
    "train.color_jitter": (0, "the paper has none for video"),
    "train.lighting": (0, "the paper has none for video"),
    "clip.augmentation": ("scale", "the paper's clips are squares at a random short side"),
    "train.clip_norm": (None, "the paper clips no gradients"),
    "train.ema_decay": (None, "the paper averages no weights"),
    "train.freeze": ([], "the paper trains every layer"),
    "train.accumulation": (1, "the paper adds up no batches"),
    "clip.crop_size": (224, "the paper trains on crops of 224"),
}


def cell_of(setting: Setting, weights: object) -> Cell | str:
    """The cell of the table that a network belongs to, or why it belongs to none.

    Args:
        weights: the ``weights`` of ``results.json``: last, best or inflated.
    """
    column = column_of(setting)
    wrong = [*_wrong_network(setting)]
    if column not in COLUMNS:
        frames, stride, clips = map(
            _told, (column.num_frames, column.frame_stride, column.clips_per_gpu)
        )
        wrong.append(
            f"the table has no column of {frames} x {stride} frames, {clips} clips per GPU"
        )
    if weights == "inflated":
        wrong.append("its weights are inflated and were never trained on video")
    return "; ".join(wrong) or Cell(setting("model.norm"), column)


def _wrong_network(setting: Setting) -> Iterator[str]:
    """What makes a network or its task another than the table's."""
    classes, norm = setting("model.num_classes"), setting("model.norm")
    if classes != CLASSES:
        yield f"{_told(classes)} classes, not the {CLASSES} of Kinetics-400"
    if setting("model.arch") != ARCH or setting("model.layout") not in LAYOUTS:
        names = f"{_told(setting('model.arch'))}, layout {_told(setting('model.layout'))}"
        yield f"another network: {names}"
    if norm not in NORMS:
        yield f"its norm is {_told(norm)}, not bn or gn"
    groups = (setting("model.num_groups"), setting("model.channels_per_group"))
    if norm == "gn" and groups != (GROUPS, None):
        yield f"its groups are not the paper's {GROUPS} in each layer"
    if setting("model.width") is not None or setting("model.depths") is not None:
        yield "its width or depth is another"


def column_of(setting: Setting) -> Column:
    """The clips of a run, whether the table has them or not."""
    return Column(
        setting("clip.num_frames"), setting("clip.frame_stride"), setting("train.clips_per_gpu")
    )


def departures(setting: Setting, num_videos: int) -> list[str]:
    """What of a test and a recipe differs from the paper's, a sentence each."""
    found = [
        f"{name} is {_told(setting(name))}; {why}"
        for table in (TEST, RECIPE)
        for name, (value, why) in table.items()
        if setting(name) is not None or value is None
        if not _same(setting(name), value)
    ]
    if num_videos != VAL_VIDEOS:
        found.append(
            f"the list has {num_videos:,} videos; the released validation list has {VAL_VIDEOS:,}, "
            "and the paper's own is not published"
        )
    return found


def _same(value: object, published: object) -> bool:
    return value in ([], ()) if published == [] else value == published


def _told(value: object) -> str:
    return "unknown" if value is None else str(value)


def settings_of(*trees: Mapping[str, Any]) -> Setting:
    """Look settings up in nested configs, in the first that has them."""

    def setting(name: str) -> Any:
        section, _, leaf = name.rpartition(".")
        for tree in trees:
            # Some, such as seed, stand in no section.
            branch = tree.get(section) if section else tree
            if isinstance(branch, Mapping) and leaf in branch:
                return branch[leaf]
        return None

    return setting
