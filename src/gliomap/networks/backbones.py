"""The two networks whose last feature maps paper 000 fuses, baselines in their own right.

- ``DynUNet``: nnU-Net's network (Isensee 2021); with its defaults the one that nnU-Net plans for isotropic patches of 128^3
- ``SegResNet``: the winner of BraTS 2018 without its autoencoder branch (Myronenko 2018)

The layers are MONAI's own; what is added are the features and the coarser logits at their own sizes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from gliomap.networks.base import Outputs
from gliomap.networks.baselines import Baseline


class DynUNet(Baseline):
    """nnU-Net's U-Net: strided convolutions, instance normalisation, transposed convolutions.

    Args:
        in_channels: modalities.
        out_channels: logits.
        filters: width of each level, finest first; at least three levels, four with deep supervision.
        res_block: residual blocks in encoder and bottleneck.
        deep_supervision: in training also logits at each coarser size of the decoder but the last, each at its own size.
    """

    instance_norm = True

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        filters: Sequence[int] = (32, 64, 128, 256, 320, 320),
        res_block: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        levels = len(filters)
        if levels < 3 + deep_supervision:
            raise ValueError(f"got filters for {levels} levels; expected at least 3, or 4 with deep_supervision")
        super().__init__(
            "DynUNet",
            in_channels,
            out_channels,
            size_divisor=2 ** (levels - 1),
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(filters),
            norm_name="instance",
            res_block=res_block,
            deep_supervision=deep_supervision,
            deep_supr_num=max(levels - 3, 1),
        )
        self.deep_supervision = deep_supervision
        self.feature_channels = filters[0]

    @property
    def output_layers(self) -> list[nn.Module]:
        """What makes logits of features; idle where another network takes the features."""
        return [self.network.output_block, *(self.network.deep_supervision_heads if self.deep_supervision else ())]

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (B, feature_channels, D, H, W), which the final 1x1x1 convolution makes logits of."""
        return self._decode(x)[0]

    def supervised(self, x: Tensor) -> Outputs:
        """Logits of images (B, C, D, H, W); with deep supervision in training (B, K, (D, H, W) / 2^k) too, for k = 1, 2, ..."""
        features, coarser = self._decode(x)
        return Outputs((self.network.output_block(features), *(coarser if self.training else ())))

    def _decode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.check_input(x)
        features = self.network.skip_layers(x)
        if not self.deep_supervision:
            return features, []
        kept = self.network.heads  # MONAI leaves the coarser logits here; taken out, since they hold the whole graph
        coarser = list(kept)
        kept[:] = [x.new_empty(0)] * len(kept)
        return features, coarser


class SegResNet(Baseline):
    """Residual encoder with GroupNorm, a light decoder of sums and trilinear upsampling.

    Args:
        in_channels: modalities.
        out_channels: logits.
        init_filters: width of the first level, a multiple of 8; each level doubles it.
        blocks_down: residual blocks of each encoder level, finest first.
        blocks_up: residual blocks of each decoder level, coarsest first.
        dropout: share of the first convolution's channels dropped in training.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        *,
        init_filters: int = 16,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.2,
    ) -> None:
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(f"got blocks_up for {len(blocks_up)} levels; expected one less than blocks_down has")
        super().__init__(
            "SegResNet",
            in_channels,
            out_channels,
            size_divisor=2 ** len(blocks_up),
            init_filters=init_filters,
            dropout_prob=dropout,
            use_conv_final=False,  # built all the same, and run here, so that the features can be had
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )
        self.feature_channels = init_filters

    @property
    def output_layers(self) -> list[nn.Module]:
        """What makes logits of features; idle where another network takes the features."""
        return [self.network.conv_final[-1]]

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (B, feature_channels, D, H, W), which the final 1x1x1 convolution makes logits of."""
        self.check_input(x)
        return self.network.conv_final[:-1](self.network(x))

    def supervised(self, x: Tensor) -> Outputs:
        """Logits (B, K, D, H, W) of images (B, C, D, H, W); see `Network.supervised`."""
        return Outputs((self.network.conv_final[-1](self.features(x)),))
