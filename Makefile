# Every target sets up what it needs in .venv: on a fresh machine only Python 3.11 or newer is required.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT ?= demo_out
MUSIC ?=
JOBS ?= 2

.DEFAULT_GOAL := help

# Run $(2) on each file of the pattern $(1); the first failure ends it, and so does a pattern without files.
define each
@found=; for file in $(1); do test -e "$$file" || continue; found=yes; echo "$(2) $$file"; $(2) "$$file" || exit 1; done; \
  test -n "$$found" || { echo "make $@: there is no $(1) yet" >&2; exit 2; }
endef

.PHONY: help install demo test lint types format bench certify chaos notebooks clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# ---- set-up: one stamp for what everything needs, one more per extra that is large or rarely used

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "make: no python3.11 or newer on the PATH; set PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python setup.cfg constraints.txt
	@echo "Installing jukebox_jax and its dependencies into $(VENV) (a minute or two) ..."
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps tinysoundfont
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.tpu $(VENV)/.notebooks $(VENV)/.bench $(VENV)/.beam: $(VENV)/.%: $(VENV)/.demo
	$(PIP) -e '.[$*]'
	@touch $@

install: $(VENV)/.dev  ## everything for development, in .venv

# ---- what one does with it

demo: $(VENV)/.demo  ## music -> data set -> trained Jukebox -> index.html (MUSIC=/path/to/folder OUT=demo_out)
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/jukebox demo --output="$(OUT)" $(if $(MUSIC),--input="$(MUSIC)")

test: $(VENV)/.dev $(VENV)/.tpu  ## the test suite (ARGS='-k name' chooses)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## pyright
	$(BIN)/pyright

format: $(VENV)/.dev  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(VENV)/.bench  ## every script of benchmarks/, ours beside a peer's
	$(call each,benchmarks/*.py,$(BIN)/python)

certify: $(VENV)/.dev $(VENV)/.tpu  ## compile for pods that are not here; rewrites certificates/
	$(call each,certificates/*.py,$(BIN)/python)

chaos: $(VENV)/.dev  ## long runs of damage: fuzzed checkpoints, files of full size (20 GB of disk), lost hosts
	$(call each,$(filter-out tests/chaos/test_%,$(wildcard tests/chaos/*.py)),$(BIN)/python)

notebooks: $(VENV)/.dev $(VENV)/.notebooks  ## run every notebook
	$(call each,notebooks/*.ipynb,$(BIN)/jupyter-execute)

clean:  ## remove what make made, .venv included
	rm -rf $(VENV) demo_out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
