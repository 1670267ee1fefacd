# The commands that everyone needs, each one word. Every one sets up `.venv` first where it is missing.
PYTHON ?= python3
BIN := .venv/bin
# one process a core, one core a process, a file's tests in one process
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --cov --cov-report=term
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: setup demo test test-full check bench gpu zoo docs clean

setup: .venv/.ready

# torch is left unpinned: the index then chooses a torch and a torchvision that fit
.venv/.ready: pyproject.toml
	@echo "Setting up .venv (torch and friends: several GB, some minutes the first time) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --progress-bar on --editable '.[dev,demo,hf,peft]'
	@touch $@

demo: setup
	$(BIN)/utcompile demo

test: setup
	$(PYTEST) -m 'not full'

test-full: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

# under 7 minutes on one GPU; its --quick, on a CPU, is one of the tests
gpu: setup
	$(BIN)/python -m benchmarks.gpu

# some hours; interrupted, it goes on where it stopped
zoo: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/utcompile zoo --jobs $(JOBS) --page docs/zoo.md

docs: setup
	$(BIN)/python docs/build.py

clean:
	rm -rf .venv demo-output gpu-output
