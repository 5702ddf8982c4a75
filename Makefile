# Shortcuts for the Python modules in tools/ and lab/. `make help` lists them. All targets can be repeated.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
STACK ?= dev
N ?= 100
PYTEST_ARGS ?=
ARGS ?=

run := .venv/bin/python
# The environment for the Pulumi commands below. The variable is needed: in `eval "$(...)"` a failure of the
# inner command would go unnoticed.
env := settings="$$($(run) -m tools env)"; eval "$$settings";

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: .bootstrap ## create the lab and its cluster
	@$(run) -m tools up

.PHONY: test
test: .bootstrap ## run all checks and all tests: fast, engine, fleet, lab
	@$(run) -m tools lint
	@$(run) -m lab requirements --install --family rpm --browser
	@$(run) -m tools install
	@$(run) -m pytest $(PYTEST_ARGS)

.PHONY: resilience
resilience: .bootstrap ## run the long tests: changes, failures, drift (one: PYTEST_ARGS="-k NAME")
	@$(run) -m lab requirements --install --family rpm
	@$(run) -m tools install
	@$(run) -m pytest tests/lab/resilience/cases/*.py $(PYTEST_ARGS)

.PHONY: reference
reference: .bootstrap ## run the lab tests under QEMU with Debian's own kernel
	@$(run) -m lab requirements --install
	@$(run) -m tools install
	@KUBEADM_IPVS_ACCELERATOR=qemu $(run) -m pytest tests/lab $(PYTEST_ARGS)

.PHONY: down
down: .bootstrap ## destroy the cluster and remove the lab
	@$(run) -m tools down

.PHONY: show
show: .bootstrap ## show each host's virtual servers (ARGS: --live, --watch, --html FILE)
	@$(env) $(run) -m tools show --stack $(STACK) $(ARGS)

.PHONY: timeline
timeline: .bootstrap ## show where the time of the last up or down went (ARGS: --html FILE)
	@$(env) $(run) -m tools timeline --stack $(STACK) $(ARGS)

.PHONY: check
check: .bootstrap ## compare the hosts with how they were set up; fails if they differ (STACK=dev)
	@$(env) $(run) -m tools check --stack $(STACK)

.PHONY: preview
preview: .bootstrap ## show what `pulumi up` would change (STACK=dev)
	@$(run) -m tools preview --stack $(STACK)

.PHONY: policy
policy: .bootstrap ## preview with the policy pack; fails if a mandatory rule is broken (STACK=dev)
	@$(run) -m tools policy --stack $(STACK) $(ARGS)

.PHONY: destroy
destroy: .bootstrap ## destroy the cluster and restore its hosts; the lab stays (STACK=dev)
	@$(run) -m tools install
	@$(run) -m tools stack $(STACK) --existing
	@$(env) pulumi destroy --yes --continue-on-error --stack $(STACK)

.PHONY: prune
prune: .bootstrap ## delete unused files from the cache
	@$(run) -m lab prune

.PHONY: lint
lint: .bootstrap ## run ruff, mypy, shellcheck, actionlint, go vet
	@$(run) -m tools lint

.PHONY: check-code
check-code: lint

.PHONY: fast
fast: .bootstrap ## run the tests without the engine, the network and the lab (seconds)
	@$(run) -m pytest tests/fast $(PYTEST_ARGS)

.PHONY: engine
engine: .bootstrap ## run the tests with the real engine (minutes; more if it has to be built)
	@$(run) -m tools install
	@$(run) -m pytest tests/engine $(PYTEST_ARGS)

.PHONY: fleet
fleet: .bootstrap ## measure the program with N simulated hosts (N=100; docs/fleet.md)
	@$(run) -m tools install
	@$(run) -m tests.fleet --hosts $(N) $(ARGS)

.PHONY: docs
docs: .bootstrap ## regenerate docs/settings.md and docs/stack.schema.json
	@$(run) -m tools docs

.PHONY: format
format: .bootstrap ## fix and format the Python files with ruff
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

# uv only writes the lock files. The next make installs the packages.
uv_compile := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --no-header

.PHONY: lock
lock: ## lock the dependencies again (needs uv; UPGRADE=--upgrade for newer versions)
	@command -v uv > /dev/null || { echo "uv is missing -> run .venv/bin/pip install uv and put .venv/bin on PATH" >&2; exit 1; }
	@$(uv_compile) $(UPGRADE) pyproject.toml --output-file requirements.txt
	@$(uv_compile) $(UPGRADE) pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt
	@$(uv_compile) $(UPGRADE) policy/requirements.in --output-file policy/requirements.txt

.PHONY: .bootstrap
.bootstrap:
	@$(PYTHON) tools/bootstrap.py
