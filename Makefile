# Every entry point of the project; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find . -path ./$(VENV) -prune -o -path ./build -prune -o -path ./tests -prune -o \
	\( -name '*.py' -o -name '*.yaml' -o -name '*.toml' \) -print)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 3600
DETECTION ?=
KEYCLOAK ?= 26.7.3

.PHONY: help venv develop run demo test lint packages fuzz keycloak benchmark benchmark-detection clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "gatewatch: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "gatewatch: cannot make $(VENV); Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.runtime: $(BIN)/python constraints.txt $(SOURCES)
	@echo "installing Gatewatch into $(VENV)"
	@$(PIP) .
	@touch $@

$(VENV)/.tools: $(BIN)/python constraints.txt pyproject.toml
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) '.[dev,people]'
	@touch $@ $(VENV)/.runtime

venv: $(VENV)/.runtime ## make the environment alone

develop: $(VENV)/.tools ## the environment with the source tree linked into it, for changing the code
	@$(PIP) --editable '.[dev,people]'

run: venv ## start the daemon in observe mode on this machine's own logs and interface
	@$(BIN)/gatewatch run --observe

demo: venv ## an attack, the answer and the kill switch, in namespaces of their own (root)
	@$(BIN)/python tests/lab/demo.py

packages:
	@sh tests/install-packages.sh

lint: $(VENV)/.tools $(VENV)/.runtime
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p gatewatch

test: packages $(VENV)/.tools $(VENV)/.runtime lint ## install what the tests need, then run them all
	@$(BIN)/pytest $(PYTEST_ARGS)

keycloak: $(VENV)/.tools $(VENV)/.runtime ## try the Keycloak hook on a real server (Java 17, Maven and unzip; fetches 147 MB)
	@test -e build/keycloak-$(KEYCLOAK)/bin/kc.sh || { mkdir -p build && cd build && mvn -q -B dependency:copy \
		-Dartifact=org.keycloak:keycloak-quarkus-dist:$(KEYCLOAK):zip -DoutputDirectory=. && \
		unzip -q keycloak-quarkus-dist-$(KEYCLOAK).zip; }
	@GATEWATCH_KEYCLOAK=$(CURDIR)/build/keycloak-$(KEYCLOAK) $(BIN)/pytest tests/test_hook_keycloak.py $(PYTEST_ARGS)

fuzz: $(VENV)/.tools $(VENV)/.runtime ## fuzz what the enforcer takes from others, for FUZZ_SECONDS (an hour)
	@$(BIN)/python tests/fuzz/fuzz_enforcer.py --seconds $(FUZZ_SECONDS)

benchmark: $(VENV)/.tools $(VENV)/.runtime ## every benchmark; each is also a command of its own
	@for each in auth_parse auth_replay detection_profile packets line_to_drop block kill_switch rest detection_memory; do \
		echo "== benchmarks/$$each.py"; $(BIN)/python benchmarks/$$each.py || exit 1; done

benchmark-detection: $(VENV)/.tools $(VENV)/.runtime ## attacks caught and people accused, beside fail2ban and CrowdSec; DETECTION="..."
	@$(BIN)/python benchmarks/detection/run.py $(DETECTION)

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info
