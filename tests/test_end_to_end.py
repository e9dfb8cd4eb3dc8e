"""The whole path on synthetic studies, as a user walks it, with every socket blocked."""

import csv
import socket
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from gliomap.compare import CompareOptions, compare
from gliomap.demo import DemoOptions, demo
from gliomap.errors import UsageError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.model_file import load_model
from gliomap.phantom import PhantomOptions, phantom
from gliomap.segment import SegmentOptions, segment
from gliomap.split import SplitOptions, split
from gliomap.train import TrainOptions, train


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection was opened: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_demo_leaves_a_study_a_segmentation_a_report_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliomap.demo.phantom", lambda asked: phantom(replace(asked, size=asked.size // 2)))
    result = demo(DemoOptions(tmp_path / "demo", quiet=True))
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert names == {"study", "segmentation.nii.gz", "report.html", "scores.csv", "run.json"}
    with (tmp_path / "demo" / "scores.csv").open() as stream:
        dice = {row["region"]: float(row["value"]) for row in csv.DictReader(stream) if row["metric"] == "dice"}
    assert dice == pytest.approx({r.region: r.value for r in result.done[0].scores if r.metric == "dice"}, abs=1e-5)
    assert np.mean(list(dice.values())) > 0.6


def test_split_train_segment_evaluate_compare(tmp_path: Path) -> None:
    data, folds = tmp_path / "data", tmp_path / "folds.json"
    phantom(PhantomOptions(data, studies=4, layout="brats2023", size=32, quiet=True))
    held_out = split(SplitOptions(data, folds, folds=2, seed=1)).folds[0]
    settings = ['network.settings={"base":4}', "preprocessing.spacing_mm=null", "training.patch_size=[16,16,32]"]
    settings += ["training.patches=96", "training.validate_every=96", "training.learning_rate=0.01"]
    settings += ["training.foreground_share=0.7", "training.loss.settings.dice_share=0.5", "training.ema_decay=0.8"]
    options = TrainOptions(
        "attention_resunet_small", data, tmp_path / "run", settings, folds, 0, device="cpu", quiet=True
    )
    model = train(options).model
    assert load_model(model).card["validation_studies"] == held_out
    result = segment(SegmentOptions(data, tmp_path / "out", model=model, device="cpu", quiet=True))
    assert len(result.done) == 4
    from_files = evaluate(EvaluateOptions(tmp_path / "out", data, tmp_path / "a.csv", device="cpu", quiet=True))
    with pytest.raises(UsageError, match="2 of 4 studies, or others of their patients, have trained "):
        evaluate(EvaluateOptions(model, data, tmp_path / "b.csv", device="cpu", quiet=True))
    from_model = evaluate(EvaluateOptions(model, data, tmp_path / "b.csv", seen_too=True, device="cpu", quiet=True))
    assert [r.value for r in from_files.rows] == [r.value for r in from_model.rows]
    seen = [r.value for r in from_model.rows if (r.region, r.metric) == ("WT", "dice") and r.study not in held_out]
    assert np.mean([value or 0.0 for value in seen]) > 0.3
    compared = compare(CompareOptions((tmp_path / "a.csv", tmp_path / "b.csv"), tmp_path / "compare"))
    assert {answer.comparison.difference for answer in compared.answers if answer.comparison.studies > 1} == {0.0}
    assert compared.page.stat().st_size > 10_000


def test_a_bright_voxel_at_a_known_place_is_found_again_in_the_label_map(tmp_path: Path) -> None:
    """Reading, network input, label map and file agree on where a point in mm is, for a LPS and for a RAS file."""
    from gliomap.data.datasets import find_studies  # noqa: PLC0415
    from gliomap.data.images import map_bytes  # noqa: PLC0415
    from gliomap.recipe import with_settings  # noqa: PLC0415
    from gliomap.recipes import find_recipe  # noqa: PLC0415
    from gliomap.segmenter import Engine, Segmenter  # noqa: PLC0415

    point_mm = np.array([20.0, 35.0, 15.0, 1.0])
    recipe = with_settings(
        find_recipe("attention_resunet_small"),
        ["preprocessing.spacing_mm=null", "postprocessing=[]"],
    )

    def brightest(images: np.ndarray) -> np.ndarray:
        logits = np.zeros((1, 4, *images.shape[2:]), np.float32)
        logits[:, 0] = 1
        logits[0, 3][np.unravel_index(images[0, 3].argmax(), images.shape[2:])] = 2
        return logits

    for layout in ("brats2021", "nnunet"):
        folder = tmp_path / layout
        phantom(PhantomOptions(folder, layout=layout, size=48, quiet=True))
        (study,) = find_studies(folder)
        path = study.images["flair"].path
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        voxel = tuple(np.round(np.linalg.inv(image.affine) @ point_mm)[:3].astype(int))
        assert values[voxel] > 0
        values[voxel] = 30_000
        nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
        volume, _ = study.read()
        classes = Segmenter(recipe, (Engine(brightest, (16, 16, 16)),))(volume)
        (tmp_path / "labels.nii.gz").write_bytes(map_bytes(classes, path))
        written = nib.load(tmp_path / "labels.nii.gz")
        assert np.argwhere(np.asarray(written.dataobj) == 3).tolist() == [list(voxel)]
        found_mm = written.affine @ [*voxel, 1]
        assert np.abs(found_mm - point_mm).max() <= 2.5
