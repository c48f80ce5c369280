# Needs make, Python 3.11 or newer, and PyPI once. Whatever it makes stays in this folder.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PY := .venv/bin/python

# Tests wait for half of their time, for commits, clocks and other processes: more of them than there are cores.
# make test WORKERS=0 runs all in one process, as for a debugger.
WORKERS ?= 3

# Made last when setting up, so that what was cut short begins again.
READY := .venv/.ready

# Caches and temporary files of every tool, in the clone: nothing is left outside of it.
export XDG_CACHE_HOME := $(CURDIR)/.cache
export TMPDIR := $(CURDIR)/.cache/tmp

.PHONY: help dev check test test-all test-aio coverage faults mutants bench lint format generate constraints clean

help:  ## Show this
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

dev: $(READY)  ## Run everything on this machine; make dev ARGS="--catalog catalogs/kalshibook.yaml"
	@# Whoever kills make means dev as well; the launcher ties the one to the other.
	@exec $(PY) -I -S src/billing_svc/programs/supervision/launcher.py $$PPID $(PY) -m billing_svc dev $(ARGS)

# In the order, and with the groups, of tests/conftest.py.
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

check: lint  ## Run every check, and the tests that need neither Postgres nor a process of their own
	$(PYTEST) -m "not long and not process" $(ARGS)

test: lint  ## Run every check, and all tests but the long ones; make test ARGS="-k quota" passes options to pytest
	$(PYTEST) -m "not long" $(ARGS)

test-all: test  ## Run make test, and then the long tests: series of stops and kills, months, many examples
	$(PYTEST) -m long $(ARGS)

coverage: $(READY)  ## Run what make test runs, and show which lines of src/ none of it reached
	$(PYTEST) -m "not long" --cov=src --cov-report=term-missing:skip-covered $(ARGS)

# What meets the transport: every RPC from outside, stops and kills under load, the whole path.
AIO := tests/billing_svc/api tests/billing_svc/programs/test_stops.py tests/billing_svc/programs/test_stopping.py \
	tests/billing_svc/programs/test_replicas.py tests/faults/test_kill_server.py tests/faults/test_hostile.py \
	tests/end_to_end/test_first_path.py tests/end_to_end/test_bad_requests.py

test-aio: $(READY)  ## Run on gRPC's public interface what `make test` runs on the fast transport
	BILLING_TRANSPORT=aio $(PY) -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder $(AIO) $(ARGS)

faults: $(READY)  ## Bring every fault about, for long; make faults ARGS="--minutes 2 --seed 7 -k holds"
	@PYTHONPATH=src:. $(PY) -m tests.faults $(ARGS)

mutants: $(READY)  ## Take out each protection, and show which test notices; make mutants ARGS="-k lease"
	@PYTHONPATH=src:. $(PY) -m tests.mutants $(ARGS)

bench: $(READY)  ## Measure against a bare echo; make bench ARGS="--stored 10000000", ARGS="compare OLD.json NEW.json"
	@PYTHONPATH=src $(PY) -m benchmarks $(ARGS)

lint: $(READY)  ## Check format, style, types, the contract and its stubs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/buf lint
	$(PY) scripts/generate.py --check

format: $(READY)  ## Format, and mend what can be mended
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

generate: $(READY)  ## Make src/billing/v1 from proto/
	$(PY) scripts/generate.py

constraints: .cache/tmp  ## Move every pin in constraints.txt to the newest release
	@$(require_python)
	$(PYTHON) scripts/set_up.py --refresh

clean:  ## Remove all that was made here, but for the data of make dev (.dev)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt scripts/set_up.py | .cache/tmp
	@$(require_python)
	@$(PYTHON) scripts/set_up.py
	@touch $@

.cache/tmp:
	@mkdir -p $@

define require_python
test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found; name one with make PYTHON=..." >&2; exit 1; }
endef
