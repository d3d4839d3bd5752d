"""The configuration: frozen dataclasses.

They are the truth: every key, type, default and choice stands here and nowhere else.
:mod:`videogn.config_files` reads and checks them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[float, float, float]
PositiveTriple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


def _word(value: object) -> object:
    """``on`` and ``off``, which YAML reads as True and False, as the words that they are."""
    return ("on" if value else "off") if isinstance(value, bool) else value


AutoOnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]

STRICT = ConfigDict(strict=True, extra="forbid")

TIMED_PROTOCOLS = ("slowfast", "pytorchvideo", "pytorchvideo_main")
"""Values of ``test.protocol`` whose clips are counted at 30 frames per second."""

STILL_ARCHS = ("resnet50", "resnet101", "vgg16")
"""Values of ``model.arch`` that are 2D networks."""


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are and how they are read."""

    __pydantic_config__ = STRICT

    train: str = ""
    """Training videos: a list file, a class-folder tree, a Kinetics csv, or another ``format``."""
    val: str = ""
    """Validation videos, measured during training."""
    test: str = ""
    """Videos of the 10-clip test."""
    root: str | None = None
    """Folder that relative paths start at; the list's own folder where null."""
    format: Literal[
        "auto",
        "list",
        "tree",
        "kinetics",
        "slowfast",
        "mmaction2",
        "ucf101",
        "hmdb51",
        "ssv2",
        "table",
        "shards",
    ] = "auto"
    """Layout of the lists; ``auto`` tells it by their content. ``mmaction2`` must be named where
    lines are ``path num_frames label``. HMDB51 is a pattern such as
    ``splits/*_test_split1.txt``: ``train`` takes its training videos, ``val`` and ``test`` its
    test videos."""
    allow_outside_root: bool = False
    """Whether entries may lie outside ``root``, through links, ``..`` or absolute paths. Without
    a root, a list of nothing but absolute paths has their common folder for it."""
    shuffle_buffer: PositiveInt = 1000
    """Samples of tar shards that the next training clip is drawn from; other lists are permuted
    whole."""
    class_names: str | None = None
    """File of class names in label order, one per line, for lists whose labels are numbers."""
    mean: Triple | None = None
    """RGB mean of the input in [0, 1]; where null, the weight file's, else 0.45."""
    std: PositiveTriple | None = None
    """RGB standard deviation in [0, 1]; where null, the weight file's, else 0.225."""
    num_workers: NonNegativeInt | Literal["auto"] = "auto"
    """Decoding processes per GPU; 0 decodes in the training process. ``auto``: the machine's cores
    divided among its GPUs."""
    prefetch: PositiveInt | Literal["auto"] = "auto"
    """Batches that each decoding process reads ahead; ``auto`` by how much the times of a few
    samples differ."""
    read_timeout: PositiveFloat = 300.0
    """Seconds after which a decoding process is killed over the video it is reading, which then
    counts as one that cannot be decoded. Nothing can be done in the training process itself."""
    pixels: Literal["auto", "cpu", "device"] = "auto"
    """Where frames are converted to RGB, scaled and mirrored: by the decoding processes, or, as YUV
    crops, on the device. ``auto``: on a GPU where the crops take no more bytes than the finished
    clip. ``device`` lets them take five times as many, which 720p needs."""
    reader: Literal["pyav", "decord", "torchcodec", "torchcodec_cuda"] = "pyav"
    """Decoder. decord (in a process of its own, for some files crash it) and torchcodec read the
    forms of files they are proven right on (docs/data.md), pyav the others. torchcodec_cuda, its
    decoder on a GPU, is proven on none: pyav reads all unless insisted."""
    insist_on_reader: bool = False
    """Let ``reader`` read every file, also those whose frames it is known to get wrong."""
    index: str = "auto"
    """Packet index that pyav reads by, and others' frame counts are checked against: ``auto`` is
    the one ``videogn data index`` put beside the list, if it is there; else the file of that name.
    Of videos without one, training decodes the stretches it needs and the test the whole file.
    ``never``: no index, and all files whole."""
    stream: Literal["best"] | NonNegativeInt = "best"
    """Which video stream of a file: the one ffmpeg calls best, or its number among the video
    streams, from 0 on, as in ffmpeg's ``v:0``."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network is built and which weights it starts from."""

    __pydantic_config__ = STRICT

    arch: Literal[
        "i3d_r50",
        "i3d_r101",
        "i3d_3x3x3_r50",
        "i3d_3x3x3_r101",
        "i3d_heavy_r50",
        "c2d_r50",
        "c2d_r101",
        "resnet50",
        "resnet101",
        "vgg16",
        "slow_r50",
        "r2plus1d_r50",
        "csn_r101",
        "x3d_xs",
        "x3d_s",
        "x3d_m",
        "x3d_l",
    ] = "i3d_r50"
    """I3D has its first 1x1 kernels inflated, ``3x3x3`` its 3x3 kernels, ``heavy`` the first of
    every block, C2D none; ``resnet`` and ``vgg16`` are 2D networks, on clips of one frame; the
    others are pytorchvideo's."""
    norm: Literal["bn", "frozen_bn", "sync_bn", "gn", "ln", "in", "none"] = "gn"
    """``frozen_bn`` keeps BN's stored statistics, gamma and beta; ``sync_bn`` takes statistics over
    all processes; ``ln`` has one group and ``in`` one channel per group."""
    num_groups: PositiveInt = 32
    """Groups of every GN layer (paper section 4.1)."""
    channels_per_group: PositiveInt | None = None
    """Where given, every GN layer has groups of this many channels instead."""
    layout: Literal[
        "nonlocal", "nonlocal_paper", "zoo", "nonlocal_8x8", "mmaction2", "mmaction2_heavy"
    ] = "nonlocal"
    """``nonlocal``: the released 32x2 network; ``nonlocal_paper``: the printed one; ``zoo``: the
    8x8 network of pytorchvideo and PySlowFast; ``nonlocal_8x8``: the released 8x8 network;
    ``mmaction2`` and ``mmaction2_heavy``: mmaction2's 32x2 networks."""
    num_classes: PositiveInt = 400
    weights: str | None = None
    """File of ``videogn inflate`` or a checkpoint; random where null."""
    width: PositiveInt | None = None
    """Channels of the stem, with which every other layer scales; the network's own where null."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=5)] | None = None
    """Blocks of each stage; the network's own where null."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


