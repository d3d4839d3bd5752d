"""The kinds of weight files: how each names, lays out and feeds the tensors of a ResNet.

Which kind a file is of shows in the names and dimensions of its tensors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from videogn.errors import WeightError
from videogn.models.names import (
    CAFFE2,
    DETECTRON2,
    MMACTION2,
    MMDET,
    MMPRETRAIN,
    PLAIN,
    PYTORCHVIDEO,
    SLOWFAST,
    TENSORPACK,
    NameTable,
)
from videogn.models.weights import few

Triple = tuple[float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Input scale of torchvision's and timm's ImageNet weights: RGB in [0, 1]."""

ABSORBED_STD = (1 / 255, 1 / 255, 1 / 255)
"""Of inputs in 0 to 255 less a mean, divided by nothing: the std is within conv1's kernel."""


@dataclass(frozen=True)
class InputScale:
    """What the first kernel of a network takes.

    Attributes:
        mean: RGB in [0, 1].
        std: RGB in [0, 1]; 1/255 where the input is in 0 to 255 and not divided.
        bgr: whether the kernel's channels are blue, green, red.
    """

    mean: Triple
    std: Triple
    bgr: bool = False

    @property
    def absorbed(self) -> bool:
        """Whether a division by the std is within the kernel."""
        return self.std == ABSORBED_STD


IMAGENET = InputScale(IMAGENET_MEAN, IMAGENET_STD)

