# Set-up happens by itself: every target below first makes .venv when it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Idle OpenMP threads spin by default; on a shared core that costs far more than it gains.
export OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS ?= 2
# Compiled modules are kept: compiling them again, with shape checks, takes every process 20 seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check

# A test process a core, each with one thread: two threads in each of two processes would be slower.
# A file stays in one process, so that what its tests share is made once.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

DOCS := .venv-docs

.PHONY: help setup quickstart docs test test-all test-bits test-oldest test-int8 resume-matrix lint typecheck check benchmark
.PHONY: real-model second-real-model clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

setup: $(VENV)/.done  ## make .venv with the tested versions

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; about two minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@# torch goes first and exactly: a range would take the newest build, with gigabytes of CUDA.
	@$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install -c constraints.txt -e '.[dev,harness]'
	@touch $@

quickstart: $(VENV)/.done  ## edit 20 facts with ROME in the embedded model and measure what moved
	@$(BIN)/lightning-edit edit --config configs/quickstart.yaml

test test-all: export OMP_NUM_THREADS = 1

test: $(VENV)/.done  ## run the default tests
	@$(BIN)/python -m pytest -q $(PARALLEL)

test-all: $(VENV)/.done  ## run every test that needs no GPU
	@$(BIN)/python -m pytest -q $(PARALLEL) -m "not gpu"

OLDEST := .venv-oldest

$(OLDEST)/.done: pyproject.toml constraints-oldest.txt
	@echo "Setting up $(OLDEST) (once; about two minutes) ..."
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip --quiet --quiet --disable-pip-version-check install \
		"$$(grep '^torch==' constraints-oldest.txt)"
	@$(OLDEST)/bin/python -m pip --quiet --quiet --disable-pip-version-check install \
		-c constraints-oldest.txt -e '.[test]'
	@touch $@

test-oldest: export OMP_NUM_THREADS = 1

# Old versions of others' packages warn on a newer Python; those warnings are not ours to mend.
test-oldest: $(OLDEST)/.done  ## run the default tests with the oldest versions that are allowed
	@$(OLDEST)/bin/python -m pytest -q $(PARALLEL) -p no:cacheprovider \
		-W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning -W ignore::ImportWarning

# A stand-in for a processor of another maker: PyTorch's kernels without vector instructions, MKL and
# oneDNN with those that all have.
STAND_IN := ATEN_CPU_CAPABILITY=default MKL_CBWR=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2

test-bits: export OMP_NUM_THREADS = 1

test-bits: $(VENV)/.done  ## run the tests that compare bits, on a stand-in for another processor
	@env $(STAND_IN) $(BIN)/python -m pytest -q $(PARALLEL) -m "bits and not slow and not gpu"

# torchao stays out of .venv: transformers imports it wherever it is installed, which costs every process
# a second and prints warnings of its own.
INT8 := .int8

$(INT8)/.done: constraints.txt | $(VENV)/.done
	@$(PIP) install --no-deps --upgrade --target $(INT8) "$$(grep '^torchao==' constraints.txt)"
	@touch $@

test-int8: export OMP_NUM_THREADS = 1

test-int8: $(INT8)/.done  ## run the test of edits in 8-bit weights, with torchao
	@PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q -p no:cacheprovider tests/callbacks/test_durability.py -k eight_bits

resume-matrix: $(VENV)/.done  ## kill, resume and compare every callback, protocol and family of editors (an hour)
	@$(BIN)/python benchmarks/robustness/resume_matrix.py --out benchmarks/results/resume_matrix.json

runs/mend-atlas/checkpoints/best.ckpt: | $(VENV)/.done  # an old checkpoint stays good when .venv is made anew
	@echo "Training MEND on the embedded model (once; 15 minutes) ..."
	@$(BIN)/lightning-edit fit --config configs/train/mend_atlas.yaml

