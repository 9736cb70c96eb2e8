# Each target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench interop wheel clean

demo: $(STAMP)
	$(BIN)/ossicle demo

test: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: $(STAMP) build/typing/ossicle
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy build/typing/ossicle

bench: $(STAMP)
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/decode.py

interop: $(STAMP)
	$(BIN)/python tests/interop/run.py

wheel: $(STAMP)
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

build/typing/ossicle:
	mkdir -p build/typing
	ln -sfn ../.. $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
