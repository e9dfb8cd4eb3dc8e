"""Paper 001: how 3D-DRUwAS was trained, first with ReLU and then with Swish, and the rows of its ablation (table 4)."""

from dataclasses import replace
from typing import Any

from gliomap.classes import NESTED_REGIONS
from gliomap.recipe import Inference, LossSpec, NetworkSpec, Preprocessing, Recipe, Start, Training

PATCHES_PER_EPOCH = 258
"""One patch per study and epoch; 70 % of the 369 labelled studies of BraTS 2020."""

PAPER = Recipe(
    name="druwas",
    source="paper 001, table 4, full ReLU model; crops that do not look at the label, unlike its public successor's",
    network=NetworkSpec("druwas"),
    modalities=("flair", "t1", "t1c", "t2"),
    target=NESTED_REGIONS,
    preprocessing=Preprocessing(normalisation="minmax"),
    training=Training(
        patches=100 * PATCHES_PER_EPOCH,
        patch_size=(128, 128, 128),
        batch_size=4,
        learning_rate=5e-4,
        schedule="plateau",
        plateau_factor=0.1,
        plateau_patience=4,
        validate_every=PATCHES_PER_EPOCH,
        validation_share=0.1,
        test_share=0.2,
        foreground_share=0.0,
        loss=LossSpec("binary_cross_entropy_dice"),
    ),
    inference=Inference(window=(128, 128, 128), overlap=0.5),
)


def _row(name: str, row: str, settings: dict[str, Any]) -> Recipe:
    return replace(
        PAPER, name=f"druwas_{name}", source=f"paper 001, table 4, {row}", network=NetworkSpec("druwas", settings)
    )


_PLAIN = {"residual": False, "blocks_per_level": 1}
_DEEP = {"residual": False}
_NO_GATE, _NO_SPATIAL = {"attention_gate": False}, {"spatial_attention": False}

SWISH = replace(
    PAPER,
    name="druwas_swish",
    source="paper 001, table 4, full ReLU + Swish model: 60 epochs more with Swish in place of ReLU",
    network=NetworkSpec("druwas", {"activation": "silu"}),
    training=replace(PAPER.training, patches=60 * PATCHES_PER_EPOCH),
    starts_from=(Start(PAPER),),
)

TRUTH_CENTRED = replace(
    PAPER,
    name="druwas_truth_centred",
    source="paper 001 as its public successor reads the data: every crop centred on the true tumour, in evaluation too",
    preprocessing=replace(PAPER.preprocessing, crop="truth_centre", crop_size=(128, 128, 128)),
)

ROWS = (
    PAPER,
    SWISH,
    TRUTH_CENTRED,
    _row("baseline", "D-Unet", _PLAIN | _NO_GATE | _NO_SPATIAL),
    _row("sa", "+ SA", _PLAIN | _NO_GATE),
    _row("ag", "+ AG", _PLAIN | _NO_SPATIAL),
    _row("sa_ag", "+ SA + AG", _PLAIN),
    _row("resnet", "+ ResNet", _NO_GATE | _NO_SPATIAL),
    _row(
        "deep_baseline",
        "D-Unet, as deep as + ResNet so that shortcuts alone can be judged",
        _DEEP | _NO_GATE | _NO_SPATIAL,
    ),
    _row("deep_sa", "+ SA, as deep as + ResNet", _DEEP | _NO_GATE),
    _row("deep_ag", "+ AG, as deep as + ResNet", _DEEP | _NO_SPATIAL),
    _row("deep_sa_ag", "+ SA + AG, as deep as + ResNet", _DEEP),
)
