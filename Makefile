# One page of commands; the work is done by the Python modules that they name.
# `make help` lists them. Everything here can be run twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
STACK ?= dev
PYTEST_ARGS ?=
ARGS ?=

run := .venv/bin/python
# The engine, the plugins and the state's place, for the Pulumi commands below.
# By a variable: a program that fails within eval's own argument ends nothing.
env := settings="$$($(run) -m tools env)"; eval "$$settings";

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: .bootstrap ## tools, three lab hosts, `pulumi up` on the stack dev
	@$(run) -m tools.up

.PHONY: test
test: .bootstrap ## every check and every test: fast, engine, lab
	@$(run) -m tools.lint
	@$(run) -m lab requirements --install --family rpm --browser
	@$(run) -m tools install
	@$(run) -m pytest $(PYTEST_ARGS)

.PHONY: resilience
resilience: .bootstrap ## long cases on a lab that stays: change, break, drift (PYTEST_ARGS="-k NAME" for one)
	@$(run) -m lab requirements --install --family rpm
	@$(run) -m tools install
	@$(run) -m pytest tests/lab/resilience/{changes,breaks,preparation,endurance,rpm}.py $(PYTEST_ARGS)

.PHONY: reference
reference: .bootstrap ## the lab's tests on Debian's own kernel under QEMU, where it is otherwise User Mode Linux
	@$(run) -m lab requirements --install
	@$(run) -m tools install
	@KUBEADM_IPVS_ACCELERATOR=qemu $(run) -m pytest tests/lab $(PYTEST_ARGS)

.PHONY: down
down: .bootstrap ## `pulumi destroy` on the stack dev, then the lab's end
	@$(run) -m tools.down

.PHONY: show
show: .bootstrap ## each kernel's virtual servers at the last proof (ARGS=--live, --watch or "--html FILE")
	@$(env) $(run) -m tools.show --stack $(STACK) $(ARGS)

.PHONY: timeline
timeline: .bootstrap ## where the time of the last `make up` or `make down` went (ARGS="--html FILE")
	@$(env) $(run) -m tools.timeline --stack $(STACK) $(ARGS)

.PHONY: check
check: .bootstrap ## what on the hosts is not as it was set up; fails if anything (STACK=dev)
	@$(env) $(run) -m tools.check --stack $(STACK)

.PHONY: preview
preview: .bootstrap ## what `pulumi up` would do (STACK=dev)
	@$(run) -m tools.preview --stack $(STACK)

.PHONY: policy
policy: .bootstrap ## the preview with the policy pack; not 0 if a mandatory rule is broken (STACK=dev)
	@$(run) -m tools.policy --stack $(STACK) $(ARGS)

.PHONY: destroy
destroy: .bootstrap ## give the hosts back as they were; the lab stays (STACK=dev)
	@$(run) -m tools install
	@$(run) -m tools stack $(STACK) --existing
	@$(env) pulumi destroy --yes --continue-on-error --stack $(STACK)

.PHONY: prune
prune: .bootstrap ## delete from the cache what no lab and no current version needs
	@$(run) -m lab prune

.PHONY: lint check-code
lint check-code: .bootstrap ## ruff, ruff format, mypy --strict, shellcheck, actionlint
	@$(run) -m tools.lint

.PHONY: fast
fast: .bootstrap ## the tests that need no engine, no network and no lab (seconds)
	@$(run) -m pytest tests/fast $(PYTEST_ARGS)

.PHONY: engine
engine: .bootstrap ## the tests with the real engine, without the lab (minutes; the first time it may be built)
	@$(run) -m tools install
	@$(run) -m pytest tests/engine $(PYTEST_ARGS)

.PHONY: docs
docs: .bootstrap ## write docs/settings.md and the editors' schema anew, from model/settings.py
	@$(run) -m tools.reference

.PHONY: format
format: .bootstrap ## write Python files as ruff formats them
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

# Anyone's uv will do: it only writes the files. The next make installs them.
uv_compile := uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --no-header

.PHONY: lock
lock: ## lock the dependencies of pyproject.toml again (needs uv; UPGRADE=--upgrade for newer ones)
	@command -v uv > /dev/null || { echo "make lock needs uv -> .venv/bin/pip install uv, and put .venv/bin on PATH" >&2; exit 1; }
	@$(uv_compile) $(UPGRADE) pyproject.toml --output-file requirements.txt
	@$(uv_compile) $(UPGRADE) pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt
	@$(uv_compile) $(UPGRADE) policy/requirements.in --output-file policy/requirements.txt

.PHONY: .bootstrap
.bootstrap:
	@$(PYTHON) tools/bootstrap.py
