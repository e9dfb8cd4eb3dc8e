"""Paper 004: how the Attention-ResNetUNet and the rows of its tables were trained, and a small version of it for a laptop."""

from dataclasses import replace
from typing import Any

from gliomap.recipe import (
    Augmentation,
    Coarse,
    Inference,
    LossSpec,
    NetworkSpec,
    Preprocessing,
    Recipe,
    StepSpec,
    Training,
)

PATCHES_PER_EPOCH = 285 * 48
"""285 studies of 192 x 192 x 128 voxels, each cut into 4 x 4 x 3 patches of 64 voxels with 25 % overlap."""

PAPER = Recipe(
    name="attention_resunet",
    source="paper 004, main table and ablation, + both",
    network=NetworkSpec("attention_resunet", {"base": 12, "gate": "free", "fusion": True}),
    preprocessing=Preprocessing(grid=(128, 192, 192), histogram_matching=True),
    augmentation=Augmentation(
        rotation_degrees=10.0, elastic_voxels=2.0, elastic_spacing=20, intensity_scale=0.1, gamma=(0.8, 1.2)
    ),
    training=Training(
        patches=200 * PATCHES_PER_EPOCH,
        patch_size=(64, 64, 64),
        batch_size=2,
        learning_rate=3e-4,
        weight_decay=5e-5,
        schedule="plateau",
        plateau_factor=0.5,
        plateau_patience=4,
        validate_every=PATCHES_PER_EPOCH,
        foreground_share=0.0,
        validation_share=0.16,  # 55 of the 340 studies that the paper counts
    ),
    inference=Inference(
        window=(64, 64, 64), overlap=0.25, views=("identity", "flip_left_right", "rotate_90"), combine="vote"
    ),
    postprocessing=(StepSpec("remove_small_components", {"min_voxels": 150}),),
)


def _row(name: str, row: str, settings: dict[str, Any]) -> Recipe:
    network = NetworkSpec("attention_resunet", {"base": 12} | settings)
    return replace(PAPER, name=f"attention_resunet_{name}", source=f"paper 004, {row}", network=network)


ROWS = (
    _row("baseline", "ablation, baseline (the main table's ResNet-UNet)", {"gate": "none", "fusion": False}),
    _row("attention", "ablation, + attention", {"gate": "free", "fusion": False}),
    _row("fusion", "ablation, + MSF", {"gate": "none", "fusion": True}),
    PAPER,
    replace(
        PAPER,
        name="attention_resunet_unet3d",
        source="paper 004, main table, 3-D U-Net (its size is not printed)",
        network=NetworkSpec("unet3d"),
    ),
)

SMALL = replace(
    PAPER,
    name="attention_resunet_small",
    source="ours: paper 004's network, narrower and without fusion, on the whole brain at 2 mm",
    network=NetworkSpec("attention_resunet", {"base": 8, "gate": "free", "fusion": False}),
    preprocessing=Preprocessing(spacing_mm=2.0),
    augmentation=Augmentation(
        flips=True,
        rotation_degrees=15.0,
        scale=0.15,
        elastic_voxels=1.0,
        elastic_spacing=20,
        intensity_scale=0.2,
        intensity_shift=0.2,
        gamma=(0.7, 1.4),
        noise=0.1,
    ),
    training=Training(
        patches=6000,
        patch_size=(48, 64, 48),
        batch_size=2,
        learning_rate=2e-3,
        weight_decay=1e-5,
        ema_decay=0.99,
        schedule="cosine",
        validate_every=600,
        foreground_share=0.33,
        loss=LossSpec("cross_entropy_dice", {"dice_share": 0.1, "background_weight": 2.0}),
    ),
    inference=Inference(window=None),
    postprocessing=(StepSpec("remove_small_components", {"min_voxels": 30}), StepSpec("enclosed_to_ncr")),
)

DEFAULT = replace(
    SMALL,
    name="default",
    source="ours: attention_resunet_small for studies that may lack modalities, as `make default-model` trains it",
    needs_one_of=("t1c", "flair"),
    augmentation=replace(SMALL.augmentation, modality_dropout=0.1),
    training=replace(SMALL.training, patches=1400, validate_every=1400, patch_size=(64, 80, 64)),
)

CASCADE = replace(
    SMALL,
    name="attention_resunet_cascade",
    source="ours: attention_resunet_small at 2 mm finds the tumour, the same network at 1 mm refines it in its box",
    preprocessing=Preprocessing(spacing_mm=1.0),
    training=replace(SMALL.training, patch_size=(64, 64, 64), foreground_share=0.8),
    coarse=Coarse(SMALL, margin_mm=10.0),
)
