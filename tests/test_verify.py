import json

import pytest
from models import tiny_model

from gliomap.cli import app
from gliomap.errors import IntegrityError
from gliomap.files import sha256
from gliomap.model_file import save_model
from gliomap.verify import verify


@pytest.fixture
def model(tmp_path):
    made = tiny_model("attention_resunet")
    save_model(tmp_path / "m.safetensors", made.recipe, made.weights, {"data": "none", "seed": 3})
    return tmp_path / "m.safetensors"


def test_the_model_that_ships_is_what_its_maker_wrote():
    found = verify()
    assert found.compared
    assert found.card["intended_use"].startswith("research")


def test_a_model_alone_is_compared_with_what_it_says_itself(model):
    found = verify(model)
    assert not found.compared
    assert found.file_sha256 == sha256(model)
    assert found.parameters == sum(array.size for array in tiny_model("attention_resunet").weights.values())


def test_weights_that_changed_are_refused(model):
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(IntegrityError, match="not the ones it was saved with"):
        verify(model)


@pytest.mark.parametrize("stated", ["0" * 64, "", "\xff"])
def test_a_card_that_changed_is_told_by_the_hash_beside_the_file(model, stated):
    beside = model.with_name("m.safetensors.sha256")
    beside.write_text(f"{sha256(model)}  m.safetensors\n")
    assert verify(model).compared
    model.write_bytes(model.read_bytes().replace(b'\\"seed\\": 3', b'\\"seed\\": 4'))
    with pytest.raises(IntegrityError, match="has the SHA-256"):
        verify(model)
    beside.write_text(stated, "latin-1")
    with pytest.raises(IntegrityError, match="has the SHA-256"):
        verify(model)


def test_the_verb_prints_the_card_and_refuses_a_file_without_verify(model, capsys):
    app(["models", "verify", str(model), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["card"] == {"data": "none", "seed": 3}
    app(["models", "verify", str(model)], standalone_mode=False)
    assert "whole" in (out := capsys.readouterr().out)
    assert "data: none" in out
