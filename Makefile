# A thin index of what there is: `make` alone lists the targets. The real interface is
# `ansible-playbook -i inventories/NAME ansible/site.yml`, from the root, by .venv/bin.
.DEFAULT_GOAL := help
.SILENT:
export PYTHONUNBUFFERED := 1

PYTHON ?= python3
INVENTORY ?= lab
FREEHOLD := .venv/bin/python -m freehold

.PHONY: help
help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## make the controller's environment (.venv) unless it is there
	$(PYTHON) freehold/environment.py

.PHONY: requirements
requirements: venv ## pin requirements.in anew into requirements.txt
	CUSTOM_COMPILE_COMMAND="make requirements" .venv/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe \
	  --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links requirements.in

.PHONY: test
test: venv ## run every test
	$(FREEHOLD) test

.PHONY: test-lint
test-lint: venv ## what needs no host: linters, types, specs, inventories, documents
	$(FREEHOLD) test lint
