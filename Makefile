# The two commands of the README are `make demo` and `make test`. Both work on a fresh Debian machine with Python 3.11 and make.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that runs and is new enough; a name on PATH may be a shim that does neither.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v $$p; break; fi; done)
PYTEST_WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# They wait most of the time. The file that waits longest begins.
FAULT_WORKERS ?= 3

# Servers that the data plane's tests run against.
PROGRAMS := curl mosquitto redis-server mariadb-server
# What the fault bench makes a clock that can be set, and a link of its own, with.
FAULT_PROGRAMS := gcc iproute2 libc6-dev

.PHONY: demo test test-slow test-programs test-faults test-matrix reference lint check bench proto clean

demo: $(VENV)/installed ## the whole path on one machine; pass options as ARGS="--seconds 60"
	$(BIN)/kubetwin demo $(ARGS)

test: $(VENV)/installed ## unit and end-to-end tests
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not slow and not programs and not faults" $(ARGS)

test-slow: $(VENV)/installed ## the tests that take minutes
	$(BIN)/pytest -m slow --timeout 900 $(ARGS)

test-programs: $(VENV)/installed ## the data plane against Debian's servers, which root's first run installs
	@if [ "$$(id -u)" = 0 ] && ! dpkg -s $(PROGRAMS) >/dev/null 2>&1; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(PROGRAMS); fi
	$(BIN)/pytest -m programs $(ARGS)

test-faults: $(VENV)/installed ## the cloud-edge channel under cuts, kills, delays and lies: minutes
	@if [ "$$(id -u)" = 0 ] && ! dpkg -s $(FAULT_PROGRAMS) >/dev/null 2>&1; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(FAULT_PROGRAMS); fi
	$(BIN)/pytest -n $(FAULT_WORKERS) --dist loadfile --no-loadscope-reorder -m faults --timeout 900 tests/faults $(ARGS)

test-matrix: $(VENV)/installed ## every one of the 720 orders of killing and starting the six parts: an hour
	KUBETWIN_MATRIX=all $(BIN)/pytest -m slow --timeout 900 tests/e2e/test_restart_matrix.py $(ARGS)

reference: $(VENV)/installed ## regenerate docs/drivers.md
	$(BIN)/python -m kubetwin.reference > docs/drivers.md

lint: $(VENV)/installed ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks
	$(BIN)/lint-imports

check: lint test

bench: $(VENV)/installed ## every benchmark in its short form
	$(BIN)/python -m benchmarks $(ARGS)

proto: $(VENV)/installed ## regenerate dmi/_pb
	PYTHON=$(BIN)/python sh proto/generate.sh

clean:
	rm -rf $(VENV) build dist *.egg-info

# Debian ships Python without ensurepip; python3-venv brings it. Anywhere else, or without root, say what is missing.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "kubetwin needs Python 3.11 or newer and found none; try make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy python3-venv; \
	  else echo "Python's venv module is missing: install it first (Debian: apt-get install python3-venv)"; exit 1; fi; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e ".[test]"
	touch $@