@dataclass(frozen=True)
class ClipConfig:
    """What a clip is. Sizes are in pixels."""

    __pydantic_config__ = STRICT

    num_frames: PositiveInt = 32
    frame_stride: PositiveInt = 2
    """From one frame to the next, in frames of the video, or of ``fps`` where given."""
    fps: PositiveFloat | None = None
    """Frames per second that videos are brought to before clips are taken: at each instant the
    frame that is shown then. The zoo's networks have 30; null keeps each video's own, as in the
    paper."""
    short_side_min: PositiveInt = 256
    """Smallest short side in training; the short side in testing."""
    short_side_max: PositiveInt = 320
    crop_size: PositiveInt = 224
    augmentation: Literal["scale", "area"] = "scale"
    """Crops of training. ``scale``: squares at a short side between ``short_side_min`` and
    ``short_side_max``, as the paper has for video; ``area``: 8 to 100 % of the frame's area at an
    aspect of 3:4 to 4:3, scaled to ``crop_size`` bicubically, as the paper has for ImageNet."""
    flip_probability: Fraction = 0.5
    """Chance that a training clip is mirrored left to right; 0 where direction is the class."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe (non-local paper, section 4.1, and its released code)."""

    __pydantic_config__ = STRICT

    clips_per_gpu: PositiveInt = 8
    accumulation: PositiveInt = 1
    """Batches whose gradients are added up before an update. It does not enlarge the batch that BN
    takes its statistics over."""
    base_lr: PositiveFloat = 0.01
    """Learning rate at ``base_batch`` clips; scaled in proportion to clips per GPU x GPUs x
    accumulation."""
    base_batch: PositiveInt = 64
    iterations: PositiveInt = 400_000
    epochs: PositiveFloat | None = None
    """Where given, the iterations are those of so many epochs, each of as many batches as hold
    every video once; they then follow the batch (paper, section 4.1)."""
    warmup_iterations: NonNegativeInt = 0
    """Iterations of linear warm-up from a tenth of the learning rate."""
    schedule: Literal["step", "cosine"] = "step"
    """``step``: the paper's; ``cosine``: half a cosine wave from the learning rate down to 0."""
    lr_milestones: tuple[Fraction, ...] = (0.375, 0.75)
    """Shares of the iterations after which the learning rate is multiplied by ``lr_gamma``."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; Nesterov's form where above 0."""
    weight_decay: NonNegativeFloat = 1e-4
    norm_weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the norm layers' gamma and beta; the paper's ImageNet setting is 1e-4."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes."""
    mixup_alpha: NonNegativeFloat = 0.0
    """Of the Beta distribution by which clips are mixed in pairs; 0 for no mixup. The paper has
    none."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """The same for cutmix, which pastes a part of one clip into another."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of all gradients together; longer ones are scaled down to it."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the weights, which is then what is validated and
    tested."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that are not trained, such as ``blocks.0``, as `videogn info` lists
    them."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: autocast in the forward pass; weights, losses and updates stay fp32. fp16 scales
    the loss. tf32: GPUs round the factors of products to ten bits of mantissa; fp32 does not."""
    memory_format: Literal["auto", "contiguous", "channels_last_3d"] = "auto"
    """Order of the network's tensors in memory. ``auto``: channels_last_3d on GPUs, but for GN, LN
    and IN without ``compute.norms=fused``, which torch would copy back before each layer."""
    compile: bool = False
    """Let torch.compile translate the network: minutes at the start, for faster steps."""
    precise_bn_batches: NonNegativeInt = 200
    """Batches of all GPUs together that BN's stored statistics are computed anew from before each
    validation and checkpoint, at most an epoch; 0 keeps the running averages."""
    log_interval: PositiveInt = 20
    """Iterations between progress lines."""
    val_interval: PositiveInt = 20_000
    """Iterations between validations; the last iteration always validates."""
    val_epochs: PositiveFloat | None = None
    """Where given, epochs between validations, in place of ``val_interval``."""
    checkpoint_interval: PositiveInt = 10_000
    """Iterations between checkpoints; validations and the last iteration always save one."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """How many of the newest checkpoints are kept, beside the best; 2 at least, for the newest may
    be damaged."""
    percentile_layer: str | None = None
    """Dotted name of a layer, as `videogn info` lists them, of whose output the percentiles 1, 20,
    80 and 99 are logged with each progress line and drawn (paper, Figure 6); of the first batch of
    the first GPU. Null for none."""
    log_samples: bool = False
    """Write down which videos each step saw."""
    timeout: PositiveFloat = 600.0
    """Seconds without progress after which a rank ends the job: more than the longest step and
    the longest save take."""
    val_clip: Literal["augmented", "center"] = "augmented"
    """The one clip of a video that validation scores: ``augmented`` as for training, drawn once and
    for all (paper, Figure 7); ``center``: the frames in the middle, short side
    ``clip.short_side_min``, centre crop of ``clip.crop_size``, not mirrored."""
    rand_augment: NonNegativeInt = 0
    """Operations of RandAugment (arXiv 1909.13719) that each augmented clip goes through, all its
    frames the same; 0 for none."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of each, in steps of a thirtieth of torchvision's range."""
    color_jitter: Fraction = 0.0
    """Brightness, contrast and saturation of each augmented clip are multiplied, in random order,
    by factors in [1 - x, 1 + x]; 0 for none. The paper has 0.4 for ImageNet, none for video."""
    lighting: NonNegativeFloat = 0.0
    """Standard deviation of AlexNet's noise along the main axes of ImageNet's colours; 0 for none.
    The paper has 0.1 for ImageNet, none for video."""
    max_failed_fraction: Fraction = 0.01
    """Training stops once more than this share of the list could not be decoded, but never for a
    single video."""


