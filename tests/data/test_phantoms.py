import numpy as np
import pytest

from gliomap.data import phantoms
from gliomap.data.datasets import count_layouts, find_studies
from gliomap.data.folds import draw_split
from gliomap.data.phantoms import FIRST_NUMBER, STUDIES_PER_SEED, PhantomStudy, phantom_studies
from gliomap.data.study import Study
from gliomap.errors import InputError, UsageError
from gliomap.phantom import PhantomOptions, phantom


@pytest.mark.parametrize("modalities", [("t1", "t1c", "t2", "flair"), ("flair", "t1")])
def test_a_phantom_is_what_gliomap_phantom_writes_and_a_study_reads(modalities, tmp_path):
    phantom(PhantomOptions(tmp_path, seed=4, size=31, randomise=0.5, quiet=True))  # 240 / 31 mm has more than 32 bits
    (written,) = find_studies(tmp_path)
    grown = PhantomStudy("p", {}, number=4 * STUDIES_PER_SEED, size=31, randomise=0.5)
    (volume, warnings), (expected, expected_warnings) = grown.read(modalities), written.read(modalities)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.array.dtype == expected.array.dtype
    assert warnings == expected_warnings
    (classes, convention, odd), (truth, _, _) = grown.read_classes(), written.read_classes()
    np.testing.assert_array_equal(classes.array, truth.array)
    np.testing.assert_array_equal(classes.affine, truth.affine)
    assert classes.array.dtype == truth.array.dtype
    assert convention.values == written.convention.values
    assert odd == []


def test_phantoms_are_numbered_by_seed_far_from_those_in_folders():
    def numbers(seed):
        return {study.number for study in phantom_studies(STUDIES_PER_SEED, seed)}

    assert len(numbers(0) | numbers(1)) == 2 * STUDIES_PER_SEED
    assert min(numbers(0)) == FIRST_NUMBER
    assert STUDIES_PER_SEED * 20_301_231 + STUDIES_PER_SEED < FIRST_NUMBER  # whoever takes the date for a seed
    assert phantom_studies(3, 1) == phantom_studies(5, 1)[:3]
    with pytest.raises(UsageError, match="at most"):
        phantom_studies(STUDIES_PER_SEED + 1)


def test_phantoms_walk_like_studies():
    studies = phantom_studies(10, 2, 24)
    assert all(isinstance(s, Study) and s.label and not s.problem for s in studies)
    assert len({s.id for s in studies}) == len({s.patient for s in studies}) == 10
    assert sum(count_layouts(studies).values()) == 10
    real = [Study(f"real_{n}", {}) for n in range(10)]
    training, validation, _ = draw_split([*studies, *real], 0.2, 0.0, 0, 0)
    assert [sum(s in studies for s in part) for part in (training, validation)] == [8, 2]


def test_the_hash_of_a_phantom_is_of_all_that_it_follows_from(monkeypatch):
    def digest(**settings):
        return phantom_studies(1, **settings)[0].content_sha256()

    assert digest() == digest(seed=0, size=240, randomise=0.0)
    others = {digest(seed=1), digest(size=64), digest(randomise=0.5), phantom_studies(2)[1].content_sha256()}
    assert len(others | {digest()}) == 5
    before = digest()
    for name, value in (("GENERATOR_VERSION", 0), ("GROWN_BY", ("gliomap.errors",)), ("version", str)):
        with monkeypatch.context() as patch:
            patch.setattr(f"gliomap.data.phantoms.{name}", value)
            phantoms._generator.cache_clear()
            assert digest() != before
    phantoms._generator.cache_clear()
    assert digest() == before


def test_a_modality_that_no_phantom_has_is_refused():
    with pytest.raises(InputError, match="no modality adc"):
        phantom_studies(1, 0, 24)[0].read(("t1", "adc"))
