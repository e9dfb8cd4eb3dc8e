"""Networks whose attention and answer are known: both follow how bright the last modality is."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from gliomap import networks
from gliomap.model_file import save_model
from gliomap.networks.base import Network, Outputs
from gliomap.recipe import NetworkSpec, Preprocessing
from gliomap.recipes import RECIPES

LEVELS = 3


class Follower(Network):
    """Gates AG_1 to AG_3, the brightest voxel of each 1, 2 and 4 voxels along each axis; ET where it is far above the mean."""

    spatial_dims: ClassVar[int] = 3

    def __init__(self, in_channels: int = 4, _out_channels: int = 4) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.size_divisor = 2 ** (LEVELS - 1)
        self.scale = nn.Parameter(torch.tensor([0.05]))

    def supervised(self, x: torch.Tensor) -> Outputs:
        self.check_input(x)
        background, others = torch.full_like(x[:, :1], 8), torch.zeros_like(x[:, 2:])
        return Outputs((torch.cat([background, others, 8 + 160 * self.scale * (x[:, -1:] - 3)], 1),))

    def attention(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.check_input(x)
        pool = F.max_pool3d if self.spatial_dims == 3 else F.max_pool2d
        gate = torch.sigmoid(self.scale * x[:, -1:])
        return {f"AG_{level + 1}": pool(gate, 2**level) for level in reversed(range(LEVELS))}


class SliceFollower(Follower):
    """The same on axial slices."""

    spatial_dims: ClassVar[int] = 2


def follower_recipe(monkeypatch, kind=Follower, **preprocessing):
    monkeypatch.setitem(networks.NETWORKS, "follower", kind)
    return replace(
        RECIPES["attention_resunet_small"],
        name="follower",
        network=NetworkSpec("follower"),
        preprocessing=Preprocessing(**preprocessing),
        postprocessing=(),
    )


def follower_model(path: Path, recipe) -> Path:
    save_model(path, recipe, {"scale": torch.tensor([0.05]).numpy()}, {})
    return path
