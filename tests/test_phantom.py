import json
from pathlib import Path

import numpy as np
import pytest

from gliomap.data.datasets import find_studies
from gliomap.data.synthetic import GENERATOR_VERSION, make_phantom
from gliomap.data.writing import LAYOUTS
from gliomap.errors import UsageError
from gliomap.phantom import PhantomOptions, phantom


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_phantom_is_read_back_as_it_was_made_from_every_layout(layout: str, tmp_path: Path) -> None:
    ids = phantom(PhantomOptions(tmp_path, studies=2, layout=layout, seed=4, size=32, quiet=True))
    studies = find_studies(tmp_path)
    assert [s.id for s in studies] == sorted(ids)
    for study, number in zip(studies, (40_000, 40_001), strict=True):
        made = make_phantom(number, size=32)
        volume, warnings = study.read()
        np.testing.assert_array_equal(volume.array, made.images)
        np.testing.assert_allclose(volume.affine, made.affine, atol=1e-4)
        assert warnings == []
        np.testing.assert_array_equal(study.read_classes()[0].array[0], made.classes)


def test_the_generators_version_stands_in_every_study(tmp_path: Path) -> None:
    (study,) = phantom(PhantomOptions(tmp_path, size=32, quiet=True))
    assert f"PhantomV{GENERATOR_VERSION}_" in study
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["generator_version"] == GENERATOR_VERSION
    assert record["studies"][0]["seed"] == 0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        phantom(PhantomOptions(tmp_path / name, size=32, seed=7, quiet=True))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.nii.gz"))
    assert len(files) == 5
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    "changes", [{"layout": "dicom"}, {"randomise": 2.0}, {"size": 8}, {"size": 4000}, {"kind": "huge"}, {"studies": 0}]
)
def test_options_out_of_range_are_refused_and_nothing_is_written(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected|choose"):
        phantom(PhantomOptions(tmp_path / "out", quiet=True, **changes))
    assert not (tmp_path / "out").exists()
