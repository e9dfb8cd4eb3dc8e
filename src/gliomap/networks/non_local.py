"""Attention between every two voxels of a map: what the supervised attention module of paper 002 is measured against.

- self-attention (equations 1 to 3, figure 2a) -> ``SelfAttention``
- context prior layer (equation 4, figure 2b) -> ``ContextPrior``

Both hold N x N weights for a map of N voxels. Departures: the paper's table counts for the context prior two 1x1x1
convolutions and one of the two products that it needs; here they are the values and the output, beside equation 4's
convolution to N channels and the update. That convolution has a filter per voxel of one grid; on another grid the filters are
interpolated between voxels. The weights are a sigmoid and their products a mean over the voxels, as in the layer's own paper. Its
affinity loss (equation 5) is not built.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Y = V softmax(K^T Q) + X, the softmax over the keys, unscaled as printed; and how much attention each voxel gets.

    Maps (B, C, D, H, W) to the same and (B, 1, D, H, W), the mean over the queries as a share of its maximum.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv3d(channels, channels, 1, bias=False)
        self.key = nn.Conv3d(channels, channels, 1, bias=False)
        self.value = nn.Conv3d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (part(x).flatten(2) for part in (self.query, self.key, self.value))  # (B, C, N)
        weights = torch.softmax(key.transpose(-2, -1) @ query, 1)  # (B, N keys, N queries)
        return x + (value @ weights).reshape(x.shape), _received(weights, x)


class ContextPrior(nn.Module):
    """Y = W_o(W_v(X) P / N) + X with P = sigmoid(conv(X)); and how much of each voxel goes into the others.

    Maps (B, C, D, H, W) to the same and (B, 1, D, H, W), as `SelfAttention` does.

    Args:
        channels: C.
        grid: the D, H, W for which the convolution to N = D * H * W channels has a filter per voxel.
    """

    def __init__(self, channels: int, grid: tuple[int, int, int] = (16, 16, 16)) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.empty(1, channels, *grid))
        nn.init.uniform_(self.filters, -(channels**-0.5), channels**-0.5)  # as torch begins a convolution
        self.value = nn.Conv3d(channels, channels, 1, bias=False)
        self.output = nn.Conv3d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[2:]
        filters = self.filters
        if filters.shape[2:] != size:
            filters = F.interpolate(filters, size=size, mode="trilinear", align_corners=False)
        weights = torch.sigmoid(filters.flatten(2).transpose(-2, -1) @ x.flatten(2))  # (B, N related voxels, N voxels)
        context = self.value(x).flatten(2) @ weights / size.numel()  # (B, C, N)
        return x + self.output(context.reshape(x.shape)), _received(weights, x)


def _received(weights: Tensor, x: Tensor) -> Tensor:
    mean = weights.mean(2)  # (B, N)
    return (mean / mean.amax(1, keepdim=True)).reshape(x.shape[0], 1, *x.shape[2:])
