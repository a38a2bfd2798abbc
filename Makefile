# Both targets do all their own set-up: a virtual environment in .venv, made once and again when pyproject.toml changes.
PYTHON ?= python3
# Processes that tests run in: make test WORKERS=8
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/kd reproduce demo --output runs/demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

lint: .venv/.installed
	$(BIN)/python -m tests.losses.exports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,text,speech]'
	@touch $@

clean:
	rm -rf .venv runs
