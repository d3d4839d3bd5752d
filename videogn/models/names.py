"""The names that weight files give to the tensors of one and the same ResNet.

Every ResNet here has *plain* names, torchvision's: ``conv1.weight``, ``layer3.2.bn2.weight``,
``layer1.0.downsample.0.weight``, ``fc.bias``, in 2D and 3D alike. A :class:`NameTable` says how
a kind of file writes them, and both directions follow from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

PLAIN_PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Slots = Mapping[str, str]
"""What fills a template: see :func:`_slots`."""


@dataclass(frozen=True)
class NormNames:
    """Templates of the norm layers: behind conv1, in a block, on a shortcut."""

    stem: str
    block: str
    shortcut: str


@dataclass(frozen=True)
class NameTable:
    """How one kind of file names its tensors.

    A template has slots in braces: ``stage`` 1 to 4, ``res`` 2 to 5 and ``group`` 0 to 3 for the
    same four stages, ``video`` their place 1, 3, 4, 5 in pytorchvideo's I3D; ``block`` from 0;
    ``i`` 1 to 3 or ``abc`` a to c for the layer in a block; ``p`` for the parameter.

    Attributes:
        conv1: template of the stem's kernel.
        conv: template of a block's kernels.
        shortcut: template of a shortcut's kernel.
        classifier: template of the last layer.
        bn: templates of batch norms, and of the others where ``gn`` is None.
        gn: templates of the norms without running statistics, where they are named otherwise.
        kernel_parameters: plain parameter -> its name on convolutions and the classifier.
        norm_parameters: plain parameter -> its name on norm layers.
        prefix: stands before the names of everything but the classifier; optional in reading.
        classifiers: further templates of the last layer that are read, never written.
    """

    conv1: str
    conv: str
    shortcut: str
    classifier: str
    bn: NormNames
    gn: NormNames | None = None
    kernel_parameters: Mapping[str, str] = field(
        default_factory=lambda: {"weight": "weight", "bias": "bias"}
    )
    norm_parameters: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in PLAIN_PARAMETERS}
    )
    prefix: str = ""
    classifiers: tuple[str, ...] = ()

    def to_file(self, plain: str, *, batch_norm: bool) -> str:
        """Name in the file of a plain name.

        Raises:
            ValueError: it is no plain name of a ResNet.
        """
        norms = self.bn if batch_norm or self.gn is None else self.gn
        for pattern, template in (
            (r"conv1\.(?P<p>\w+)", self.conv1),
            (r"bn1\.(?P<p>\w+)", norms.stem),
            (r"layer(?P<stage>\d)\.(?P<block>\d+)\.conv(?P<i>\d)\.(?P<p>\w+)", self.conv),
            (r"layer(?P<stage>\d)\.(?P<block>\d+)\.bn(?P<i>\d)\.(?P<p>\w+)", norms.block),
            (r"layer(?P<stage>\d)\.(?P<block>\d+)\.downsample\.0\.(?P<p>\w+)", self.shortcut),
            (r"layer(?P<stage>\d)\.(?P<block>\d+)\.downsample\.1\.(?P<p>\w+)", norms.shortcut),
            (r"fc\.(?P<p>\w+)", self.classifier),
        ):
            if found := re.fullmatch(pattern, plain):
                of_norm = template in (norms.stem, norms.block, norms.shortcut)
                parameters = self.norm_parameters if of_norm else self.kernel_parameters
                slots = _slots(found.groupdict())
                if found["p"] not in parameters:
                    break
                prefix = "" if template == self.classifier else self.prefix
                return prefix + template.format(**{**slots, "p": parameters[found["p"]]})
        raise ValueError(f"no name for {plain!r}")

    def to_plain(self, name: str) -> str | None:
        """Plain name of a tensor of such a file; None where it is none of a ResNet's."""
        name = name.removeprefix(self.prefix)
        for pattern, plain, parameters in self._patterns:
            if found := pattern.fullmatch(name):
                slots = found.groupdict()
                parameter = {theirs: ours for ours, theirs in parameters.items()}[slots["p"]]
                return plain.format(**{**_plain_slots(slots), "p": parameter})
        return None

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], str, Mapping[str, str]], ...]:
        kernels, norms = self.kernel_parameters, self.norm_parameters
        rows = [
            (self.conv1, "conv1.{p}", kernels),
            (self.conv, "layer{stage}.{block}.conv{i}.{p}", kernels),
            (self.shortcut, "layer{stage}.{block}.downsample.0.{p}", kernels),
        ]
        for names in (self.bn, *((self.gn,) if self.gn else ())):
            rows += [
                (names.stem, "bn1.{p}", norms),
                (names.block, "layer{stage}.{block}.bn{i}.{p}", norms),
                (names.shortcut, "layer{stage}.{block}.downsample.1.{p}", norms),
            ]
        rows += [(each, "fc.{p}", kernels) for each in (self.classifier, *self.classifiers)]
        return tuple((_pattern(template, ps), plain, ps) for template, plain, ps in rows)


