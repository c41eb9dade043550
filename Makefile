# make demo   the main job on real data: trains, prints the table, writes runs/demo-elpv/report.html
# make test   the tests; make test-long   those that take minutes
# make check  lint, format and types
# make bench  the benchmarks behind docs/performance.md
# make docs   the picture of the floors, and the pages with the API reference as a site in site/
# make dist   the wheel and the source distribution in dist/, the same bytes whoever builds them
# make lowest the tests with the oldest versions that pyproject.toml allows, in .venv-lowest
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check
# Some packages are installed without what they ask for and do not need here; that is no conflict.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --constraint constraints.txt

.PHONY: demo test test-long check bench docs dist lowest clean

demo: .venv/demo.done
	$(BIN)/bella demo

# A file is one worker's, so that no worker makes again what its tests share; tests/conftest.py says
# in which order. There are three for two cores: tests of processes and servers wait as much as they
# compute.
test: .venv/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-long: .venv/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m slow

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.done
	$(BIN)/python benchmarks/all.py

docs: .venv/docs.done
	$(BIN)/python docs/draw.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: .venv/dev.done
	$(BIN)/python docs/dist.py dist

# What old libraries announce of their own end, or leave open (datasets before 5.2 does a CSV), says
# nothing of bella, so here it is no error.
lowest: .venv-lowest/done
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -W ignore::DeprecationWarning \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("bella needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

# torch goes first and alone: its version is pinned, and pip then leaves it as it is.
.venv/demo.done: .venv/bin/python pyproject.toml constraints.txt requirements-demo.txt
	@echo "Installing (once; torch is the large part)"
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps --requirement requirements-demo.txt
	@touch $@

# What needs torchvision lies apart, where only the tests look: see tests/conftest.py.
.venv/dev.done: .venv/demo.done requirements-test.txt requirements-quantised.txt
	@echo "Installing what the tests need (once)"
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps --upgrade --target .venv/zoo --requirement requirements-test.txt
	$(PIP) --no-deps --upgrade --target .venv/quantised --requirement requirements-quantised.txt
	@touch $@

.venv/docs.done: .venv/dev.done
	$(PIP) --editable '.[docs]'
	@touch $@

.venv-lowest/done: pyproject.toml requirements-demo.txt requirements-test.txt
	@echo "Installing the oldest versions that are allowed"
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST) uv
	.venv-lowest/bin/uv pip compile --quiet --extra dev --resolution lowest-direct \
		--output-file .venv-lowest/constraints.txt pyproject.toml
	$(LOWEST) --constraint .venv-lowest/constraints.txt torch
	$(LOWEST) --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	$(LOWEST) --no-deps --requirement requirements-demo.txt
	$(LOWEST) --no-deps --upgrade --target .venv-lowest/zoo --requirement requirements-test.txt
	@touch $@

clean:
	rm -rf .venv .venv-lowest runs site
