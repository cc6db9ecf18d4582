# Two commands: `make demo` trains end to end on this machine, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Written once at installation: without bytecode every process of a run compiles verl and sglang again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-faults check-gpu canary data bench bench-estimators theorems schedules compare compare-priors compare-fusion small-v0 lint clean

# `make data ARGS="--local DIR"`, `make bench MODEL=FOLDER_OR_HUB_ID ARGS="--benchmarks aime24 amc23"`. Without a model and
# without a GPU, bench asks a small model a sample.
MODEL ?=
ARGS ?=

# Two processes, and files in the order of their collection: trainings come last and find both cores free.
PYTEST := python -m pytest -n 2 --no-loadscope-reorder

demo: $(VENV)/installed
	python -m recipes.demo

test: $(VENV)/installed
	$(PYTEST) -m "not faults"

test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow"

# Seconds of those that pass go into docs/failures.md.
test-faults: $(VENV)/installed
	python -m pytest -m "faults or stated" --record $(ARGS)

# What works on this machine's GPU, in stages: ARGS="--only packages v05". Without a GPU: what needs none.
check-gpu: $(VENV)/installed
	python -m verl_v05.check_gpu $(ARGS)

# The newest verl and sglang that go together, in an environment of their own; not in CI. ARGS=resolve only names them.
canary: $(VENV)/installed
	recipes/canary.sh $(ARGS)

data: $(VENV)/installed
	python -m recipes.data $(ARGS)

bench: $(VENV)/installed
	python -m benchmarks.bench $(MODEL) $(ARGS)

# Needs the public data and a value model trained on them: ARGS="--public FOLDER --prior-model MODEL --encoder FOLDER".
bench-estimators: $(VENV)/installed
	python -m benchmarks.estimators $(ARGS)

theorems: $(VENV)/installed
	python -m benchmarks.theorems $(ARGS)

schedules: $(VENV)/installed
	python -m benchmarks.schedules $(ARGS)

compare: $(VENV)/installed
	python -m benchmarks.training.compare_methods

compare-priors: $(VENV)/installed
	python -m benchmarks.training.compare_priors

compare-fusion: $(VENV)/installed
	python -m benchmarks.training.compare_fusions $(ARGS)

small-v0: $(VENV)/installed
	recipes/value_model/small.sh runs/value_model/small

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==0.13.9
	uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs
