# Everything below works on a machine that has python3 (3.10 or newer) with venv, and git; Debian: python3-venv, git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Further ones of pip, such as --no-compile: what is imported is compiled then.
PIP_OPTIONS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS)

# Each process that a test starts would compile all modules again otherwise.
export PYTHONDONTWRITEBYTECODE :=

# Of the tests, because many of them wait for a process or a clock.
PROCESSES ?= 3
# Of the slow ones, which wait most of the time.
SLOW_PROCESSES ?= 4
# Where Harbor's models are.
HARBOR := out/harbor
COST := tests/project/test_cost_gate.py
# Where the quick tests are.
QUICK := tests/sdk tests/pool tests/batch tests/cli tests/project

.PHONY: check demo test test-slow test-security test-tools test-browser test-clients test-versions test-fleet test-bare test-containers chaos soak lint docs packages images bench generate options tools clean

# Before each commit: lint, types, layers and the quick tests; under a minute on 2 cores once mypy has its cache.
check: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m quick $(QUICK)

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
	  -m "not (slow or own_target)"

# Batches, daemons and commands as users run them, limits in time, and all programs of the documentation: under 20
# minutes on 2 cores.
test-slow: tools $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(SLOW_PROCESSES) --dist worksteal --durations 20 --durations-min 10 \
	  -m "slow and not own_target"

# What keys and projects could reach, walked on the real binary. Under 4 minutes on 2 cores.
test-security: tools $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal -m security

# The tests that need more than a newcomer installs: generator of the wire types, mypy, pyarrow, datasets, inspect_ai (some 650 MB),
# promtool, which has to be there (Debian: apt-get install prometheus), and the readers of what is exported, harbor and swebench,
# in out/formats (13 MB).
test-tools: tools $(VENV)/.installed-tools out/formats/.installed $(HARBOR)/.installed
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal -m "generate or parquet"

# The demo and the quick tests on a Debian with python3, python3-venv and make alone, as root and as a plain user, in
# containers. Needs root, podman, runc and debootstrap; what is built and downloaded is kept in ~/.cache/codex-pool.
test-bare: tools $(BIN)/python
	PYTHON=$(BIN)/python scripts/test_bare.sh

# The models of Harbor, which read what is exported; they need a Python of 3.12 or later (HARBOR_PYTHON).
$(HARBOR)/.installed: scripts/harbor_models.sh
	scripts/harbor_models.sh $(HARBOR)

# Samples in containers of their own. Needs root, podman, runc and debootstrap; the image is kept in ~/.cache/codex-pool.
# Under 4 minutes on 2 cores, without making the image.
test-containers: tools $(VENV)/.installed-test $(HARBOR)/.installed
	scripts/test_containers.sh $(BIN)/python -m pytest --durations 5 -m containers tests/containers

# Other versions of codex than the pinned one, which are fetched into ~/.cache/codex-pool (300 MB each): turns, guarded
# batches and failover on each, and what `update_sdk_artifacts.py upgrade` makes of them. VERSIONS="0.147.0 0.175.0" names
# others. Under 4 minutes on 2 cores.
test-versions: tools $(VENV)/.installed-tools
	$(if $(VERSIONS),VERSIONS="$(VERSIONS)") $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 5 \
	  -m versions tests/versions

# Clicks in a headless Chromium, which has to be there (Debian: apt-get install chromium); CHROMIUM names another one.
test-browser: tools $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser tests/batch/test_report_browser.py tests/batch/test_view_browser.py

# Clients of codex, unmodified, from their packages: the TUI in a terminal, the published SDK, codex-acp, JavaScript; on one
# app-server, and on a pool whose processes are killed meanwhile. Under 10 minutes on 2 cores. Installs what is missing of
# tmux, node and npm by apt, and 450 MB of npm packages into out/clients. CODEX_NEWEST=1: the newest TUI.
test-clients: tools $(VENV)/.installed-test
	tests/clients/packages/install.sh out/clients
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal --durations 5 -m clients tests/clients