@dataclass(frozen=True)
class TestConfig:
    """The multi-clip test (paper section 4.3)."""

    __pydantic_config__ = STRICT
    __test__ = False  # not a test case, whatever pytest thinks of the name

    num_clips: PositiveInt | None = None
    """Clips of a video; the protocol's own number where null, which is 10."""
    num_crops: Literal[1, 3] | None = None
    """Crops of a clip; the protocol's own number where null: 1 for ``paper`` and ``center``, else
    3. Three are squares at both ends and in the middle of the longer side; one is the whole frame
    for ``paper`` and the square in the middle for the others."""
    protocol: Literal[
        "paper",
        "center",
        "nonlocal",
        "slowfast",
        "mmaction2",
        "pytorchvideo",
        "pytorchvideo_main",
    ] = "paper"
    """Which frames and crops are scored, all at short side ``clip.short_side_min``
    (docs/testing.md). ``paper``: clips from end to end, whole frames; ``center``: the same clips,
    one centre crop of ``clip.crop_size``; the others: what the test code of that project does,
    ``pytorchvideo`` that of its release 0.1.5."""
    average: Literal["prob", "logit", "max"] = "prob"
    """How views become the score of their video: the mean of softmax scores (the paper's), of
    scores before softmax, or the highest softmax score of each class."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Autocast of the forward pass. ``auto``: bf16 on GPUs that have it, else fp32, which is
    float32 on a GPU too; ``tf32`` is what torch computes there by itself."""
    recipe: Literal["auto", "eager", "views", "compiled"] = "auto"
    """How a CPU computes (docs/testing.md). ``views``: 3D convolutions as 2D ones; ``compiled``:
    by torch.compile; ``auto``: compiled where views have one size and the test is long enough, else
    views. GPUs take ``auto`` or ``eager``."""
    views_per_pass: PositiveInt | None = None
    """Views of one video in a forward pass; as many as fit the memory where not given."""


