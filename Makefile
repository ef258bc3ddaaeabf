# Each target does the set-up it needs, in .venv, and nothing twice.
#
#   make quickstart   the whole method on two CPU cores, from nothing to a report
#   make test         the fast tests
#   make test-all     all tests
#   make lint         lint, format, which room may use which, and types
#   make docs         the documentation as a site, in site/; a broken link fails
#   make clean        remove what was installed and cached; runs/ stays
#
# PYTHON=/path/to/python3 chooses the Python, VENV=dir the environment's place.

VENV ?= .venv
export VENV
PY := $(VENV)/bin/python

# Large pages: a training step on CPUs takes a third less time (glibc on Linux; else ignored).
RUN_ENV := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# Compiled programs outlive a test run; nothing is fetched from a hub.
TEST_ENV := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax HF_HUB_OFFLINE=1

# A file's tests stay together, since they share what they set up.
PYTEST := $(TEST_ENV) $(PY) -m pytest -n logical --maxprocesses 8 --dist loadfile

.PHONY: quickstart test test-all lint docs format clean

quickstart:
	@requirements/install run
	@$(RUN_ENV) $(PY) -m train.pipeline configs/quickstart.py

test:
	@requirements/install test
	@$(PYTEST) -m "not slow"

test-all:
	@requirements/install test
	@$(PYTEST)

lint:
	@requirements/install test
	@$(PY) -m ruff check -q .
	@$(PY) -m ruff format -q --check . || { echo "error: not formatted; 'make format' mends it" >&2; exit 1; }
	@$(VENV)/bin/lint-imports --no-cache > .cache/contracts.log 2>&1 || { cat .cache/contracts.log; exit 1; }
	@$(PY) -m pyright --pythonpath $(PY)

docs:
	@requirements/install docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --clean
	@echo "wrote site/; $(PY) -m http.server -d site shows it"

format:
	@requirements/install test
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .

clean:
	@rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
