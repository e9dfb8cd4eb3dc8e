"""What one step of a training does with gradients, weights and failures."""

import signal
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from gliomap import loop, training_state
from gliomap.checkpoint import CHECKPOINT
from gliomap.errors import InputError, Interrupted, UsageError
from gliomap.files import read_json
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.train import TrainOptions, TrainResult, train

SETTINGS = [
    "network.settings.base=4",
    "preprocessing.spacing_mm=null",
    "training.patch_size=[16,16,16]",
    "inference.window=[16,32,32]",
    "training.batch_size=4",
    "training.patches=4",
    "training.validate_every=4",
    "training.schedule=constant",
]


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    phantom(PhantomOptions(folder, studies=3, size=24, quiet=True))
    return folder


def _train(data: Path | None, output: Path, *settings: str, **changes: object) -> TrainResult:
    values = {"device": "cpu", "quiet": True, "threads": 1} | changes
    recipe = values.pop("recipe", "attention_resunet_small")
    return train(TrainOptions(recipe, data, output, [*SETTINGS, *settings], **values))  # pyright: ignore


def _last(output: Path) -> dict[str, np.ndarray]:
    return load_model(output / "last.safetensors").weights


def _steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Fills with the gradients that each optimiser step is made with."""
    found: list[dict[str, torch.Tensor]] = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: object) -> object:
        found.append(
            {str(n): p.grad.clone() for n, p in enumerate(self.param_groups[0]["params"]) if p.grad is not None}
        )
        return original(self, *arguments)  # pyright: ignore

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return found


def _norm(gradients: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([g.norm() for g in gradients.values()]).norm())


def test_a_batch_in_parts_has_the_mean_of_the_gradients_of_the_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loss without sums over the batch, that is the gradient of the whole batch."""
    from gliomap.losses import LOSSES, cross_entropy_dice  # noqa: PLC0415
    from gliomap.networks import Outputs  # noqa: PLC0415

    def mean_loss(outputs: Outputs, classes: torch.Tensor, target: object, epoch: int) -> dict[str, torch.Tensor]:
        return {"cross_entropy": cross_entropy_dice(outputs, classes, target, epoch)["cross_entropy"]}  # pyright: ignore

    monkeypatch.setitem(LOSSES, "mean_loss", mean_loss)
    gradients = _steps(monkeypatch)
    network = ("network.name=druwas", 'network.settings={"depth": 2}')  # has no statistics of the batch
    for parts in (1, 2, 4):
        more = ('training.loss={"name":"mean_loss","settings":{}}', f"training.accumulation={parts}")
        _train(data, tmp_path / str(parts), *network, *more)
    whole, *others = gradients
    for other in others:
        for name, gradient in whole.items():
            rounding = 1e-2 * float(gradient.abs().max()) + 1e-6  # norms of flat background make much of it
            torch.testing.assert_close(other[name], gradient, atol=rounding, rtol=0)
    with pytest.raises(UsageError, match=r"training\.batch_size"):
        _train(data, tmp_path / "odd", "training.accumulation=3")


