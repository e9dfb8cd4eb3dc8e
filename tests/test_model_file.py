import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from gliomap.errors import InputError, IntegrityError, UsageError
from gliomap.model_file import (
    MAX_HEADER_BYTES,
    content_hash,
    default_model,
    load_model,
    save_changed,
    save_ensemble,
    save_model,
)
from gliomap.recipe import Coarse
from gliomap.recipes import RECIPES

RECIPE = RECIPES["attention_resunet"]
CARD = {"seed": 3, "validation": {"dice_WT": 0.5}, "training_studies": ["ä", "b"]}


def weights():
    rng = np.random.default_rng(0)
    return {
        "encoder.weight": rng.normal(size=(3, 2, 2)).astype(np.float32),
        "encoder.half": rng.normal(size=5).astype(np.float16),
        "norm.num_batches_tracked": np.array(7),
    }


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "some.safetensors"
    save_model(path, RECIPE, weights(), CARD)
    return path


def split(raw):
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_metadata(path, **changes):
    header, data = split(path.read_bytes())
    header["__metadata__"] |= changes
    path.write_bytes(joined(header, data))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


def assert_refused(path, match=None):
    with pytest.raises(IntegrityError, match=match) as caught:
        load_model(path)
    assert caught.value.exit_code == 4


def test_round_trip(model):
    loaded = load_model(model)
    assert loaded.name == f"{RECIPE.name}-{loaded.content_sha256[:8]}"
    assert loaded.recipe == RECIPE
    assert loaded.card == CARD
    assert loaded.content_sha256 == content_hash(weights())
    assert list(loaded.weights) == sorted(weights())
    for name, array in weights().items():
        assert loaded.weights[name].dtype == array.dtype
        assert loaded.weights[name].shape == array.shape
        np.testing.assert_array_equal(loaded.weights[name], array)


def test_transposed_weights_are_saved_as_they_are_seen(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    save_model(tmp_path / "m.safetensors", RECIPE, {"w": array}, {})
    np.testing.assert_array_equal(load_model(tmp_path / "m.safetensors").weights["w"], array)


def test_header_is_what_the_design_says(model):
    metadata = split(model.read_bytes())[0]["__metadata__"]
    assert set(metadata) == {"format_version", "kind", "members", "card", "content_sha256"}
    assert (metadata["format_version"], metadata["kind"]) == ("3", "single")
    (member,) = json.loads(metadata["members"])
    assert (member["prefix"], member["role"], member["recipe"]["name"]) == ("", "network", RECIPE.name)


def test_hash_is_of_names_types_shapes_and_bytes_in_any_order():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32)}
    assert content_hash(dict(reversed(base.items()))) == content_hash(base)
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"].view(np.int32), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({content_hash(w) for w in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize("place", [0, 9, -1])
def test_one_flipped_bit_of_the_weights_is_refused(model, place):
    header, data = split(model.read_bytes())
    changed = bytearray(data)
    changed[place] ^= 1
    model.write_bytes(joined(header, bytes(changed)))
    assert_refused(model, "not the ones it was saved with")


def test_renamed_reshaped_and_missing_weights_are_refused(model):
    raw = model.read_bytes()
    for change in (
        lambda h: h.update(other=h.pop("encoder.weight")),
        lambda h: h["encoder.weight"].update(shape=[2, 3, 2]),
        lambda h: h["encoder.weight"].update(dtype="I32"),
    ):
        header, data = split(raw)
        change(header)
        model.write_bytes(joined(header, data))
        assert_refused(model, "not the ones it was saved with")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_types_that_numpy_lacks_are_refused(model, dtype):
    header, data = split(model.read_bytes())
    wide = header["encoder.weight"]
    wide["shape"] = [12, 24 // 12 if dtype == "BF16" else 4]
    wide["dtype"] = dtype
    model.write_bytes(joined(header, data))
    assert_refused(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": "1"},
        {"format_version": ""},
        {"kind": "ensemble"},
        {"content_sha256": "0" * 64},
        {"members": "not json"},
        {"members": "[]"},
        {"members": "3"},
        {"members": '["text"]'},
        {"members": '[{"recipe": {"name": "half"}}]'},
        {"members": "[" * 50_000},
        {"card": "{"},
        {"card": "[" * 50_000},
    ],
    ids=lambda changes: "".join(f"{k}={v[:12]}" for k, v in changes.items()),
)
def test_edited_metadata_is_refused(model, changes):
    with_metadata(model, **changes)
    assert_refused(model)


