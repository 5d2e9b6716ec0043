# The one place for commands: the same here and in continuous integration. `make help` lists them.

PYTHON ?= python3
TEST_JOBS ?= 3

# Set on the command line only (`make serve PORT=9000`), never taken from the environment.
PORT :=
DATA := data
WORKERS :=
UPGRADE :=
SEED :=
SEEDS := 500
MINUTES := 20
ARGS :=

VENV := .venv
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-input --require-virtualenv
COMPILE := $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate $(if $(UPGRADE),--upgrade)
# Each of these packages needs 95 % of its lines and branches covered.
GATED := tiering changelog backends

.DEFAULT_GOAL := help
.PHONY: help serve test check static tidy format bench sim soak lock dev clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

serve: $(RUNTIME) ## run the service without auth, on this machine only; PORT=8888 DATA=data WORKERS=1
	@exec $(PY) -m tierstore serve --no-auth --data "$(DATA)" \
		$(if $(PORT),--port "$(PORT)") $(if $(WORKERS),--workers "$(WORKERS)")

test: static ## everything that must pass: check, all tests, the coverage gates; ARGS=pytest's
	@rm -f .coverage .coverage.*
	@COVERAGE_FILE="$(CURDIR)/.coverage" $(PY) -m coverage run -m pytest -n $(TEST_JOBS) --dist worksteal $(ARGS) </dev/null
	@COVERAGE_FILE="$(CURDIR)/.coverage" $(PY) -m coverage combine --quiet
	@$(PY) -m coverage report
	@for package in $(GATED); do \
		$(PY) -m coverage report --include="src/tierstore/$$package/*" --fail-under=95 --format=total >/dev/null \
			|| { echo "src/tierstore/$$package has less than 95 % of its lines and branches covered" >&2; exit 1; }; \
	done

check: static tidy ## format, lint, types, and the structure of the code

static: $(DEV)
	@$(PY) -m ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

tidy: $(DEV)
	@$(PY) -m pytest -q tests/test_tidy.py tests/tidy </dev/null

format: $(DEV) ## write the format, and what the linter can mend by itself
	@$(PY) -m ruff check --quiet --fix-only .
	@$(PY) -m ruff format --quiet .

bench: $(DEV) ## CPU time of each operation beside peers, in about a minute; ARGS=complete, ARGS=memory, ARGS=--help
	@$(PY) -m bench $(ARGS)

sim: $(DEV) ## the deterministic simulation: SEED=17 for one seed, else SEEDS=500; ARGS=--help
	@$(PY) -m tierstore.testing.simulation $(if $(SEED),--seed "$(SEED)",--seeds "$(SEEDS)") $(ARGS)

soak: $(DEV) ## the long hunt: simulation, killed processes, power loss and fuzzers, MINUTES=20 side by side; SEED=17
	@$(PY) -m tests.soak --minutes "$(MINUTES)" $(if $(SEED),--seed "$(SEED)") $(ARGS) </dev/null

lock: $(DEV) ## make the lock files anew from pyproject.toml; UPGRADE=1 takes newer versions
	@$(COMPILE) pyproject.toml -o requirements.lock
	@$(COMPILE) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

dev: $(DEV) ## only make .venv, with all that development needs

clean: ## remove .venv and everything that was made by tools; never data
	@rm -rf $(VENV) build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written when its step is whole, so that an interrupted one is done again.
$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null 2>&1 \
		|| { echo "$(PYTHON) is not there: install Python 3.11, 3.12 or 3.13, or name it with PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "tierstore needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1): name another with PYTHON=…" >&2; \
		exit 1; }
	@echo "Making $(VENV)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# Wheels only: building from source would fetch build tools that no lock file pins.
$(RUNTIME): requirements.lock | $(VENV)/.made
	@echo "Installing what the service needs"
	@$(PIP_INSTALL) --only-binary=:all: --require-hashes -r requirements.lock
	@$(PY) -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "tierstore-source.pth").write_text(sys.argv[1] + "\n")' "$(CURDIR)/src"
	@touch $@

$(DEV): requirements-dev.lock pyproject.toml | $(VENV)/.made
	@echo "Installing what development needs"
	@$(PIP_INSTALL) --only-binary=:all: --require-hashes -r requirements-dev.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