VIDEO = InputScale((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
"""video-nonlocal-net's 114.75 and 57.375 of 255, which PySlowFast and pytorchvideo kept."""

DETECTRON_BGR = InputScale((122.7717 / 255, 115.9465 / 255, 102.9801 / 255), ABSORBED_STD, bgr=True)
"""Detectron's detectron/core/config.py: PIXEL_MEANS 102.9801, 115.9465, 122.7717 (BGR)."""

DETECTRON2_BGR = InputScale((123.675 / 255, 116.280 / 255, 103.530 / 255), ABSORBED_STD, bgr=True)
"""detectron2's config/defaults.py and mmdetection's configs/gn: 103.530, 116.280, 123.675 (BGR)."""

TENSORPACK_BGR = InputScale(IMAGENET_MEAN, IMAGENET_STD, bgr=True)
"""tensorpack's examples/ResNet/imagenet_utils.py: image_preprocess with bgr=True."""


@dataclass(frozen=True)
class Keys:
    """What detection sees of a file: names, the dimensions of its first kernel, classes.

    Attributes:
        shapes: by the names of the file.
        author: who made the file, where it says so.
    """

    shapes: Mapping[str, tuple[int, ...]]
    author: str | None = None

    def has(self, pattern: str) -> bool:
        """Whether some name matches a regular expression as a whole."""
        return any(re.fullmatch(pattern, name) for name in self.shapes)

    def dims(self, pattern: str) -> int | None:
        """Dimensions, without channels, of the first tensor of such a name."""
        shapes = (shape for name, shape in self.shapes.items() if re.fullmatch(pattern, name))
        shape = next(shapes, None)
        return None if shape is None else len(shape) - 2


@dataclass(frozen=True)
class WeightFormat:
    """One kind of weight file.

    Attributes:
        title: whose files they are.
        names: their names.
        scale: what conv1 takes.
        fits: whether a file is of this kind.
        layout: of 3D weights, the ``LAYOUTS`` key of the network they are of.
        layouts: inflation -> another layout that goes with it.
        prefixes: words that may stand before all names.
        drop: pattern of names that belong to an optimizer or to the parts of a detector.
        channels_last: kernels are (H, W, in, out), the classifier (in, out).
        folds_norms: batch norms without running statistics are folded into scale and shift.
        stride_on_1x1: blocks halve their maps in the first, 1x1 kernel instead of the 3x3 one.
        note: what the weights do not tell.
    """

    title: str
    names: NameTable
    scale: InputScale
    fits: Callable[[Keys], bool]
    layout: str | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    drop: str = "(?!)"
    channels_last: bool = False
    folds_norms: bool = False
    stride_on_1x1: bool = False
    note: str | None = None


CAFFE2_DROP = r".*_momentum|lr|model_iter|epoch|weight_decay(_bn)?|ONE"
DETECTOR_DROP = (
    r"(module\.)?(proposal_generator|roi_heads|sem_seg_head|neck|rpn_head|roi_head|bbox_head"
    r"|mask_head|fpn|backbone\.(fpn|top_block)).*|pixel_(mean|std)"
)
TENSORPACK_DROP = (
    r"learning_rate|global_step|EMA/.*|.*/(Momentum|AccumGrad|ExponentialMovingAverage)|.*_power"
)
CONV1 = {"caffe2": "conv1_w", "slowfast": r"s1\.pathway0_stem\.conv\.weight"}


def _is_caffe2(keys: Keys) -> bool:
    return keys.has(CONV1["caffe2"]) and keys.has(r"res2_0_branch2[ab]_w")


def _is_nonlocal(keys: Keys) -> bool:
    return _is_caffe2(keys) and keys.dims(CONV1["caffe2"]) == 3


def _is_msra(keys: Keys) -> bool:
    # Folded batch norms, as Detectron's converter from Caffe leaves them: no running statistics.
    folded = keys.has(r"res_conv1_bn_s") and not keys.has(r".*_bn_riv")
    return _is_caffe2(keys) and not _is_nonlocal(keys) and folded


def _is_detectron(keys: Keys) -> bool:
    return _is_caffe2(keys) and not _is_nonlocal(keys) and not _is_msra(keys)


def _is_slowfast_in1k(keys: Keys) -> bool:
    """Kernels of one time step and ImageNet's classes: a 2D network in PySlowFast's names."""
    kernels = [shape for shape in keys.shapes.values() if len(shape) == 5]
    classes = keys.shapes.get("head.projection.weight", (0,))[0]
    return bool(kernels) and all(shape[2] == 1 for shape in kernels) and classes == 1000


def _is_detectron2(keys: Keys) -> bool:
    return keys.has(r"(.*\.)?stem\.conv1\.weight") and keys.has(r"(.*\.)?res2\.0\.conv1\.weight")


def _is_mmdet(keys: Keys) -> bool:
    return keys.has(r"(backbone\.)?gn1\.weight")


def _is_torchvision(keys: Keys) -> bool:
    # conv1 may be something else in a kind of ResNet that is refused by its name later.
    return keys.has(r"layer1\.0\.conv1\.weight") and not _is_mmdet(keys)


FORMATS: dict[str, WeightFormat] = {
    "torchvision": WeightFormat(
        "torchvision and timm", PLAIN, IMAGENET, _is_torchvision, layout="nonlocal"
    ),
    # The paper's own weights. Strides are on the 3x3 kernels.
    "detectron": WeightFormat(
        "Detectron (Caffe2)",
        CAFFE2,
        DETECTRON_BGR,
        _is_detectron,
        drop=CAFFE2_DROP,
        folds_norms=True,
        note="taken to be BGR, as all of Detectron's; for video-nonlocal-net's ImageNet weights "
        "give --from nonlocal-in1k",
    ),
    "detectron-msra": WeightFormat(
        "Detectron (Caffe2) with folded batch norms, as MSRA's R-50.pkl",
        CAFFE2,
        DETECTRON_BGR,
        _is_msra,
        drop=CAFFE2_DROP,
        folds_norms=True,
        stride_on_1x1=True,
    ),
    # MSRA's weights that detectron2 has converted are of this kind too, with their strides on the
    # 1x1 kernels; nothing in them tells.
    "detectron2": WeightFormat(
        "detectron2",
        DETECTRON2,
        DETECTRON2_BGR,
        lambda keys: _is_detectron2(keys) and keys.author != "torchvision",
        prefixes=("backbone.bottom_up.", "backbone."),
        drop=DETECTOR_DROP,
        note="taken to have its strides on the 3x3 kernels; weights that came from MSRA's have not",
    ),
    "detectron2-torchvision": WeightFormat(
        "detectron2, converted from torchvision",
        DETECTRON2,
        IMAGENET,
        lambda keys: _is_detectron2(keys) and keys.author == "torchvision",
        prefixes=("backbone.bottom_up.", "backbone."),
    ),
    "tensorpack": WeightFormat(
        "tensorpack",
        TENSORPACK,
        TENSORPACK_BGR,
        lambda keys: keys.has(r"conv0/W(:0)?") and keys.has(r"group0/block0/conv1/W(:0)?"),
        drop=TENSORPACK_DROP,
        channels_last=True,
        note="taken to be padded as PyTorch pads (AlignPadding); the weights do not tell",
    ),
    "mmdet": WeightFormat(
        "mmdetection with group norms", MMDET, DETECTRON2_BGR, _is_mmdet, drop=DETECTOR_DROP
    ),
    # Weights of style="caffe" have these names too, BGR inputs and other strides.
    "mmpretrain": WeightFormat(
        "mmpretrain, mmdetection",
        MMPRETRAIN,
        IMAGENET,
        lambda keys: keys.has(r"backbone\.layer1\.0\.conv1\.weight") and not _is_mmdet(keys),
        drop=DETECTOR_DROP,
        note="taken to be of style='pytorch': RGB, strides on the 3x3 kernels",
    ),
    "slowfast": WeightFormat(
        "PySlowFast",
        SLOWFAST,
        VIDEO,
        lambda keys: keys.has(CONV1["slowfast"]) and not _is_slowfast_in1k(keys),
        layout="zoo",
    ),
    "slowfast-in1k": WeightFormat(
        "PySlowFast's ImageNet weights (R50_IN1K)",
        SLOWFAST,
        IMAGENET,
        lambda keys: keys.has(CONV1["slowfast"]) and _is_slowfast_in1k(keys),
        layout="zoo",
    ),
    "pytorchvideo": WeightFormat(
        "pytorchvideo",
        PYTORCHVIDEO,
        VIDEO,
        lambda keys: keys.has(r"blocks\.0\.conv\.weight") and keys.has(r"blocks\.1\.res_blocks.*"),
        layout="zoo",
    ),
    "mmaction2": WeightFormat(
        "mmaction2",
        MMACTION2,
        IMAGENET,
        lambda keys: keys.has(r"(backbone\.)?conv1\.conv\.weight"),
        layout="mmaction2",
        layouts={"3x1x1_all": "mmaction2_heavy"},
    ),
    # lib/core/config.py: MEAN 114.75, STD 57.375, USE_BGR False.
    "nonlocal": WeightFormat(
        "video-nonlocal-net (Caffe2)",
        CAFFE2,
        VIDEO,
        _is_nonlocal,
        layout="nonlocal",
        drop=CAFFE2_DROP,
        folds_norms=True,
    ),
    # The same names as Detectron's, of other colours: only the user can tell.
    "nonlocal-in1k": WeightFormat(
        "video-nonlocal-net's ImageNet weights (Caffe2)",
        CAFFE2,
        VIDEO,
        lambda keys: False,
        drop=CAFFE2_DROP,
        note="taken to be RGB, as the released code feeds them; their colour order is documented "
        "nowhere",
    ),
    # Found by what a file says of itself, not by its names.
    "videogn": WeightFormat(
        "this program", PYTORCHVIDEO, IMAGENET, lambda keys: False, layout="nonlocal"
    ),
}
"""Name -> kind of weight file."""


def detect_format(where: str, tensors: Mapping[str, Tensor], author: str | None = None) -> str:
    """The key of :data:`FORMATS` that a file's names are of.

    Args:
        where: the file, for messages.
        author: who made the file, where it says so.

    Raises:
        WeightError: none fits, or several do.
    """
    keys = Keys({name: tuple(tensor.shape) for name, tensor in tensors.items()}, author)
    fitting = [name for name, each in FORMATS.items() if each.fits(keys)]
    if len(fitting) == 1:
        return fitting[0]
    names = few(sorted(tensors)) or "nothing"
    if fitting:
        raise WeightError(
            f"{where}: its tensors are named as those of {' and of '.join(fitting)}: {names}; "
            "say which with --from"
        )
    raise WeightError(
        f"{where}: holds no ResNet under names of a known kind, but {names}; "
        f"known are {', '.join(FORMATS)}"
    )


@dataclass(frozen=True)
class PlainTensors:
    """The tensors of a file under plain names and in PyTorch's order of axes.

    Attributes:
        state: plain name -> tensor.
        called: plain name -> name in the file.
        dropped: names in the file of tensors that are not the network's.
        unexpected: names in the file that mean nothing.
    """

    state: dict[str, Tensor]
    called: dict[str, str]
    dropped: tuple[str, ...]
    unexpected: dict[str, Tensor]


def to_plain(where: str, tensors: Mapping[str, Tensor], kind: WeightFormat) -> PlainTensors:
    """Rename the tensors of a file and turn kernels that are stored otherwise.

    Raises:
        WeightError: two tensors have the same plain name.
    """
    state: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    dropped: list[str] = []
    unexpected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = kind.names.to_plain(_bare(name, kind))
        if plain in called:
            raise WeightError(f"{where}: {called[plain]} and {name} are both {plain}")
        if plain is not None:
            state[plain] = _channels_first(tensor) if kind.channels_last else tensor
            called[plain] = name
        elif re.fullmatch(kind.drop, name.removesuffix(":0")):
            dropped.append(name)
        else:
            unexpected[name] = tensor
    return PlainTensors(state, called, tuple(dropped), unexpected)


def _bare(name: str, kind: WeightFormat) -> str:
    """A name without the words around it: a prefix, TensorFlow's ``:0``."""
    prefix = next((prefix for prefix in kind.prefixes if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    return name.removesuffix(":0") if kind.channels_last else name


def _channels_first(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor
