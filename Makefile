# Everything runs in .venv; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-all check clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[train,dev]' --config-settings editable_mode=compat
	touch $@

quickstart: $(STAMP)  ## the whole R1 chain on this machine, minutes on 2 cores; prints where the report is
	$(BIN)/rlreason run quickstart

test: $(STAMP) check  ## what CI runs
	$(BIN)/pytest

test-all: $(STAMP) check  ## also the slow ones
	$(BIN)/pytest -m ''

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
