"""Paper 002: how CGA U-Net was trained, the rows of its ablation (table 4) and the modules of its cost table (table 3)."""

from dataclasses import replace
from typing import Any

from gliomap.recipe import Augmentation, Inference, LossSpec, NetworkSpec, Recipe, StepSpec, Training

PATCHES_PER_EPOCH = 268
"""One patch per study and epoch, of the four fifths of 335 studies that each fold of the ablation trains on.

The network behind table 2, scored on the challenge's server, saw all 335.
"""

_DICE = LossSpec("dice", {"reduction": "sum"})
_INTRA = LossSpec("supervised_attention", {"inter": "off"})
_INTER = LossSpec("supervised_attention", {"skip_absent": False})
_MINUS_INTER = LossSpec("supervised_attention", {"skip_absent": False, "inter_weight": -1.0})

PAPER = Recipe(
    name="cga_unet",
    source="paper 002, table 4, Baseline + Intra + Inter; details from its released code, without its dropout in use",
    network=NetworkSpec("cga_unet"),
    modalities=("flair", "t1c", "t1", "t2"),
    augmentation=Augmentation(flips=True, intensity_scale=0.1, intensity_shift=0.1),
    training=Training(
        patches=500 * PATCHES_PER_EPOCH,
        patch_size=(128, 128, 128),
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=1e-5,
        amsgrad=True,
        schedule="polynomial",
        polynomial_power=0.9,
        validate_every=PATCHES_PER_EPOCH,
        foreground_share=0.0,
        loss=_INTER,
    ),
    inference=Inference(window=None),
    postprocessing=(StepSpec("small_et_to_ncr", {"min_voxels": 500}),),
)


def _row(name: str, row: str, settings: dict[str, Any], loss: LossSpec = _INTER) -> Recipe:
    return replace(
        PAPER,
        name=f"cga_unet_{name}",
        source=f"paper 002, {row}",
        network=NetworkSpec("cga_unet", settings),
        training=replace(PAPER.training, loss=loss),
    )


CONTEXT_PRIOR = replace(
    _row(
        "context_prior",
        "table 3, CP Block, without its affinity loss; costs are printed, no scores",
        {"attention": "context_prior"},
        _DICE,
    ),
    inference=Inference(window=PAPER.training.patch_size),  # it has a filter per voxel of the patches it is trained on
)

ROWS = (
    PAPER,
    _row("baseline", "table 4, Baseline", {"attention": "none"}, _DICE),
    _row("intra", "table 4, Baseline + Intra", {}, _INTRA),
    _row("intra_ncr", "table 4, Baseline + Intra (class1)", {"update": "NCR"}, _INTRA),
    _row("intra_ed", "table 4, Baseline + Intra (class2)", {"update": "ED"}, _INTRA),
    _row("intra_et", "table 4, Baseline + Intra (class4)", {"update": "ET"}, _INTRA),
    _row("inter", "table 4, Baseline + Inter", {"update": "none"}),
    _row("minus_inter", "table 4, Baseline - Inter", {"update": "none"}, _MINUS_INTER),
    _row("without_path", "section 4.4 and figure 5, without attention conv path", {"attention": "sam_without_path"}),
    _row(
        "self_attention",
        "table 3, Self-Attention; costs are printed, no scores",
        {"attention": "self_attention"},
        _DICE,
    ),
    CONTEXT_PRIOR,
    _row("sam_4", "table 3, SAM at a downsampling rate of 4; costs are printed, no scores", {"downsampling": 4}),
    _row("sam_2", "table 3, SAM at a downsampling rate of 2; costs are printed, no scores", {"downsampling": 2}),
    *(
        replace(_row(name, f"table 2, {printed}", {}, _DICE), network=NetworkSpec(name))
        for name, printed in (
            ("unet3d", "3D U-Net"),
            ("vnet", "V-Net"),
            ("attention_unet", "Attention U-Net"),
            ("dynunet", "nnU-Net"),
        )
    ),
    _row(
        "always_dropout", "table 4, Baseline + Intra + Inter, with its code's dropout in use", {"always_dropout": True}
    ),
)
