VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
AUDIT := $(BIN)/python -m pip_audit --strict --disable-pip
LOCKED := $(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation

.PHONY: demo test test-rest test-versions test-slow test-changed test-all coverage lint fix docs images docker locked lock audit audit-known dist release-version clean

# Each set of extras is installed once, and again when what it depends on changes.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/st-dimreduce demo

# Logic, and whatever harms: two minutes.
test: $(VENV)/.installed-test
	$(PYTEST) -p tests.helpers.lean -m 'not slow and not wings' tests/unit tests/resilience

# Real models, the oldest and the newest version, the Hub, every block of the documentation, kills: eight minutes.
test-rest: $(VENV)/.installed-test-all
	$(PYTEST) -m 'slow and not wings and not versions'

# Other versions of Sentence Transformers, and the lowest of all packages.
test-versions: $(VENV)/.installed-test-all
	$(PYTEST) -m versions

# Readers, stores, frameworks, ONNX, browsers; interrupts, soak and fuzzing at length.
test-slow: $(VENV)/.installed-test-all
	$(PYTEST) -m wings

# Those of test-slow whose wing was changed; begins none after UNTIL (seconds of the clock).
test-changed: $(VENV)/.installed-test-all
	$(PYTEST) -p tests.helpers.changes $(if $(UNTIL),--until $(UNTIL)) || test $$? -eq 5 # no test was chosen

test-all: test test-rest test-versions test-slow

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

# The pictures of README and docs/, each drawn from a real run.
images: $(VENV)/.installed-test-all
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.record
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.figures
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.screenshots

# Both images, where Docker or Podman answers; elsewhere hadolint, which the tests run, is all that reads their files.
docker:
	@engine=$$(for each in docker podman; do if $$each info >/dev/null 2>&1; then echo $$each; break; fi; done); \
	test -n "$$engine" || { echo "neither Docker nor Podman answers: nothing was built"; exit 1; }; set -ex; \
	$$engine build --tag st_dimreduce .; \
	$$engine run --rm st_dimreduce --version; \
	$$engine build --tag st_dimreduce-space examples/space

# What .ci/run installs: the files that requirements-ci.txt names, each checked against its hash, and no others.
locked:
	$(PYTHON) -m venv $(VENV)
	grep '^setuptools==' requirements-ci.txt >$(VENV)/builds-the-others.txt
	$(LOCKED) --requirement $(VENV)/builds-the-others.txt
	$(LOCKED) --requirement requirements-ci.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(VENV)/.installed-dev $(VENV)/.installed-release $(VENV)/.installed-test $(VENV)/.installed-test-all

lock:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/lock.py >$(VENV)/requirements-ci.txt
	mv $(VENV)/requirements-ci.txt requirements-ci.txt

# Fails, rather than pass, where an index cannot say what is known of a package, as none can of a local build (`+cpu`).
audit: $(VENV)/.installed-release
	sed 's/+cpu / /' requirements-ci.txt >$(VENV)/audited.txt
	$(AUDIT) --require-hashes --requirement $(VENV)/audited.txt

# What is known of an old release: something, where the index serves the data.
audit-known: $(VENV)/.installed-release
	echo pip==22.0 >$(VENV)/known.txt
	$(AUDIT) --no-deps --requirement $(VENV)/known.txt

# Of what is committed, with the time of the commit: the same commit gives the same wheel, and the same bill of materials.
dist: $(VENV)/.installed-release
	rm -rf dist build
	mkdir -p build/source
	umask 022 && git archive HEAD | tar --extract --no-same-permissions --directory build/source
	umask 022 && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(BIN)/python -m build --no-isolation --outdir dist build/source
	$(BIN)/python .ci/sbom.py dist/*.whl

# Fails unless TAG is the version of the package, and the changelog has an entry of it.
release-version:
	test "$(TAG)" = "v$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' st_dimreduce/__init__.py)"
	grep --quiet '^## \[$(TAG:v%=%)\] - ' CHANGELOG.md
	grep --quiet '^version: $(TAG:v%=%)$$' CITATION.cff

clean:
	rm -rf $(VENV) build dist site *.egg-info
