# Everything below works on a machine that has python3 (3.10 or newer) with venv, and git; Debian: python3-venv, git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Of the tests, because many of them wait for a process or a clock.
PROCESSES ?= 3
COST := tests/test_cost_gate.py

.PHONY: demo test test-slow test-security test-tools test-browser test-bare chaos lint bench generate tools clean

# Two parts: short prompts, then an evaluation of ten coding tasks; the agent is a script, the rest is real.
demo: tools $(VENV)/.installed
	$(BIN)/codex-pool batch examples/batch/prompts.jsonl --demo --workers 2 --retries 1 -o out/demo --fresh
	# Some of the tasks fail by intent: that is exit code 1. How each is to end is compared below.
	$(BIN)/codex-pool batch examples/eval --demo-script examples/eval/_demo/agent.toml --workers 2 --retries 1 -o out/eval --fresh \
	  || [ $$? -eq 1 ]
	$(BIN)/python examples/eval/_demo/check.py out/eval/results.jsonl
	$(BIN)/codex-pool report out/eval

# What is counted in CPU comes first and alone: other tests would take its caches away.
test: tools $(VENV)/.installed-test
	$(BIN)/python -m pytest $(COST)
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal --ignore $(COST) \
	  -m "not (slow or generate or browser or chaos or security)"

# Batches, daemons and commands as users run them, and limits in time: under 15 minutes on 2 cores.
test-slow: tools $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal --durations 20 --durations-min 10 \
	  -m "slow and not (generate or browser or chaos or security)"

# What keys and projects could reach, walked on the real binary. Under 4 minutes on 2 cores.
test-security: tools $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal -m security

# The tests that need the maintainer's tools: generator of the wire types, mypy, inspect_ai (some 300 MB).
test-tools: tools $(VENV)/.installed-tools
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal -m generate

# The demo and the quick tests on a Debian with python3, python3-venv and make alone, as root and as a plain user, in
# containers. Needs root, podman, runc and debootstrap; what is built and downloaded is kept in ~/.cache/codex-pool.
test-bare: tools $(BIN)/python
	PYTHON=$(BIN)/python scripts/test_bare.sh

# Clicks in a headless Chromium, which has to be there (Debian: apt-get install chromium); CHROMIUM names another one.
test-browser: tools $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser tests/test_report_browser.py

# Every process hurt in every way: all cells of the table, and short runs of what a night is like. Bounded.
chaos: tools $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m chaos
	$(BIN)/python bench/neighbour.py --quick --floods ids,dense,methods,waiting,silent,parts,noise

lint: tools $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Everything that is measured, under 15 minutes; reports in out/bench, plots in docs/images.
bench: tools $(VENV)/.installed-bench
	$(BIN)/python bench/sdk.py --rounds 3
	$(BIN)/python bench/notifications.py --rounds 3
	$(BIN)/python bench/paced.py --rounds 3
	$(BIN)/python bench/roundtrip.py --rounds 3
	$(BIN)/python bench/ingress.py --rounds 3
	$(BIN)/python bench/throughput.py --turns 200 --rounds 5
	$(BIN)/python bench/cpu.py --turns 1000
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/long_history.py --rounds 3
	$(BIN)/python bench/lean.py --turns 60 --rounds 3
	$(BIN)/python bench/batch.py
	$(BIN)/python bench/scaling.py --seconds 1
	$(BIN)/python bench/plots.py

# The wire types, from the schema of the pinned codex binary.
generate: tools $(VENV)/.installed-tools
	$(BIN)/python scripts/update_sdk_artifacts.py generate-types

# What make cannot install by itself, each with how to get it.
tools:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install it, e.g. apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "make: $$($(PYTHON) --version) is too old, expected 3.10 or newer; name another, e.g. make PYTHON=python3.11" >&2; exit 1; }
	@command -v git >/dev/null || { echo "make: git is not installed; workspaces need it; install it, e.g. apt-get install git" >&2; exit 1; }

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) makes no virtual environment; install its venv, e.g. apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(PIP) --editable '.[test,lint]'
	@touch $@

$(VENV)/.installed-tools: $(VENV)/.installed-test
	$(PIP) --editable '.[test,lint,generate,inspect]'
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) --editable '.[browser]'
	@touch $@

$(VENV)/.installed-bench: tools $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
