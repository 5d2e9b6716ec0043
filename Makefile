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
# Each of these packages needs 95 % of its lines and branches covered, by the tests nearest to them: measuring makes code
# two to four times as slow, so all other tests run unmeasured, and what they alone reach does not count.
GATED := tiering changelog backends
MEASURED := tests/conformance tests/unit/backends tests/unit/embedded tests/unit/tiering \
	$(wildcard tests/engines/test_bigtable_*.py tests/engines/test_gcs_*.py tests/engines/test_postgres_*.py tests/engines/test_seaweedfs_*.py)
# Without Google's emulator nothing can run what needs it.
NOT_HERE = $(if $(wildcard $(EMULATOR)),,--omit="*bigtable*")
PYTEST_OPTIONS = -n $(TEST_JOBS) --dist worksteal
# Google's emulator of Bigtable, for tests. Its Maven artifact holds the binary, which takes a seventh of compiling it.
EMULATOR := $(VENV)/bin/bigtable-emulator
# A pooler for tests on PostgreSQL, unpacked from Debian's packages: nothing is installed, and nobody need be root.
POOLER := $(VENV)/pgbouncer/pgbouncer
POOLER_PACKAGES := pgbouncer libevent-2.1-7 libc-ares2
EMULATOR_ARTIFACT := com.google.cloud:google-cloud-bigtable-emulator:0.188.0
EMULATOR_JAR := com/google/cloud/google-cloud-bigtable-emulator/0.188.0/google-cloud-bigtable-emulator-0.188.0.jar
EMULATOR_SHA256 := 2158efd1f3b18a572e6b865425cf31848fe8589f560ea55503d4514a30ae0d7a

.DEFAULT_GOAL := help
.PHONY: help serve test check static compiled chosen measured unmeasured emulator pooler tidy format bench sim soak lock dev clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

serve: $(RUNTIME) ## run the service without auth, on this machine only; PORT=8888 DATA=data WORKERS=1
	@exec $(PY) -m tierstore serve --no-auth --data "$(DATA)" \
		$(if $(PORT),--port "$(PORT)") $(if $(WORKERS),--workers "$(WORKERS)")

# The tests start some hundred servers and commands: where no bytecode may be kept, each compiles all modules anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(DEV) ## everything that must pass: check, all tests, the coverage gates; ARGS=pytest's, to choose tests
	@$(MAKE) --no-print-directory --jobs=4 static compiled $(EMULATOR) $(POOLER)
	@$(MAKE) --no-print-directory $(if $(ARGS),chosen,measured unmeasured)

chosen: $(DEV)
	@$(PY) -m pytest $(PYTEST_OPTIONS) $(ARGS) </dev/null

measured: $(DEV)
	@rm -f .coverage .coverage.*
	@COVERAGE_FILE="$(CURDIR)/.coverage" $(PY) -m coverage run -m pytest $(PYTEST_OPTIONS) $(MEASURED) </dev/null
	@COVERAGE_FILE="$(CURDIR)/.coverage" $(PY) -m coverage combine --quiet
	@$(PY) -m coverage report $(NOT_HERE)
	@for package in $(GATED); do \
		$(PY) -m coverage report $(NOT_HERE) --include="src/tierstore/$$package/*" --fail-under=95 --format=total >/dev/null \
			|| { echo "src/tierstore/$$package has less than 95 % of its lines and branches covered" >&2; exit 1; }; \
	done

unmeasured: $(DEV)
	@$(PY) -m pytest $(PYTEST_OPTIONS) $(MEASURED:%=--ignore=%) </dev/null

check: static tidy ## format, lint, types, and the structure of the code

static: $(DEV)
	@$(PY) -m ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

# Beside the type checker, which leaves a core idle: or each process that runs tests compiles all of them for itself.
compiled: $(DEV)
	@$(PY) -m pytest --collect-only -qq </dev/null >/dev/null 2>&1 || true  # what is wrong, the tests themselves will say

tidy: $(DEV)
	@$(PY) -m pytest -q tests/test_tidy.py tests/tidy </dev/null

format: $(DEV) ## write the format, and what the linter can mend by itself
	@$(PY) -m ruff check --quiet --fix-only .
	@$(PY) -m ruff format --quiet .

