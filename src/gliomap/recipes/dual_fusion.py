"""Paper 000: its two backbones (table 1), the three ways to fuse them (table 2), and what else its text can be read as."""

from dataclasses import replace
from typing import Any

from gliomap.classes import NESTED_REGIONS
from gliomap.recipe import Augmentation, Inference, LossSpec, NetworkSpec, Recipe, Start, Training

PATCHES_PER_EPOCH = 228
"""One patch per study and epoch; 80 % of the 285 labelled studies of BraTS 2018."""

DYNUNET = Recipe(
    name="dual_fusion_dynunet",
    source="paper 000, table 1, DynUnet",
    network=NetworkSpec("dynunet"),
    modalities=("flair", "t1", "t2", "t1c"),
    target=NESTED_REGIONS,
    augmentation=Augmentation(flips=True, rotation_degrees=15.0, intensity_scale=0.1, intensity_shift=0.1),
    training=Training(
        patches=100 * PATCHES_PER_EPOCH,
        patch_size=(128, 128, 128),
        batch_size=2,
        learning_rate=3e-4,
        validate_every=PATCHES_PER_EPOCH,
        early_stopping=6,
        validation_share=0.2,
        foreground_share=0.0,
        loss=LossSpec("dice"),
    ),
    inference=Inference(window=(128, 128, 128), overlap=0.5),
)
SEGRESNET = replace(
    DYNUNET, name="dual_fusion_segresnet", source="paper 000, table 1, SegResnet", network=NetworkSpec("segresnet")
)

PAPER = replace(
    DYNUNET,
    name="dual_fusion",
    source="paper 000, table 2, our method; pooled keys and values, since the printed attention cannot be computed",
    network=NetworkSpec("dual_fusion"),
    starts_from=(Start(DYNUNET, "dynunet"), Start(SEGRESNET, "segresnet")),
    frozen=("dynunet", "segresnet"),
)
EARLY = replace(
    PAPER, name="dual_fusion_early", source="paper 000, table 2, early fusion", network=NetworkSpec("early_fusion")
)
LATE = replace(
    PAPER,
    name="dual_fusion_late",
    source="paper 000, table 2, late fusion; nothing is left to train",
    network=NetworkSpec("late_fusion", {"kind": "sigmoid"}),
    training=replace(PAPER.training, patches=1, batch_size=1, validate_every=1),
)
FINETUNED = replace(
    PAPER,
    name="dual_fusion_finetuned",
    source="paper 000, our method, with its backbones trained on; the paper does not say whether they were",
    frozen=(),
)
PRINTED_LEARNING_RATE = replace(
    PAPER,
    name="dual_fusion_printed_learning_rate",
    source="paper 000, our method, with the learning rate as printed, 3e-1: most likely a slip for 3e-4",
    training=replace(PAPER.training, learning_rate=0.3),
)


def _other(name: str, what: str, settings: dict[str, Any]) -> Recipe:
    return replace(
        PAPER,
        name=f"dual_fusion_{name}",
        source=f"ours: paper 000's method {what}",
        network=NetworkSpec("dual_fusion", settings),
    )


ROWS = (
    DYNUNET,
    SEGRESNET,
    LATE,
    EARLY,
    PAPER,
    FINETUNED,
    PRINTED_LEARNING_RATE,
    _other("axial", "with attention along lines from inferior to superior", {"attention": "axial"}),
    _other("channel", "with attention among channels", {"attention": "channel"}),
    _other("linear", "with linear attention", {"attention": "linear"}),
    _other("window", "with exact attention within windows of 8^3 voxels", {"attention": "window"}),
    _other("no_global", "without global attention", {"attention": "none"}),
    _other("no_local", "without local attention", {"local": False}),
)
