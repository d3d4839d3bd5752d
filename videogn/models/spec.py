"""What a network is and where its weights come from, as a weight file records them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from videogn.errors import WeightError

PositiveInt = Annotated[int, Field(gt=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Triple = tuple[Finite, Finite, Finite]
PositiveTriple = tuple[
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
]

STRICT = ConfigDict(strict=True, extra="forbid")

CLASS_HASH = "class_names_sha256"
"""Key under which a description has the hash of its class names."""


@dataclass(frozen=True)
class Architecture:
    """What the name of a network stands for.

    Attributes:
        family: a key of :data:`videogn.models.build.FAMILIES`.
        depths: its blocks of each stage, unless a spec has others.
        width: channels of its stem, unless a spec has others.
        inflation: temporal kernels, a key of ``INFLATIONS``; of the families that have them.
    """

    family: str
    depths: tuple[int, ...]
    width: int = 64
    inflation: str | None = None


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)

ARCHITECTURES = {
    "i3d_r50": Architecture("i3d", R50, inflation="3x1x1"),
    "i3d_r101": Architecture("i3d", R101, inflation="3x1x1"),
    "i3d_3x3x3_r50": Architecture("i3d", R50, inflation="3x3x3"),
    "i3d_3x3x3_r101": Architecture("i3d", R101, inflation="3x3x3"),
    "i3d_heavy_r50": Architecture("i3d", R50, inflation="3x1x1_all"),
    "c2d_r50": Architecture("i3d", R50, inflation="none"),
    "c2d_r101": Architecture("i3d", R101, inflation="none"),
    "resnet50": Architecture("resnet2d", R50),
    "resnet101": Architecture("resnet2d", R101),
    "vgg16": Architecture("vgg2d", (2, 2, 3, 3, 3)),
    "slow_r50": Architecture("zoo", R50),
    "r2plus1d_r50": Architecture("zoo", R50),
    "csn_r101": Architecture("zoo", R101),
    "x3d_xs": Architecture("zoo", (3, 5, 11, 7), width=24),
    "x3d_s": Architecture("zoo", (3, 5, 11, 7), width=24),
    "x3d_m": Architecture("zoo", (3, 5, 11, 7), width=24),
    "x3d_l": Architecture("zoo", (5, 10, 25, 15), width=24),
}
"""Name -> network."""


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that :func:`videogn.models.build.build_network` needs.

    Attributes:
        arch: a key of ``ARCHITECTURES``.
        norm: a key of ``NORMS``.
        num_groups: groups of every GN layer.
        channels_per_group: where given, GN layers have groups of this many channels instead.
        layout: a key of ``LAYOUTS``: the temporal strides and pools; for I3D and C2D alone.
        width: channels of the stem.
        depths: residual blocks of each stage.
        dropout: share of features dropped before the classifier in training.
    """

    __pydantic_config__ = STRICT

    arch: str
    norm: str
    num_groups: PositiveInt
    channels_per_group: PositiveInt | None
    layout: str
    num_classes: PositiveInt
    width: PositiveInt
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=5)]
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @property
    def family(self) -> str | None:
        """Kind of network; None where no network has the name."""
        return ARCHITECTURES[self.arch].family if self.arch in ARCHITECTURES else None

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of a weight file."""
        tree = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"architecture": tree.pop("arch"), **tree, "depths": list(self.depths)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], source: str) -> "NetworkSpec":
        """Read what :meth:`to_json` gives; ``source`` names the place in messages.

        Raises:
            WeightError: a value is missing, unknown or of the wrong type.
        """
        return _validate(_SPEC, _field_names(tree), source)

    def differences(self, other: "NetworkSpec") -> dict[str, tuple[Any, Any]]:
        """Fields that differ in what the weights mean, with both values.

        Dropout has no weights; groups matter to GN alone, the layout to video networks alone.
        """
        return {
            item.name: (getattr(self, item.name), getattr(other, item.name))
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
            and item.name not in self._immaterial(other)
        }

    def _immaterial(self, other: "NetworkSpec") -> set[str]:
        names = {"dropout"}
        if self.norm == other.norm != "gn":
            names |= {"num_groups", "channels_per_group"}
        if self.channels_per_group is not None and other.channels_per_group is not None:
            names.add("num_groups")
        if all(spec.family != "i3d" for spec in (self, other)):
            names.add("layout")
        return names


def class_names_sha256(names: Sequence[str]) -> str:
    """Hash of class names in label order: SHA-256 of the names joined by line ends, in UTF-8."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@dataclass(frozen=True)
class WeightInfo:
    """What a weight file says about its weights.

    Attributes:
        class_names: in label order.
        mean: RGB mean of the input in [0, 1].
        std: RGB standard deviation of the input in [0, 1].
        source: name of the 2D weight file the network was inflated from.
        source_sha256: its SHA-256.
        temporal_init: how its kernels were inflated: ``mean`` or ``center``.
    """

    __pydantic_config__ = STRICT

    spec: NetworkSpec
    class_names: tuple[str, ...] | None
    mean: Triple
    std: PositiveTriple
    source: str | None
    source_sha256: str | None
    temporal_init: str | None

    def __post_init__(self) -> None:
        names, num_classes = self.class_names, self.spec.num_classes
        if names is not None and len(names) != num_classes:
            raise WeightError(
                f"{len(names)} class names for a network of {num_classes} classes; "
                "give one name for each"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, the spec's among them."""
        tree = {item.name: getattr(self, item.name) for item in fields(self)}
        del tree["spec"]
        plain = json.loads(json.dumps(tree, allow_nan=False))
        names = self.class_names
        digest = None if names is None else class_names_sha256(names)
        return {**self.spec.to_json(), **plain, CLASS_HASH: digest}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], source: str) -> "WeightInfo":
        """Read what :meth:`to_json` gives; ``source`` names the place in messages.

        Raises:
            WeightError: a value is missing, unknown or of the wrong type.
        """
        tree = dict(tree)
        digest = tree.pop(CLASS_HASH, None)  # older files have none
        own = {item.name for item in fields(cls)} - {"spec"}
        spec = _field_names({key: value for key, value in tree.items() if key not in own})
        rest = {key: value for key, value in tree.items() if key in own}
        info = _validate(_INFO, {"spec": spec, **rest}, source)
        if digest is not None and digest != class_names_sha256(info.class_names or ()):
            raise WeightError(
                f"{source}: its class names are not those it was written with ({CLASS_HASH} "
                "differs); make or convert it again"
            )
        return info


T = TypeVar("T")
_SPEC = TypeAdapter(NetworkSpec)
_INFO = TypeAdapter(WeightInfo)


def _field_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a spec under the names of its fields instead of those of a weight file."""
    return {"arch" if key == "architecture" else key: value for key, value in tree.items()}


def _validate(adapter: TypeAdapter[T], tree: Mapping[str, Any], source: str) -> T:
    try:
        # The JSON form admits a list for a tuple, which strict mode refuses for Python objects.
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        faults = "; ".join(
            ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            for fault in error.errors()
        )
        raise WeightError(f"{source}: its description of the network is wrong: {faults}") from error
