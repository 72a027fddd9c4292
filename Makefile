# Everything runs in .venv, which is made on first use. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LMMS := .venv-lmms
INSTALLED := $(VENV)/.installed
RUNNABLE := $(VENV)/.runnable
LOG := $(VENV)/install.log
# As many processes as there are cores, four at most; each holds models of its own.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')
PARALLEL = -n $(WORKERS) --dist worksteal

.PHONY: help demo test check format lmms

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(or $(wildcard $(INSTALLED)),$(RUNNABLE)) ## ask the bundled pair three questions about a page, timed against its large model alone
	@$(BIN)/sgl demo

test: $(INSTALLED) ## run the tests
	@$(BIN)/python -m pytest $(PARALLEL)

check: $(INSTALLED) ## what CI runs: lint, format, types, tests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(PARALLEL)

format: $(INSTALLED) ## format the code and apply safe fixes
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

# An environment of its own: lmms-eval brings about a hundred packages. Its torchvision may be of another build
# than the torch that is there, and then transformers cannot be imported; nothing here needs it.
lmms: $(LMMS)/.installed ## make .venv-lmms, with lmms-eval and the plug-in, and run their tests
	@$(LMMS)/bin/python -m pytest tests/lmms

$(LMMS)/.installed: pyproject.toml constraints.txt
	@test -x $(LMMS)/bin/python || { echo "Making $(LMMS)"; $(PYTHON) -m venv $(LMMS); }
	@echo "Installing lmms-eval into $(LMMS): several minutes the first time (log: $(LMMS)/install.log)"
	@$(LMMS)/bin/python -m pip install --progress-bar off -c constraints.txt -e '.[lmms,test]' \
	    > $(LMMS)/install.log 2>&1 || { tail -n 20 $(LMMS)/install.log >&2; exit 1; }
	@$(LMMS)/bin/python -c 'import torchvision' 2>/dev/null \
	    || $(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

# What runs, and what tests need beside it, which is three times as much. Both are installed again only when
# the dependencies change. pip's full output goes to the log; what is large, and therefore slow, is shown as it
# is fetched.
$(RUNNABLE): pyproject.toml constraints.txt
	$(call install,.[evaluation$(,)server$(,)playground])

$(INSTALLED): pyproject.toml constraints.txt
	$(call install,.[dev])

, := ,
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the dependencies into $(VENV): a minute or two the first time (log: $(LOG))"
	@set -o pipefail; $(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '$(1)' 2>&1 \
	    | tee $(LOG) \
	    | awk '/Downloading .*[0-9][0-9](\.[0-9])? MB\)|^Processing .*\/torch-/ \
	               { n = split($$2, part, "/"); print "  fetching " part[n]; fflush() } \
	           /^Installing collected/ { print "  unpacking " NF - 3 " package(s)"; fflush() }' \
	    || { tail -n 20 $(LOG) >&2; echo "The installation failed; the whole log is $(LOG)" >&2; exit 1; }
	@touch $@
endef