@dataclass(frozen=True)
class ComputeConfig:
    """How the network is computed, in training and testing; what it computes stays the same."""

    __pydantic_config__ = STRICT

    norms: Literal["auto", "fused", "eager"] = "auto"
    """``fused``: norm, residual sum and ReLU as one Triton kernel; ``eager``: torch's layers.
    ``auto``: fused on GPUs with Triton."""
    convolutions: Literal["auto", "3d", "2d", "mixed"] = "auto"
    """``3d``: torch's 3D convolutions; ``2d``: the same memory seen as 2D convolutions and matrix
    products, for channels-last tensors; ``mixed``: the latter but for kernels over time alone.
    ``auto``: on GPUs ``mixed``, or ``2d`` where cuDNN's 3D convolutions are wrong."""
    recompute: Literal["none", "act", "act+conv_c", "block"] = "none"
    """What the backward pass computes again instead of keeping it: the activations between a
    block's convolutions; those and the outputs of its last convolution and of its shortcut's;
    whole blocks."""
    graphs: AutoOnOff = "auto"
    """Launch the kernels of a training pass all at once, as CUDA graphs. ``auto``: where norms are
    fused and the device has room for them and a validation beside, but for accumulated gradients
    and compiled networks; where they cannot be captured it goes on without. A test uses graphs
    where norms are fused and views of one shape come again, unless ``off``."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    __pydantic_config__ = STRICT

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    out: str = ""
    """Run folder; ``runs/<name of the config file>`` where empty."""
    resume: Literal["auto", "never"] = "auto"
    """``auto`` goes on from the run folder's last checkpoint; ``never`` refuses a used folder."""
