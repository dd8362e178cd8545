# Every target prepares what it needs: the environment .venv, the dependencies and the package, once.
#   make test TESTS=tests/cli        a part of the suite
#   make faults FAULTS="--only kills --seed 7"   a part of the trial
#   make test CONSTRAINTS=           with the newest versions that pyproject.toml allows, after `rm -rf .venv`

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TESTS ?= tests
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

# Two test processes with one thread each beat one with two, and many processes with many threads would crowd each other out.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(RUN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-browser faults check format lint types

help:
	@echo "make demo    train, draw, caption and measure on rendered shapes; writes runs/demo/report.html"
	@echo "make test    run the tests"
	@echo "make test-browser  try the studio in a real browser (chromium on the PATH)"
	@echo "make faults  kill, stop, damage, fuzz and fill: the whole trial (docs/reliability.md), about an hour of a core"
	@echo "make check   format check, lint, types, tests: what CI runs"
	@echo "make format  format the code and repair what the linter can repair"
	@echo "make setup   only prepare .venv"

setup: $(READY)

# uv takes seconds where pip takes minutes; both read the same files.
$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	@if command -v uv >/dev/null; then \
		set -x && \
		{ test -x $(RUN)/python || uv venv --python '>=3.11' $(VENV); } && \
		uv pip install --python $(RUN)/python $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'; \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unitok needs Python 3.11 or later: make PYTHON=...")' && \
		set -x && \
		{ test -x $(RUN)/python || $(PYTHON) -m venv $(VENV); } && \
		$(RUN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'; \
	fi
	@touch $@

demo: $(READY)
	$(RUN)/unitok demo

test: $(READY)
	$(PYTEST)

# playwright drives the browser that is there, axe finds what not everybody could use. They are needed here alone.
test-browser: $(READY)
	@if command -v uv >/dev/null; then uv pip install -q --python $(RUN)/python playwright axe-playwright-python; \
		else $(RUN)/python -m pip install -q playwright axe-playwright-python; fi
	$(RUN)/python -m pytest tests/serve/studio

# The harness is no part of the package: it is found in tests/.
faults: $(READY)
	PYTHONPATH=tests:. OMP_NUM_THREADS=1 $(RUN)/python -m faults $(FAULTS)

check: lint types test

lint: $(READY)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .

# train/, sample/ and eval/ are packages inside unitok, which no type checker can see: show them a tree in which they are.
types: $(READY)
	@rm -rf .types && mkdir -p .types/unitok && ln -s ../tokenizers_vq .types/
	@for path in unitok/* train sample eval; do ln -s "../../$$path" .types/unitok/; done
	MYPYPATH=.types $(RUN)/mypy -p unitok -p tokenizers_vq

format: $(READY)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
