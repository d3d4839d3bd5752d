"""The networks, their weight files and the inflation of 2D weights."""

from videogn.models.build import build_network
from videogn.models.i3d import I3D, i3d
from videogn.models.inflate import InflationReport, inflate_state_dict
from videogn.models.resnet2d import ResNet2d, resnet50
from videogn.models.sources import read_source
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import load_model, read_info, read_weights, write_weights

__all__ = [
    "I3D",
    "InflationReport",
    "NetworkSpec",
    "ResNet2d",
    "WeightInfo",
    "build_network",
    "i3d",
    "inflate_state_dict",
    "load_model",
    "read_info",
    "read_source",
    "read_weights",
    "resnet50",
    "write_weights",
]
