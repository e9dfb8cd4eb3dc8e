# make demo and make test are all a newcomer needs. Each sets up .venv first, and can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test acceptance default-model lint format clean

install: $(INSTALLED)

# The requirements of this set-up; a .venv made by hand is taken over and brought to them.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[itk,fast,export,explain]" --group dev
	touch $@

demo: install
	$(BIN)/gliomap demo --output demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What takes too long for the tests: one line per claim, with what was measured.
acceptance: install
	$(BIN)/python scripts/acceptance.py

# Trains, cross-validates and packs the model that ships, in some hours; what is interrupted continues. REAL has the labelled studies.
REAL ?= $(or $(GLIOMAP_REAL_DATA),../shared/data)
default-model: install
	$(BIN)/python scripts/default_model.py default-model $(addprefix $(REAL)/,training brats2020 brats2021 brats2023 brats2024_ssa)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
