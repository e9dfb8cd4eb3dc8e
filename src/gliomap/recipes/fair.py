"""One protocol for all networks, which is what a comparison needs: same data, patches, augmentation, optimiser, schedule, budget.

Not a paper's protocol. It differs between networks only where a network would not be itself without it: the supervised
attention module keeps its own loss terms, a 2-D network sees slices, and what starts from other trainings shares the budget
with them.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from gliomap.recipe import Augmentation, Inference, LossSpec, NetworkSpec, Recipe, Size, Start, Training, cautions

PATCHES, EPOCHS = 20_000, 20
BUDGET_STEP = 12
"""A budget that is a multiple of this has halves and thirds of whole batches, so that fusions spend exactly as much as others."""
SLICES = (8, 192, 192)
"""A patch of a 2-D network: eight axial slices, which cost about what a 3-D patch costs."""

PROTOCOL = Recipe(
    name="fair",
    source="ours, one protocol for all networks",
    network=NetworkSpec(""),
    augmentation=Augmentation(
        flips=True,
        rotation_degrees=15.0,
        scale=0.1,
        intensity_scale=0.1,
        intensity_shift=0.1,
        gamma=(0.8, 1.25),
        noise=0.05,
    ),
    training=Training(
        patches=PATCHES,
        patch_size=(128, 128, 128),
        batch_size=2,
        learning_rate=1e-3,
        weight_decay=1e-5,
        schedule="cosine",
        validate_every=PATCHES // EPOCHS,
        foreground_share=0.5,
    ),
    inference=Inference(window=(128, 128, 128), overlap=0.5),
)

BASELINES = ("unet3d", "vnet", "attention_unet", "segresnet", "dynunet", "swin_unetr", "unetr", "unet2d")
"""Networks of the field, in their own default sizes."""


def fair_recipes(recipes: Iterable[Recipe]) -> list[Recipe]:
    """NAME_fair for the baselines and for every network and ablation among these recipes, each once.

    Rows that differ from an earlier one in their data or protocol only have no twin of their own, nor have reproductions
    that nothing should be compared with (see `cautions`).
    """
    found = [_protocol(name, NetworkSpec(name), slices=name.endswith("2d")) for name in BASELINES]
    for recipe in recipes:
        twin = fair(recipe)
        if not cautions(recipe) and all(replace(twin, name=r.name, source=r.source) != r for r in found):
            found.append(twin)
    return found


def fair(recipe: Recipe, budget: int = PATCHES) -> Recipe:
    """A recipe's network under the common protocol, called NAME_fair; NAME without its modality, where it has only one.

    What it starts from is trained under that protocol too, and the ``budget`` of patches is divided among all of them as
    the paper divides its own.
    """
    stages = [recipe, *(start.recipe for start in recipe.starts_from)]
    total = sum(stage.training.patches for stage in stages)
    shares = [max(budget * stage.training.patches // total, 1) for stage in stages]
    settings = dict(recipe.network.settings)
    if "kind" in settings:  # late fusion has to know what its logits mean
        settings["kind"] = PROTOCOL.target.kind
    name = recipe.name.removesuffix(f"_{recipe.modalities[0]}") if len(recipe.modalities) == 1 else recipe.name
    twin = _protocol(name, NetworkSpec(recipe.network.name, settings), slices=recipe.training.patch_size[0] == 1)
    training = replace(
        twin.training,
        patches=shares[0],
        batch_size=min(twin.training.batch_size, shares[0]),
        validate_every=-(-shares[0] // EPOCHS),
        loss=_loss(recipe),
    )
    starts = zip(recipe.starts_from, shares[1:], strict=True)
    starts_from = tuple(Start(_stage(start.recipe, share), start.into) for start, share in starts)
    return replace(twin, training=training, starts_from=starts_from, frozen=recipe.frozen)


def with_budget(recipe: Recipe, budget: int, spacing_mm: float | None = None) -> Recipe:
    """A recipe of this protocol with another ``budget`` of patches, shared with what it starts from as it was.

    Each of its trainings is validated once, at its end, so that no validation chooses anything; there is one epoch, and a
    loss term that waits for a later one counts from the beginning. With ``spacing_mm`` the network works at that voxel size
    and not at the studies' own 1 mm, on patches and windows of as many millimetres.
    """
    training, scale = recipe.training, spacing_mm or 1.0
    total = sum(stage.training.patches for stage in (recipe, *(start.recipe for start in recipe.starts_from)))

    def share(stage: Recipe) -> int:
        batch = stage.training.batch_size
        return batch * max(round(budget * stage.training.patches / total / batch), 1)

    def scaled(size: Size) -> Size:
        depth, height, width = (max(round(n / scale), 1) for n in size)
        return depth, height, width

    starts = []
    for start in recipe.starts_from:
        stage = with_budget(start.recipe, share(start.recipe), spacing_mm)
        named = replace(stage, name=re.sub(r"\d+$", str(stage.training.patches), stage.name))
        starts.append(replace(start, recipe=named))
    waits = {"inter_from_epoch": 0} if "inter_from_epoch" in training.loss.settings else {}
    own = replace(
        training,
        patches=share(recipe),
        validate_every=share(recipe),
        patch_size=scaled(training.patch_size),
        loss=replace(training.loss, settings=training.loss.settings | waits),
    )
    window = recipe.inference.window
    return replace(
        recipe,
        training=own,
        preprocessing=replace(recipe.preprocessing, spacing_mm=spacing_mm or recipe.preprocessing.spacing_mm),
        inference=replace(recipe.inference, window=window and scaled(window)),
        starts_from=tuple(starts),
    )


def _stage(recipe: Recipe, budget: int) -> Recipe:
    """What another recipe starts from: not the twin of that name, since it has a part of the budget only."""
    twin = fair(recipe, budget)
    return replace(twin, name=f"{twin.name}_{budget}")


def _protocol(name: str, network: NetworkSpec, *, slices: bool) -> Recipe:
    size = SLICES if slices else PROTOCOL.training.patch_size
    return replace(
        PROTOCOL,
        name=f"{name}_fair",
        source=f"{PROTOCOL.source}: the network of {name}",
        network=network,
        training=replace(PROTOCOL.training, patch_size=size),
        inference=replace(PROTOCOL.inference, window=(1, *SLICES[1:]) if slices else size),
    )


def _loss(recipe: Recipe) -> LossSpec:
    """The common loss; a supervised attention module adds its own terms, the last of them after a twentieth of the training."""
    loss = recipe.training.loss
    if loss.name != "supervised_attention":
        return PROTOCOL.training.loss
    common = {"segmentation": PROTOCOL.training.loss.name, "inter_from_epoch": 1, "skip_absent": True}
    return LossSpec(loss.name, loss.settings | common)