runs/serac-atlas/checkpoints/best.ckpt: | $(VENV)/.done
	@echo "Training SERAC on the embedded model (once; some minutes) ..."
	@$(BIN)/lightning-edit fit --config configs/train/serac_atlas.yaml

# The grid's second model lies outside the project; where it is absent, so is that half of the tables.
SECOND := ../shared/models/counterfact-zsre-gpt2
ifneq ($(wildcard $(SECOND)),)
STATISTICS := runs/second-model/statistics.done
endif

runs/second-model/statistics.done: | $(VENV)/.done
	@echo "Collecting key statistics of the second model (once; two minutes) ..."
	@$(BIN)/python benchmarks/quality/second_model_text.py runs/second-model/text.txt
	@$(BIN)/lightning-edit stats --lm $(SECOND) --lm_bos true --text runs/second-model/text.txt
	@touch $@

benchmark: $(VENV)/.done runs/mend-atlas/checkpoints/best.ckpt runs/serac-atlas/checkpoints/best.ckpt $(STATISTICS)  ## every method on 100 facts, as tables (hours; goes on where it was stopped)
	@$(BIN)/lightning-edit benchmark configs/benchmark/methods.yaml

# A real instruct model, 135 million parameters: docs/real-model.md. Its statistics come from running text.
REAL := runs/real-model/smollm2-135m-instruct
REAL_TEXT ?= ../shared/data/text/wikitext2-valid.txt

$(REAL)/complete.json: | $(VENV)/.done
	@$(PIP) install -c constraints.txt gguf==0.19.0
	@echo "Fetching a real instruct model (once; a minute and 540 MB) ..."
	@$(BIN)/python benchmarks/quality/real_model.py $(REAL)

runs/real-model/statistics.done: $(REAL)/complete.json
	@test -f $(REAL_TEXT) || { echo "$(REAL_TEXT) is absent: give running text, one document a line, as" \
		"make real-model REAL_TEXT=FILE"; exit 1; }
	@echo "Collecting its key statistics (once; some minutes) ..."
	@$(BIN)/lightning-edit stats --lm $(REAL) --text $(REAL_TEXT) --quick
	@touch $@

real-model: runs/real-model/statistics.done  ## put a real instruct model and its key statistics on disk

# Another real model, of another kind; its terms of use: benchmarks/quality/real_model.py --help.
SECOND_REAL := runs/real-model/gemma-3-270m

$(SECOND_REAL)/complete.json: | $(VENV)/.done
	@$(PIP) install -c constraints.txt gguf==0.19.0
	@echo "Fetching a second real model (once; a minute and 1.1 GB) ..."
	@$(BIN)/python benchmarks/quality/real_model.py $(SECOND_REAL) --model gemma-3-270m

runs/real-model/second-statistics.done: $(SECOND_REAL)/complete.json
	@test -f $(REAL_TEXT) || { echo "$(REAL_TEXT) is absent: give running text, one document a line, as" \
		"make second-real-model REAL_TEXT=FILE"; exit 1; }
	@echo "Collecting its key statistics (once; some minutes) ..."
	@$(BIN)/lightning-edit stats --lm $(SECOND_REAL) --text $(REAL_TEXT) --quick
	@touch $@

second-real-model: runs/real-model/second-statistics.done  ## another one, Gemma 3 270M: see its terms of use

$(DOCS)/.done: docs/requirements.txt
	@echo "Setting up $(DOCS) (once; half a minute) ..."
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --quiet --quiet --disable-pip-version-check install -r docs/requirements.txt
	@touch $@

docs: $(DOCS)/.done  ## build the pages of docs/ and the API as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

lint: $(VENV)/.done  ## check style, format and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@if [ -x $(BIN)/lint-imports ]; then $(BIN)/lint-imports --no-cache; \
	else echo "The direction of imports is not checked: import-linter needs Python 3.11."; fi

typecheck: $(VENV)/.done  ## check types
	@$(BIN)/mypy

check: lint typecheck test  ## everything a change must pass

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(OLDEST) $(DOCS) $(INT8) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
