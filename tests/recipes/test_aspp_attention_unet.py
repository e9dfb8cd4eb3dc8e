import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from gliomap.networks import build_network
from gliomap.recipes.aspp_attention_unet import (
    ASPP_ATTENTION_UNET,
    ATTENTION_UNET,
    PAPER,
    ROWS,
    SPP_ATTENTION_UNET,
    UNET,
)
from gliomap.schedules import rate_factor

SIZES = {
    "unet2d": (UNET, 34_525_889),
    "attention_unet2d": (ATTENTION_UNET, 34_877_421),
    "spp_attention_unet": (SPP_ATTENTION_UNET, 38_027_245),
    "aspp_attention_unet": (ASPP_ATTENTION_UNET, 61_629_933),
}


def test_every_row_and_modality_of_table_1_is_a_recipe():
    assert [r.name for r in ROWS] == [
        f"{network}_{modality}" for network in SIZES for modality in ("t1c", "flair", "t2")
    ]


@pytest.mark.parametrize("recipe", ROWS, ids=lambda recipe: recipe.name)
def test_each_trains_its_own_network_on_one_modality(recipe):
    network, _, modality = recipe.name.rpartition("_")
    assert recipe.modalities == (modality,)
    spec, parameters = SIZES[network]
    assert recipe.network == spec
    with torch.device("meta"):
        built = build_network(recipe)
    assert sum(p.numel() for p in built.parameters()) == parameters
    logits = built(torch.zeros(1, 1, 240, 240, device="meta"))
    assert logits.shape == (1, len(recipe.target.channels), 240, 240)


def test_the_protocol_is_the_papers():
    training = PAPER.training
    assert training.patches == 100 * training.validate_every == 100 * 1000
    assert (training.patch_size, training.patch_place, training.foreground_share) == ((1, 240, 240), "middle", 0)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (32, 1e-3, 0)
    assert training.patches % training.batch_size == 0  # no batch of one at the end
    assert PAPER.target.regions == ("WT",)
    assert PAPER.inference.window == training.patch_size
    for other in ROWS:
        assert (other.training, other.target, other.preprocessing) == (training, PAPER.target, PAPER.preprocessing)


def test_the_rate_is_torchs_cosine_with_a_warm_restart_after_fifty_epochs():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], PAPER.training.learning_rate)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=50, eta_min=1e-6)
    optimizer.step()
    for epoch in range(100):
        rate = PAPER.training.learning_rate * rate_factor(PAPER.training, epoch / 100, [])
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6), epoch
        scheduler.step()