def test_gradients_are_scaled_down_to_the_norm_that_is_asked_for_and_logged_as_they_were(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = _steps(monkeypatch)
    for name, settings in (
        ("free", ()),
        ("clipped", ("training.clip_norm=0.01",)),
        ("loose", ("training.clip_norm=1e6",)),
    ):
        _train(data, tmp_path / name, *settings)
    free, clipped, loose = gradients
    assert _norm(free) > 0.05
    assert _norm(clipped) == pytest.approx(0.01, rel=1e-3)
    assert _norm(loose) == pytest.approx(_norm(free))
    logged = [
        float((tmp_path / n / "steps.csv").read_text().splitlines()[1].split(",")[-1]) for n in ("free", "clipped")
    ]
    assert logged == pytest.approx([_norm(free)] * 2, rel=1e-5)


@pytest.mark.parametrize("name", ["head.weight", "encoder.0.0.norm.running_mean"])
def test_with_a_decay_the_weights_and_statistics_that_are_kept_are_running_means(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[torch.Tensor] = []
    original = loop.step

    def step(run: training_state.Run, *arguments: object) -> dict[str, float]:
        line = original(run, *arguments)  # pyright: ignore
        seen.append(run.network.state_dict()[name].clone())
        return line

    monkeypatch.setattr("gliomap.loop.step", step)
    _train(data, tmp_path / "run", "training.ema_decay=0.2", "training.patches=12")
    mean = seen[0]
    for number, values in enumerate(seen[1:], start=1):
        kept = min(0.2, (1 + number) / (10 + number))
        mean = kept * mean + (1 - kept) * values
    np.testing.assert_allclose(_last(tmp_path / "run")[name], mean.numpy(), rtol=1e-5, atol=1e-7)
    assert not np.allclose(mean.numpy(), seen[-1].numpy(), rtol=1e-3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_training_before_it_reaches_the_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    original = loop.backward

    def backward(run: training_state.Run, batch: object) -> dict[str, float]:
        line = original(run, batch)  # pyright: ignore
        if run.progress.patches == 8:
            if what == "loss":
                return line | {"loss_dice": float("nan")}
            next(p for p in run.network.parameters() if p.grad is not None).grad.fill_(float("inf"))  # pyright: ignore
        return line

    _train(
        data, tmp_path / "short", "training.patches=8"
    )  # its network has BatchNorm, whose statistics are to be right
    monkeypatch.setattr("gliomap.loop.backward", backward)
    message = (
        r"not finite after 8 patches: .*(loss_dice is nan|gradient_norm is inf).* in step 3, with the studies .*Phantom"
    )
    with pytest.raises(InputError, match=message):
        _train(data, tmp_path / "run", "training.patches=12")
    weights, before = (_last(tmp_path / name) for name in ("run", "short"))
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    monkeypatch.undo()
    resumed = _train(data, tmp_path / "run", "training.patches=12", resume=True)
    assert resumed.patches == 12


def test_a_disk_that_is_full_between_epochs_does_not_end_a_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training_state.save_checkpoint

    def save(folder: Path, state: dict[str, dict[str, object]]) -> None:
        if state["progress"]["patches"] == 4:
            raise InputError("cannot write checkpoint.pt: No space left on device")
        original(folder, state)

    monkeypatch.setattr("gliomap.training_state.save_checkpoint", save)
    monkeypatch.setattr("gliomap.loop.CHECKPOINT_EVERY_S", 0.0)
    result = _train(data, tmp_path / "run", "training.patches=8", "training.validate_every=8")
    assert result.ended == "budget reached"
    assert any("No space left" in text for text in result.warnings)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_comes_to_the_same_end(data: Path, tmp_path: Path) -> None:
    settings = ("training.patches=16", "training.validate_every=4")
    _train(data, tmp_path / "whole", *settings)
    run = tmp_path / "run"
    _train(data, run, *settings)
    raw = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(raw[:-100])
    result = _train(data, run, *settings, resume=True)
    assert any("continues from checkpoint.previous.pt" in text for text in result.warnings)
    assert all(np.array_equal(_last(run)[n], w) for n, w in _last(tmp_path / "whole").items())


def test_a_resumed_training_keeps_its_threads_and_says_what_another_number_costs(data: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", torch.get_num_threads()
    settings = ("training.patches=8",)
    _train(data, run, *settings, threads=2, max_time_s=1e-6)
    assert read_json(run / "run.json")["threads"] == 2
    assert torch.get_num_threads() == before
    result = _train(data, run, *settings, threads=None, resume=True, max_time_s=1e-6)
    assert not [text for text in result.warnings if "threads" in text]
    assert read_json(run / "run.json")["threads"] == 2
    result = _train(data, run, *settings, threads=1, resume=True)
    assert any("begun with 2 threads and goes on with 1" in text for text in result.warnings)


def test_deterministic_training_allows_no_other_algorithms(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = loop.backward

    def backward(*arguments: object) -> dict[str, float]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*arguments)  # pyright: ignore

    monkeypatch.setattr("gliomap.loop.backward", backward)
    for name, deterministic in (("a", True), ("b", True), ("c", False)):
        _train(data, tmp_path / name, deterministic=deterministic)
    assert seen == [True, True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(np.array_equal(_last(tmp_path / "a")[n], w) for n, w in _last(tmp_path / "b").items())

    def impossible(*_: object) -> dict[str, float]:
        raise RuntimeError("upsample does not have a deterministic implementation")

    monkeypatch.setattr("gliomap.loop.backward", impossible)
    with pytest.raises(UsageError, match="--deterministic is not possible here: upsample"):
        _train(data, tmp_path / "d", deterministic=True)


def test_training_begins_with_the_weights_of_a_model_file_also_with_another_activation(
    data: Path, tmp_path: Path
) -> None:
    settings = ("network.settings.depth=2", "training.learning_rate=1e-12", "inference.window=[16,16,16]")
    no_base = [s for s in SETTINGS if "base" not in s]
    first = train(TrainOptions("druwas", data, tmp_path / "relu", [*no_base, *settings], device="cpu", quiet=True))
    more = {"device": "cpu", "quiet": True, "begin_with": first.model}
    silu = [*no_base, *settings, "network.settings.activation=silu"]
    second = train(TrainOptions("druwas", data, tmp_path / "silu", silu, seed=1, **more))  # pyright: ignore
    for name, weights in load_model(first.model).weights.items():
        np.testing.assert_allclose(load_model(second.model).weights[name], weights, atol=1e-9)
    told = load_model(second.model).card["starts_from"]
    assert [start["content_sha256"] for start in told.values()] == [load_model(first.model).content_sha256]
    used = [load_model(r.model).card for r in (first, second)]
    leaks = set(used[0]["training_studies"]) & set(used[1]["validation_studies"])
    assert any("their scores flatter" in text for text in second.warnings) == bool(leaks)
    with pytest.raises(UsageError, match=r"no weights of .* fit"):
        _train(data, tmp_path / "other", begin_with=first.model)


def test_what_a_training_warned_of_is_still_told_after_it_was_resumed(data: Path, tmp_path: Path) -> None:
    first = _train(data, tmp_path / "first")
    settings = ("training.patches=8",)
    wider = ("network.settings.fusion=true",)  # some weights have no place
    begun = _train(data, tmp_path / "run", *settings, *wider, begin_with=first.model, max_time_s=1e-6)
    assert any("weights are new" in text for text in begun.warnings)
    resumed = _train(data, tmp_path / "run", *settings, *wider, begin_with=first.model, resume=True)
    assert [text for text in begun.warnings if text not in resumed.warnings] == []


def test_files_that_changed_are_not_taken_for_those_the_training_has_seen(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    ids = phantom(PhantomOptions(folder, studies=3, size=24, quiet=True))
    _train(folder, tmp_path / "run", "training.patches=8", max_time_s=1e-6)
    image = folder / ids[0] / f"{ids[0]}_t2.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(image).dataobj) * 2, nib.load(image).affine), image)
    with pytest.raises(
        UsageError, match="1 studies, such as BraTS2021_PhantomV1_00000, are not those that the training"
    ):
        _train(folder, tmp_path / "run", "training.patches=8", resume=True)


def test_ctrl_c_in_the_last_validation_is_not_lost(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.dice

    def pressed(*arguments: object) -> float:
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("gliomap.loop.dice", original)
        return 0.5

    monkeypatch.setattr("gliomap.loop.dice", pressed)
    with pytest.raises(Interrupted, match="has come to its end after 4 patches"):
        _train(data, tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["ended"] == "budget reached"


def test_the_best_model_is_there_while_the_time_limit_validates(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("training.patches=16", "training.validate_every=8")
    original = loop.step

    def late(run: training_state.Run, *arguments: object) -> dict[str, float]:
        line = original(run, *arguments)  # pyright: ignore
        run.late = run.progress.patches == 8
        return line

    monkeypatch.setattr("gliomap.loop.step", late)
    scores = iter([0.9] * 3)  # the epoch's; the time limit's is worse
    monkeypatch.setattr("gliomap.loop.dice", lambda *_: next(scores, None) or _killed())
    with pytest.raises(KeyboardInterrupt):
        _train(data, tmp_path / "run", *settings)
    assert load_model(tmp_path / "run" / "model.safetensors").card["patches"] == 8
    monkeypatch.undo()
    result = _train(data, tmp_path / "run", *settings, resume=True)
    assert result.patches == 16
    assert not (tmp_path / "run" / "best_epoch.safetensors").exists()


def _killed() -> float:
    raise KeyboardInterrupt


def test_phantoms_train_alone_or_beside_studies_and_then_validate_nothing(data: Path, tmp_path: Path) -> None:
    _train(None, tmp_path / "alone", phantoms=4, phantom_size=24)
    used = read_json(tmp_path / "alone" / "run.json")["studies"]
    assert (len(used["training"]), len(used["validation"])) == (3, 1)
    _train(data, tmp_path / "mixed", phantoms=2, phantom_size=24)
    used = read_json(tmp_path / "mixed" / "run.json")["studies"]
    assert (len(used["training"]), len(used["validation"])) == (4, 1)
    with pytest.raises(UsageError, match="or --phantoms 100"):
        _train(None, tmp_path / "none")


def test_a_training_killed_before_its_first_checkpoint_begins_anew(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path / "run")
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert _train(data, tmp_path / "run", resume=True).patches == 4


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused() -> None:
    from gliomap.distribution import share_of_batch  # noqa: PLC0415
    from gliomap.recipes import RECIPES  # noqa: PLC0415

    training = RECIPES["druwas"].training
    assert share_of_batch(training, 2) == training.batch_size / 2
    with pytest.raises(UsageError, match=r"4 and cannot be divided equally into 1 parts in each of 3 .* such as 6"):
        share_of_batch(training, 3)


def test_the_page_shows_the_best_and_the_worst_of_the_validation_studies(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([0.5, 0.9, 0.1, 0.4])
    monkeypatch.setattr(loop, "dice", lambda *_: value)
    phantom(PhantomOptions(tmp_path / "more", studies=6, size=24, quiet=True))
    original = loop.example

    def example(*arguments: object) -> object:
        nonlocal value
        value = next(means, 0.4)
        return original(*arguments)  # pyright: ignore

    value = next(means)
    monkeypatch.setattr(loop, "example", example)
    output = tmp_path / "run"
    _train(tmp_path / "more", output, "training.validation_share=0.67")
    ids = read_json(output / "run.json")["studies"]["validation"]
    page = (output / "training.html").read_text()
    shown = [line for line in page.split("<h3>")[1:] if ":" in line]
    assert [line.split(":")[0] for line in shown] == [ids[2], ids[1], ids[0]]
    assert [line.split("</h3>")[0].split(": ")[1].split(" of all")[0] for line in shown] == [
        "the lowest mean Dice",
        "the highest mean Dice",
        "the first validation study",
    ]


def test_the_examples_of_all_processes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[object], own: object) -> None:
        found[:] = [own, {1: "theirs"}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    alone, both = (SimpleNamespace(fabric=SimpleNamespace(world_size=count)) for count in (1, 2))
    assert loop._of_all({0: "own"}, alone) == {0: "own"}  # pyright: ignore
    assert loop._of_all({0: "own"}, both) == {0: "own", 1: "theirs"}  # pyright: ignore