bench: $(DEV) ## CPU time of each operation beside peers, in about a minute; ARGS=complete, ARGS=memory, ARGS=--help
	@$(PY) -m bench $(ARGS)

sim: $(DEV) ## the deterministic simulation: SEED=17 for one seed, else SEEDS=500; ARGS=--help
	@$(PY) -m tierstore.testing.simulation $(if $(SEED),--seed "$(SEED)",--seeds "$(SEEDS)") $(ARGS)

soak: $(DEV) ## the long hunt: simulation, killed processes, power loss, fuzzers, engines, MINUTES=20 side by side; SEED=17
	@$(PY) -m tests.soak --minutes "$(MINUTES)" $(if $(SEED),--seed "$(SEED)") $(ARGS) </dev/null

lock: $(DEV) ## make the lock files anew from pyproject.toml; UPGRADE=1 takes newer versions
	@$(COMPILE) pyproject.toml -o requirements.lock
	@$(COMPILE) pyproject.toml --all-extras -c requirements.lock -o requirements-engines.lock
	@$(COMPILE) pyproject.toml --all-extras --group dev -c requirements-engines.lock -o requirements-dev.lock

dev: $(DEV) $(EMULATOR) $(POOLER) ## only make .venv, with all that development needs

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

# Fetched twice if need be, for networks fail. Where it cannot be had, tests on it are skipped and say so; with CI=true
# they fail.
$(EMULATOR): | $(VENV)/.made
	@$(MAKE) --no-print-directory emulator || $(MAKE) --no-print-directory emulator || echo "Bigtable's emulator cannot be had (it needs Maven, on Linux)"

emulator:
	@echo "Fetching the emulator of Bigtable"
	@mvn -q -B -Dstyle.color=never -Dmaven.repo.local="$(CURDIR)/$(VENV)/.maven" org.apache.maven.plugins:maven-dependency-plugin:2.8:get \
		-Dartifact=$(EMULATOR_ARTIFACT) -Dtransitive=false
	@echo "$(EMULATOR_SHA256)  $(VENV)/.maven/$(EMULATOR_JAR)" | sha256sum --check --quiet
	@$(PY) -c 'import platform, sys, zipfile; \
		machine = {"x86_64": "x86_64", "aarch64": "arm"}[platform.machine()]; \
		name = f"gcloud/bigtable-{platform.system().lower()}-{machine}/platform/bigtable-emulator/cbtemulator"; \
		open(sys.argv[2], "wb").write(zipfile.ZipFile(sys.argv[1]).read(name))' \
		$(VENV)/.maven/$(EMULATOR_JAR) $(EMULATOR).part
	@chmod +x $(EMULATOR).part && mv $(EMULATOR).part $(EMULATOR)
	@rm -rf $(VENV)/.maven

$(POOLER): | $(VENV)/.made
	@$(MAKE) --no-print-directory pooler || $(MAKE) --no-print-directory pooler || echo "PgBouncer cannot be had (it is unpacked from Debian's packages)"

pooler: APT = apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::State::lists="$(CURDIR)/$(VENV)/.apt/lists" \
	-o Dir::Cache="$(CURDIR)/$(VENV)/.apt/cache"
pooler:
	@echo "Fetching PgBouncer"
	@mkdir -p $(VENV)/.apt/lists/partial $(VENV)/.apt/cache/archives/partial $(VENV)/.apt/unpacked $(dir $(POOLER))
	@$(APT) update && cd $(VENV)/.apt && $(APT) download $(POOLER_PACKAGES)
	@for package in $(VENV)/.apt/*.deb; do dpkg -x "$$package" $(VENV)/.apt/unpacked; done
	@find $(VENV)/.apt/unpacked -name 'lib*.so*' -exec cp -P {} $(dir $(POOLER)) \;
	@cp $(VENV)/.apt/unpacked/usr/sbin/pgbouncer $(dir $(POOLER))pgbouncer.bin
	@printf '#!/bin/sh\nLD_LIBRARY_PATH="$${0%%/*}" exec "$$0.bin" "$$@"\n' > $(POOLER)
	@chmod +x $(POOLER) && rm -rf $(VENV)/.apt
