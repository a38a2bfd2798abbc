# Both targets do all their own set-up: a virtual environment in .venv, made once and again when pyproject.toml changes.
PYTHON ?= python3
# Processes that tests run in: make test WORKERS=8
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test test-slow test-versions reliability lint docs wheel clean

demo: .venv/.installed
	$(BIN)/kd reproduce demo --output runs/demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

# dist/kd_lightning-VERSION-py3-none-any.whl: pip install it anywhere, then kd demo.
wheel: .venv/.installed
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist

# The oldest and the newest versions that pyproject.toml allows, each in an environment of its own.
OLDEST := lightning==2.5.1 jsonargparse[signatures]==4.50.0 torchmetrics==1.7.0
NEWEST := lightning<2.8 jsonargparse[signatures]<5 torchmetrics
VERSION_TESTS := tests/training tests/runs/test_resume.py

test-versions:
	$(call test_versions,oldest,$(OLDEST))
	$(call test_versions,newest,$(NEWEST))

define test_versions
rm -rf .venv-$(1)
$(PYTHON) -m venv .venv-$(1)
.venv-$(1)/bin/pip install --quiet --disable-pip-version-check --upgrade -e '.[dev]' $(foreach name,$(2),'$(name)')
.venv-$(1)/bin/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile $(VERSION_TESTS)
rm -rf .venv-$(1)
endef

# The documentation in site/; open site/index.html. A warning, such as a broken link, is an error.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Tests that take minutes or need the package index.
test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

# All of the fault injection: kills, damaged and hostile input, a soak. About two hours.
reliability: .venv/.installed
	$(BIN)/python benchmarks/reliability/kills.py --trials 120
	$(BIN)/python benchmarks/reliability/malformed.py
	$(BIN)/python benchmarks/reliability/hostile.py
	$(BIN)/python benchmarks/reliability/soak.py --minutes 40

lint: .venv/.installed
	$(BIN)/python -m tests.losses.exports
	$(BIN)/python -m experiments.methods
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,docs,text,speech,export]'
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest dist runs site