def test_edited_recipe_with_an_unknown_field_is_refused(model):
    members = json.loads(split(model.read_bytes())[0]["__metadata__"]["members"])
    members[0]["recipe"]["extra"] = 1
    with_metadata(model, members=json.dumps(members))
    assert_refused(model, "extra")


def test_safetensors_of_another_program_is_refused(tmp_path):
    path = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    assert_refused(path, "format version None")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"just some text, longer than a length", b"\0" * 64, b"\x02" + b"\0" * 7]
)
def test_files_that_are_no_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "text.safetensors"
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("keep", [4, 8, 40, -1])
def test_truncated_files_are_refused(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    assert_refused(model)


def test_longer_files_are_refused(model):
    model.write_bytes(model.read_bytes() + b"more")
    assert_refused(model)


def test_a_header_over_a_megabyte_is_refused(model):
    with_metadata(model, filler="x" * MAX_HEADER_BYTES)
    assert_refused(model, "header would have")


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "model.safetensors"
    pickled = pickle.dumps(Trap(sprung))
    torch.save({"weights": Trap(sprung)}, path)
    assert_refused(path)
    for content in (pickled, len(pickled).to_bytes(8, "little") + pickled):
        path.write_bytes(content)
        assert_refused(path)
    assert not sprung.exists()
    pickle.loads(pickled)
    assert sprung.exists()  # the trap works


def test_missing_files_and_folders_are_bad_input(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot read the model"):
            load_model(path)


def member(folder, name, recipe=RECIPE, factor=1.0, **card):
    """A single model read back from a file."""
    scaled = {key: (array * factor).astype(array.dtype) for key, array in weights().items()}
    save_model(folder / f"{name}.safetensors", recipe, scaled, card)
    return load_model(folder / f"{name}.safetensors")


@pytest.fixture(name="ensemble")
def _ensemble(tmp_path):
    members = [member(tmp_path, str(n), factor=1.0 + n, seed=n) for n in range(11)]  # so that 1. begins no 10.
    path = tmp_path / "ensemble.safetensors"
    save_ensemble(path, members)
    return path


def test_an_ensemble_gives_back_the_weights_of_each_member(ensemble):
    loaded = load_model(ensemble)
    assert loaded.name == f"{RECIPE.name}_ensemble-{loaded.content_sha256[:8]}"
    assert loaded.recipe == RECIPE
    assert len(loaded.members) == 11
    for number, own in enumerate(loaded.members):
        assert own.keys() == weights().keys()
        np.testing.assert_array_equal(own["encoder.weight"], weights()["encoder.weight"] * np.float32(1 + number))
    assert loaded.content_sha256 == content_hash(loaded.weights)
    (single,) = load_model(ensemble.parent / "3.safetensors").members
    assert content_hash(single) == loaded.card["members"][3]["content_sha256"]
    assert [told["seed"] for told in loaded.card["members"]] == list(range(11))


def test_header_of_an_ensemble_is_what_the_design_says(ensemble):
    metadata = split(ensemble.read_bytes())[0]["__metadata__"]
    assert set(metadata) == {"format_version", "kind", "members", "card", "content_sha256"}
    assert (metadata["format_version"], metadata["kind"]) == ("3", "ensemble")
    members = json.loads(metadata["members"])
    assert [told["prefix"] for told in members] == [f"{n}." for n in range(11)]
    assert {(told["role"], told["recipe"]["name"]) for told in members} == {("network", RECIPE.name)}


def test_a_study_that_any_member_trained_on_trains_the_ensemble(tmp_path):
    first = member(tmp_path, "a", training_studies=["1", "2"], validation_studies=["3"], test_studies=["4", "5", "6"])
    second = member(
        tmp_path, "b", training_studies=["2", "3"], validation_studies=["4", "1"], test_studies=["6"], cautions=["care"]
    )
    save_ensemble(tmp_path / "e.safetensors", [first, second])
    card = load_model(tmp_path / "e.safetensors").card
    assert card["training_studies"] == ["1", "2", "3"]
    assert card["validation_studies"] == ["4"]
    assert card["test_studies"] == ["5", "6"]
    assert card["cautions"] == ["care"]
    assert not any("training_studies" in told for told in card["members"])


def test_recipes_of_an_ensemble_may_differ_in_name_and_source_only(tmp_path):
    first = member(tmp_path, "a")
    renamed = member(tmp_path, "b", replace(RECIPE, name="again", source="elsewhere"))
    save_ensemble(tmp_path / "e.safetensors", [first, renamed])
    assert load_model(tmp_path / "e.safetensors").recipe == RECIPE
    other = member(tmp_path, "c", replace(RECIPE, training=replace(RECIPE.training, patches=7)))
    ensemble = load_model(tmp_path / "e.safetensors")
    for models, match in (([first, other], "differ in more"), ([first], "at least 2"), ([first, ensemble], "single")):
        with pytest.raises(UsageError, match=match):
            save_ensemble(tmp_path / "refused.safetensors", models)
    assert not (tmp_path / "refused.safetensors").exists()


def test_one_flipped_bit_of_any_member_is_refused(ensemble):
    header, data = split(ensemble.read_bytes())
    for place in (0, len(data) // 2, -1):
        changed = bytearray(data)
        changed[place] ^= 1
        ensemble.write_bytes(joined(header, bytes(changed)))
        assert_refused(ensemble, "not the ones it was saved with")


def test_members_that_do_not_share_out_the_weights_are_refused(ensemble):
    original = json.loads(split(ensemble.read_bytes())[0]["__metadata__"]["members"])
    other = json.loads(json.dumps(original))
    other[1]["recipe"]["training"]["patches"] = 7
    for members in (
        original[:-1],
        original[:1],
        [*original, original[0]],
        other,
        [told | {"prefix": ""} for told in original],
    ):
        with_metadata(ensemble, members=json.dumps(members))
        assert_refused(ensemble, "too few, of different recipes, or share weights")
    with_metadata(ensemble, members=json.dumps([{"recipe": told["recipe"]} for told in original]))
    assert_refused(ensemble, "prefix")


def test_a_file_that_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(InputError, match="its header would have"):
        save_model(tmp_path / "large.safetensors", RECIPE, weights(), {"note": "x" * MAX_HEADER_BYTES})
    assert not list(tmp_path.iterdir())


def test_saving_leaves_no_temporary_files(model):
    save_model(model, replace(RECIPE, name="second"), weights(), {})
    assert [p.name for p in model.parent.iterdir()] == ["some.safetensors"]
    assert load_model(model).recipe.name == "second"


def test_default_model_loads_where_it_ships():
    path = default_model()
    if path is not None:
        loaded = load_model(path)
        assert loaded.prefixes == ("",)
        assert loaded.name == f"{loaded.recipe.name}-{loaded.content_sha256[:8]}"
        (weights_of_it,) = loaded.members
        assert weights_of_it.keys() == loaded.weights.keys()


CASCADE = replace(RECIPE, name="cascade", coarse=Coarse(RECIPE, 5.0))


@pytest.fixture(name="cascade")
def _cascade(tmp_path):
    first = member(tmp_path, "first", factor=3.0)
    path = tmp_path / "cascade.safetensors"
    save_model(path, CASCADE, weights(), {"seed": 1}, first)
    return path


def test_a_cascade_gives_back_both_networks(cascade):
    loaded = load_model(cascade)
    assert (loaded.name, loaded.recipe) == (f"cascade-{loaded.content_sha256[:8]}", CASCADE)
    assert loaded.coarse is not None
    first = load_model(cascade.parent / "first.safetensors")
    assert (loaded.coarse.recipe, loaded.coarse.name) == (RECIPE, first.name)
    assert loaded.coarse.content_sha256 == first.content_sha256
    for one, factor in ((loaded, 1.0), (loaded.coarse, 3.0)):
        (own,) = one.members
        assert own.keys() == weights().keys()
        np.testing.assert_array_equal(own["encoder.weight"], weights()["encoder.weight"] * np.float32(factor))


def test_a_cascade_is_told_from_what_it_is_not(cascade):
    header, data = split(cascade.read_bytes())
    metadata = header["__metadata__"]
    assert metadata["kind"] == "cascade"
    members = json.loads(metadata["members"])
    assert [(told["prefix"], told["role"]) for told in members] == [("0.", "network"), ("coarse.0.", "coarse")]
    flipped = bytearray(data)
    flipped[-1] ^= 1
    cascade.write_bytes(joined(header, bytes(flipped)))
    assert_refused(cascade, "not the ones it was saved with")
    other = json.loads(metadata["members"])
    other[1]["recipe"]["training"]["patches"] += 1
    orphan = json.loads(metadata["members"])
    orphan[0]["role"] = "coarse"
    for changed in (other, orphan, members[:1], members[1:]):
        cascade.write_bytes(joined({**header, "__metadata__": metadata | {"members": json.dumps(changed)}}, data))
        assert_refused(cascade, "cannot be read")
    cascade.write_bytes(joined({**header, "__metadata__": metadata | {"kind": "single"}}, data))
    assert_refused(cascade, "make no single")


def test_cascades_together_look_where_their_first_networks_together_find_tumour(tmp_path):
    for number in range(2):
        first = member(tmp_path, f"first{number}", factor=3.0 + number)
        scaled = {key: (array * (1 + number)).astype(array.dtype) for key, array in weights().items()}
        save_model(tmp_path / f"{number}.safetensors", CASCADE, scaled, {}, first)
    save_ensemble(tmp_path / "both.safetensors", [load_model(tmp_path / f"{n}.safetensors") for n in range(2)])
    loaded = load_model(tmp_path / "both.safetensors")
    assert loaded.coarse is not None
    for one, factors in ((loaded, (1, 2)), (loaded.coarse, (3, 4))):
        assert [own["encoder.weight"].ravel()[1] for own in one.members] == [
            pytest.approx(weights()["encoder.weight"].ravel()[1] * factor) for factor in factors
        ]
    save_changed(tmp_path / "again.safetensors", loaded, replace(CASCADE, name="again"), {"seed": 5})
    again = load_model(tmp_path / "again.safetensors")
    assert (again.content_sha256, again.card, again.recipe.name) == (loaded.content_sha256, {"seed": 5}, "again")


def test_a_file_never_says_of_another_that_it_finds_the_tumour(tmp_path):
    first = member(tmp_path, "first")
    twice = replace(CASCADE, name="twice", coarse=Coarse(CASCADE))
    save_model(tmp_path / "cascade.safetensors", CASCADE, weights(), {}, first)
    for recipe, coarse in ((RECIPE, first), (CASCADE, None), (twice, load_model(tmp_path / "cascade.safetensors"))):
        with pytest.raises(ValueError, match="finds the tumour"):
            save_model(tmp_path / "wrong.safetensors", recipe, weights(), {}, coarse)
