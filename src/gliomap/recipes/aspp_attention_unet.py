"""Paper 003: the rows of its table 1, one training per network and modality, each on one axial slice per study."""

from dataclasses import replace

from gliomap.classes import WHOLE_TUMOUR
from gliomap.recipe import Inference, LossSpec, NetworkSpec, Preprocessing, Recipe, Training

SLICES_PER_EPOCH = 1000
"""One axial slice of each of the 1,000 training studies."""

UNET = NetworkSpec("unet2d")
ATTENTION_UNET = NetworkSpec("aspp_attention_unet", {"context": "none"})
SPP_ATTENTION_UNET = NetworkSpec("aspp_attention_unet", {"context": "spp"})
ASPP_ATTENTION_UNET = NetworkSpec("aspp_attention_unet")

MODALITIES = {"t1c": "T1C", "flair": "T2 FLAIR", "t2": "T2W"}
"""Ours -> the paper's."""

PAPER = Recipe(
    name="aspp_attention_unet_t1c",
    source="paper 003, table 1, Att. UNet with ASPP, T1C",
    network=ASPP_ATTENTION_UNET,
    modalities=("t1c",),
    target=WHOLE_TUMOUR,
    preprocessing=Preprocessing(normalisation="slice_zscore"),
    training=Training(
        patches=100 * SLICES_PER_EPOCH,
        patch_size=(1, 240, 240),
        patch_place="middle",
        foreground_share=0.0,
        batch_size=32,
        learning_rate=1e-3,
        schedule="cosine",
        cosine_cycles=2,
        rate_floor=1e-6 / 1e-3,
        validate_every=SLICES_PER_EPOCH,
        validation_share=0.1,
        test_share=0.1,
        loss=LossSpec("binary_cross_entropy_dice"),
    ),
    inference=Inference(window=(1, 240, 240), overlap=0.5),
)


def _rows(name: str, row: str, network: NetworkSpec) -> list[Recipe]:
    """A row of table 1: the network trained on each modality alone."""
    return [
        replace(
            PAPER,
            name=f"{name}_{modality}",
            source=f"paper 003, table 1, {row}, {printed}",
            network=network,
            modalities=(modality,),
        )
        for modality, printed in MODALITIES.items()
    ]


ROWS = (
    *_rows("unet2d", "UNet", UNET),
    *_rows("attention_unet2d", "Att. UNet", ATTENTION_UNET),
    *_rows("spp_attention_unet", "Att. UNet with SPP", SPP_ATTENTION_UNET),
    *_rows("aspp_attention_unet", "Att. UNet with ASPP", ASPP_ATTENTION_UNET),
)