# Many machines: shards of a dataset, one of them killed, against one run; what `recipe` prints, submitted to a cluster of
# Slurm with one node, and checked by the schemas of Kubernetes; hosts that die, on Ray too. Under 8 minutes on 2 cores.
# Needs root, and what has to be there (Debian: apt-get install slurmctld slurmd slurm-client munge).
test-fleet: tools $(VENV)/.installed-fleet
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 5 -m fleet tests/fleet

# Every process hurt in every way: all cells of the table, and short runs of what a night is like. Bounded.
chaos: tools $(VENV)/.installed-test
	PYTHONPATH=tests:tests/harness $(BIN)/python -m chaos
	$(BIN)/python bench/neighbour.py --quick --floods ids,dense,methods,waiting,silent,parts,noise
	$(BIN)/python bench/neighbour.py --quick --through ws --floods pings,empty,fragments,waiting
	PYTHONPATH=tests:tests/harness $(BIN)/python -m chaos.soak --quick

# A daemon for 10,000 turns of mixed clients, across all that an operator does and all that dies: no turn fails, memory and
# descriptors stay flat, metrics add up. Under 20 minutes on 2 cores.
soak: tools $(VENV)/.installed-test
	PYTHONPATH=tests:tests/harness $(BIN)/python -m chaos.soak

lint: tools $(VENV)/.installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/generate_sync.py --check

# The documentation as a site, in out/site; a dead link fails.
docs: tools $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pictures of README: a batch on a terminal, and its report in a headless Chromium.
images: tools $(VENV)/.installed-browser
	$(BIN)/python scripts/draw_images.py

# Everything that is measured, under 15 minutes; reports in out/bench, plots in docs/images.
bench: tools $(VENV)/.installed-bench
	$(BIN)/python bench/sdk.py --rounds 3
	$(BIN)/python bench/paced.py --rounds 3
	$(BIN)/python bench/side_by_side.py --rounds 3
	$(BIN)/python bench/notifications.py --rounds 3
	$(BIN)/python bench/roundtrip.py --rounds 3
	$(BIN)/python bench/ingress.py --rounds 3
	$(BIN)/python bench/gateway.py --rounds 3
	$(BIN)/python bench/throughput.py --turns 200 --rounds 5
	$(BIN)/python bench/cpu.py --turns 1000
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/idle.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/long_history.py --rounds 3
	$(BIN)/python bench/lean.py --turns 60 --rounds 3
	$(BIN)/python bench/batch.py
	$(BIN)/python bench/scaling.py --seconds 1
	$(BIN)/python bench/plots.py

# The wire types, from the schema of the pinned codex binary; the synchronous twins of the asyncio modules.
generate: tools $(VENV)/.installed-tools
	$(BIN)/python scripts/update_sdk_artifacts.py generate-types
	$(BIN)/python scripts/generate_sync.py

# What is made of the options of a pool: the keywords of Pool, and docs/reference/pool-options.md.
options: tools $(VENV)/.installed
	$(BIN)/python scripts/pool_options.py

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
	$(PIP) --editable '.[test,parquet,hf,lint,generate,inspect]'
	@touch $@

# Only what reads files is used of them: neither all else that they need, nor the Python that harbor runs tasks with.
out/formats/.installed: $(VENV)/.installed-tools constraints.txt
	rm -rf out/formats
	$(PIP) --no-deps --ignore-requires-python --target out/formats harbor swebench python-dotenv tqdm
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) --editable '.[browser]'
	@touch $@

$(VENV)/.installed-fleet: $(VENV)/.installed-test
	$(PIP) --editable '.[fleet]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

# What all targets need, at once: each of them would look through all that is installed before it.
packages: tools $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $(addprefix $(VENV)/.installed,'' -test -lint -tools -browser -fleet -docs -bench)

$(VENV)/.installed-bench: tools $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
