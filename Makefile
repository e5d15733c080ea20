# Everything below works on a machine that has python3 (3.10 or newer) and pip; nothing else is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Of the tests, because many of them wait for a process or a clock.
PROCESSES ?= 3
COST := tests/test_cost_gate.py

.PHONY: demo test test-browser chaos lint bench generate clean

# Two parts: short prompts, then an evaluation of ten coding tasks; the agent is a script, the rest is real.
demo: $(VENV)/.installed
	$(BIN)/codex-pool batch examples/batch/prompts.jsonl --demo --workers 2 --retries 1 -o out/demo --fresh
	# Some of the tasks fail by intent: that is exit code 1.
	$(BIN)/codex-pool batch examples/eval --demo-script examples/eval/_demo/agent.toml --workers 2 --retries 1 -o out/eval --fresh \
	  || [ $$? -eq 1 ]
	$(BIN)/codex-pool report out/eval

# What is counted in CPU comes first and alone: other tests would take its caches away.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(COST)
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal --ignore $(COST)

# Clicks in a headless Chromium, which has to be there (Debian: apt-get install chromium); CHROMIUM names another one.
test-browser: $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser tests/test_report_browser.py

# Every process hurt in every way: all cells of the table, and short runs of what a night is like. Bounded.
chaos: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m chaos

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Everything that is measured, under 15 minutes; reports in out/bench, plots in docs/images.
bench: $(VENV)/.installed-bench
	$(BIN)/python bench/sdk.py --rounds 3
	$(BIN)/python bench/notifications.py --rounds 3
	$(BIN)/python bench/paced.py --rounds 3
	$(BIN)/python bench/roundtrip.py --rounds 3
	$(BIN)/python bench/throughput.py --turns 200 --rounds 5
	$(BIN)/python bench/cpu.py --turns 1000
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/lean.py --turns 60 --rounds 3
	$(BIN)/python bench/batch.py
	$(BIN)/python bench/scaling.py --seconds 1
	$(BIN)/python bench/plots.py

# The wire types, from the schema of the pinned codex binary.
generate: $(VENV)/.installed-test
	$(BIN)/python scripts/update_sdk_artifacts.py generate-types

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test,lint,generate,inspect]'
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) --editable '.[browser]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
