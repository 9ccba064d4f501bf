# A thin index of what there is: `make` alone lists the targets. The real interface is
# `ansible-playbook -i inventories/NAME ansible/site.yml`, from the root, by .venv/bin.
.DEFAULT_GOAL := help
.SILENT:
export PYTHONUNBUFFERED := 1
# Without compiled modules, which this would leave unwritten, each of Ansible's processes compiles its own.
unexport PYTHONDONTWRITEBYTECODE

ANSWER_KB ?= 1
ORDERS ?= 0.1
# The distribution's own where it is new enough: on pyenv's, built without profiles, a playbook took 90 s of processor in place of 70.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
INVENTORY ?= lab
HOST ?=
ROLE ?=
SERVICE ?=
LINES ?= 100
RATE ?= 500
RUN ?= check
SINCE ?= 1d
TEXT ?=
FREEHOLD := .venv/bin/python -m freehold

.PHONY: help
help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo "Each takes INVENTORY=NAME, a folder of inventories/ (default: lab)."

.PHONY: venv
venv: ## make the controller's environment (.venv) unless it is there
	$(PYTHON) freehold/environment.py

.PHONY: up
up: ## build or finish the whole system, prove it, and say how to use it
	started=$$(date +%s.%N) && $(PYTHON) freehold/environment.py && \
	  FREEHOLD_STARTED=$$started $(FREEHOLD) up --inventory $(INVENTORY)

.PHONY: prepare
prepare: venv ## have what hosts get from this machine: secrets where none are in a vault, the service's image, programs
	$(FREEHOLD) prepare --inventory $(INVENTORY)

.PHONY: preflight
preflight: venv ## say of each host whether it fits the inventory; changes nothing
	$(FREEHOLD) preflight --inventory $(INVENTORY)

.PHONY: down
down: venv ## remove this lab: hosts, network, state
	$(FREEHOLD) down --inventory $(INVENTORY)

.PHONY: clean
clean: venv ## remove this lab and the caches, unless another lab uses them
	$(FREEHOLD) clean --inventory $(INVENTORY)

.PHONY: converge
converge: venv ## bring all hosts to what the inventory says
	$(FREEHOLD) converge --inventory $(INVENTORY)

.PHONY: validate
validate: venv ## check an inventory without touching a host
	$(FREEHOLD) validate --inventory $(INVENTORY)

.PHONY: secrets
secrets: venv ## add the missing secrets; for an inventory with a vault, print new ones to put there
	$(FREEHOLD) secrets --inventory $(INVENTORY)

.PHONY: status
status: venv ## show hosts, versions and who leads what
	$(FREEHOLD) status --inventory $(INVENTORY)

.PHONY: autoscale
autoscale: venv ## have as many app hosts as the load asks for, until it is ended (Ctrl-C)
	$(FREEHOLD) autoscale --inventory $(INVENTORY)

.PHONY: logs
logs: venv ## show lines of all hosts: make logs SERVICE=orders-api SINCE=15m TEXT=timeout HOST=app1 LINES=100
	$(FREEHOLD) logs --inventory $(INVENTORY) --lines "$(LINES)" --host "$(HOST)" --since "$(SINCE)" --text "$(TEXT)" $(SERVICE)

.PHONY: history
history: venv ## show what each service ran when, and how to go back: make history SERVICE=orders-api
	$(FREEHOLD) history --inventory $(INVENTORY) $(SERVICE)

.PHONY: cost
cost: venv ## print the monthly bill of an inventory at Amazon beside the managed services': make cost RATE=500 ORDERS=0.1 ANSWER_KB=1
	$(FREEHOLD) cost --inventory $(INVENTORY) --requests "$(RATE)" --orders "$(ORDERS)" --answer-kb "$(ANSWER_KB)"

.PHONY: prices
prices: venv ## read the prices of that anew from Amazon's price list
	$(FREEHOLD) prices

.PHONY: token
token: venv ## print an access token that may place orders, valid for five minutes
	$(FREEHOLD) token --inventory $(INVENTORY)

.PHONY: orders
orders: venv ## run a command of the order service on an app host: make orders RUN="dead-letters list"
	$(FREEHOLD) orders --inventory $(INVENTORY) --host "$(HOST)" "$(RUN)"

.PHONY: ssh
ssh: venv ## log in to a host: make ssh HOST=data1
	$(FREEHOLD) ssh --inventory $(INVENTORY) $(HOST)

.PHONY: docs
docs: venv ## write the roles' READMEs from their argument specs
	$(FREEHOLD) docs

.PHONY: dashboards
dashboards: venv ## build the dashboards, and of dashboards/slo.yml its rules, alerts and the README's table
	.venv/bin/python -m dashboards

.PHONY: test
test: venv ## all four tiers
	$(FREEHOLD) test

.PHONY: test-full
test-full: venv ## all four tiers, and what takes too long to be asked of each change
	FREEHOLD_FULL=1 $(FREEHOLD) test

.PHONY: test-lint
test-lint: venv ## what needs no host: linters, types, specs, inventories, documents
	$(FREEHOLD) test lint

.PHONY: test-app
test-app: venv ## the order service beside real servers
	$(FREEHOLD) test app

.PHONY: test-roles
test-roles: venv ## Molecule: each role on hosts of its own; one with ROLE=etcd
	$(FREEHOLD) test roles --role "$(ROLE)"

.PHONY: test-system
test-system: venv ## a lab from nothing: hosts, images, orders, alerts, a second run, power cuts, a deploy
	$(FREEHOLD) test system

.PHONY: test-vm
test-vm: venv ## the edge's roles on a machine with a kernel of its own, emulated by QEMU: slow, and no part of `make test`
	$(FREEHOLD) test vm

.PHONY: requirements
requirements: venv ## pin requirements.in anew into requirements.txt
	CUSTOM_COMPILE_COMMAND="make requirements" .venv/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe \
	  --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links requirements.in
