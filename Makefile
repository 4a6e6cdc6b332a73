VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: demo test test-rest test-all coverage lint fix docs audit clean

# Each set of extras is installed once, and again when what it depends on changes.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/st-dimreduce demo

# Logic, and whatever harms: two minutes.
test: $(VENV)/.installed-test
	$(PYTEST) -m 'not slow' tests/unit tests/resilience

# Real models, stores, frameworks, versions, a browser; kills and fuzzing at length.
test-rest: $(VENV)/.installed-test-all
	$(PYTEST) -m slow

test-all: test test-rest

coverage: $(VENV)/.installed-test-all
	$(PYTEST) --cov --cov-report=term

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Fails, rather than pass, where an index cannot say what is known of a package.
audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) build dist site *.egg-info