def _slots(found: Slots) -> dict[str, str]:
    """Every way of writing the stage and the layer of a plain name."""
    slots = dict(found)
    if "stage" in found:
        stage = int(found["stage"])
        slots |= {
            "res": str(stage + 1),
            "group": str(stage - 1),
            "video": str(_VIDEO_BLOCKS[stage - 1]) if stage <= 4 else "",
        }
    if "i" in found:
        slots["abc"] = "abc"[int(found["i"]) - 1]
    return slots


def _plain_slots(found: Slots) -> dict[str, str]:
    """The slots of a plain name from those of any file's."""
    slots = {key: found[key] for key in ("stage", "block", "i") if key in found}
    if "res" in found:
        slots["stage"] = str(int(found["res"]) - 1)
    if "group" in found:
        slots["stage"] = str(int(found["group"]) + 1)
    if "video" in found:
        slots["stage"] = str(_VIDEO_BLOCKS.index(int(found["video"])) + 1)
    if "abc" in found:
        slots["i"] = str("abc".index(found["abc"]) + 1)
    return slots


_VIDEO_BLOCKS = (1, 3, 4, 5)
"""Places of res2 to res5 in pytorchvideo's I3D: its block 2 is the temporal pool."""

_SLOT_PATTERNS = {
    "stage": "[1-4]",
    "res": "[2-5]",
    "group": "[0-3]",
    "video": "[1345]",
    "block": r"\d{1,4}",
    "i": "[1-3]",
    "abc": "[abc]",
}


def _pattern(template: str, parameters: Mapping[str, str]) -> re.Pattern[str]:
    """A regular expression that matches what a template makes."""
    slots = _SLOT_PATTERNS | {"p": "|".join(map(re.escape, parameters.values()))}
    words = re.split(r"\{(\w+)\}", template)
    parts = [
        re.escape(word) if place % 2 == 0 else f"(?P<{word}>{slots[word]})"
        for place, word in enumerate(words)
    ]
    return re.compile("".join(parts))


CAFFE2_KERNELS = {"weight": "w", "bias": "b"}
CAFFE2_NORMS = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
"""``riv`` holds the variance, although the name says its inverse."""

PLAIN = NameTable(
    conv1="conv1.{p}",
    conv="layer{stage}.{block}.conv{i}.{p}",
    shortcut="layer{stage}.{block}.downsample.0.{p}",
    classifier="fc.{p}",
    bn=NormNames(
        "bn1.{p}", "layer{stage}.{block}.bn{i}.{p}", "layer{stage}.{block}.downsample.1.{p}"
    ),
)
"""torchvision and timm."""

PYTORCHVIDEO = NameTable(
    conv1="blocks.0.conv.{p}",
    conv="blocks.{video}.res_blocks.{block}.branch2.conv_{abc}.{p}",
    shortcut="blocks.{video}.res_blocks.{block}.branch1_conv.{p}",
    classifier="blocks.6.proj.{p}",
    bn=NormNames(
        "blocks.0.norm.{p}",
        "blocks.{video}.res_blocks.{block}.branch2.norm_{abc}.{p}",
        "blocks.{video}.res_blocks.{block}.branch1_norm.{p}",
    ),
    # Networks of fewer stages, which pytorchvideo does not have, end earlier.
    classifiers=("blocks.5.proj.{p}", "blocks.4.proj.{p}", "blocks.3.proj.{p}"),
)
"""pytorchvideo's I3D, and this package's own."""

SLOWFAST = NameTable(
    conv1="s1.pathway0_stem.conv.{p}",
    conv="s{res}.pathway0_res{block}.branch2.{abc}.{p}",
    shortcut="s{res}.pathway0_res{block}.branch1.{p}",
    classifier="head.projection.{p}",
    bn=NormNames(
        "s1.pathway0_stem.bn.{p}",
        "s{res}.pathway0_res{block}.branch2.{abc}_bn.{p}",
        "s{res}.pathway0_res{block}.branch1_bn.{p}",
    ),
)
"""PySlowFast."""

MMACTION2 = NameTable(
    conv1="conv1.conv.{p}",
    conv="layer{stage}.{block}.conv{i}.conv.{p}",
    shortcut="layer{stage}.{block}.downsample.conv.{p}",
    classifier="cls_head.fc_cls.{p}",
    bn=NormNames(
        "conv1.bn.{p}",
        "layer{stage}.{block}.conv{i}.bn.{p}",
        "layer{stage}.{block}.downsample.bn.{p}",
    ),
    gn=NormNames(
        "conv1.gn.{p}",
        "layer{stage}.{block}.conv{i}.gn.{p}",
        "layer{stage}.{block}.downsample.gn.{p}",
    ),
    prefix="backbone.",
)
"""mmaction2's ResNet3d, whose norms are named after their kind."""

CAFFE2 = NameTable(
    conv1="conv1_{p}",
    conv="res{res}_{block}_branch2{abc}_{p}",
    shortcut="res{res}_{block}_branch1_{p}",
    classifier="pred_{p}",
    bn=NormNames(
        "res_conv1_bn_{p}",
        "res{res}_{block}_branch2{abc}_bn_{p}",
        "res{res}_{block}_branch1_bn_{p}",
    ),
    gn=NormNames(
        "conv1_gn_{p}", "res{res}_{block}_branch2{abc}_gn_{p}", "res{res}_{block}_branch1_gn_{p}"
    ),
    kernel_parameters=CAFFE2_KERNELS,
    norm_parameters=CAFFE2_NORMS,
    classifiers=("fc1000_{p}",),
)
"""Detectron's 2D and video-nonlocal-net's 3D blobs."""

DETECTRON2 = NameTable(
    conv1="stem.conv1.{p}",
    conv="res{res}.{block}.conv{i}.{p}",
    shortcut="res{res}.{block}.shortcut.{p}",
    classifier="linear.{p}",
    bn=NormNames(
        "stem.conv1.norm.{p}",
        "res{res}.{block}.conv{i}.norm.{p}",
        "res{res}.{block}.shortcut.norm.{p}",
    ),
    # Its tools/convert-torchvision-to-d2.py puts all but the stages behind "stem.".
    classifiers=("stem.fc.{p}",),
)
"""detectron2's ResNet."""

TENSORPACK = NameTable(
    conv1="conv0/{p}",
    conv="group{group}/block{block}/conv{i}/{p}",
    shortcut="group{group}/block{block}/convshortcut/{p}",
    classifier="linear/{p}",
    bn=NormNames(
        "conv0/bn/{p}",
        "group{group}/block{block}/conv{i}/bn/{p}",
        "group{group}/block{block}/convshortcut/bn/{p}",
    ),
    gn=NormNames(
        "conv0/gn/{p}",
        "group{group}/block{block}/conv{i}/gn/{p}",
        "group{group}/block{block}/convshortcut/gn/{p}",
    ),
    kernel_parameters={"weight": "W", "bias": "b"},
    norm_parameters={
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "mean/EMA",
        "running_var": "variance/EMA",
    },
)
"""tensorpack's ResNet, in examples/ResNet and in GroupNorm-reproduce's TensorFlow part."""

MMDET = NameTable(
    conv1="conv1.{p}",
    conv="layer{stage}.{block}.conv{i}.{p}",
    shortcut="layer{stage}.{block}.downsample.0.{p}",
    classifier="head.fc.{p}",
    bn=NormNames(
        "bn1.{p}", "layer{stage}.{block}.bn{i}.{p}", "layer{stage}.{block}.downsample.1.{p}"
    ),
    gn=NormNames(
        "gn1.{p}", "layer{stage}.{block}.gn{i}.{p}", "layer{stage}.{block}.downsample.1.{p}"
    ),
    prefix="backbone.",
    classifiers=("fc.{p}",),
)
"""The 2D ResNet of mmdetection, whose group norms are named after their kind."""

MMPRETRAIN = NameTable(
    conv1="backbone.conv1.{p}",
    conv="backbone.layer{stage}.{block}.conv{i}.{p}",
    shortcut="backbone.layer{stage}.{block}.downsample.0.{p}",
    classifier="head.fc.{p}",
    bn=NormNames(
        "backbone.bn1.{p}",
        "backbone.layer{stage}.{block}.bn{i}.{p}",
        "backbone.layer{stage}.{block}.downsample.1.{p}",
    ),
    classifiers=("backbone.fc.{p}",),
)
"""The same with batch norms, and any ResNet of torchvision's names that is called a backbone."""
