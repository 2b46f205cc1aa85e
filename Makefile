# A new machine needs Python >= 3.11, pip and make. Everything else is fetched here, by hash.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CONFIG ?= gateway.yaml
PORT ?= 4000
PROVIDER_PORT ?= 4010
CODE := gateway policy train demo migrations tests bench

# LiteLLM would fetch prices from the network when imported, and read a stray .env file.
export LITELLM_LOCAL_MODEL_COST_MAP := True
export LITELLM_MODE := PRODUCTION

.DEFAULT_GOAL := help
.PHONY: help setup demo provider serve test faults clients clients-local soak soak-loop soak-overload fuzz audit check reference format bench lock clean

help: ## Show this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-13s  %s\n", $$1, $$2 }'

setup: $(VENV)/.dev-installed ## Install everything into .venv (40 s, 1.6 GB)

demo: $(VENV)/.run-installed ## The whole story within seven minutes: sessions, training, sessions again
	@$(PY) -m demo.play

provider: $(VENV)/.run-installed ## Serve the simulated provider of gateway.yaml (PROVIDER_PORT=4010)
	@exec $(BIN)/seqroute demo-provider --port $(PROVIDER_PORT)

serve: $(VENV)/.run-installed ## Serve the gateway (CONFIG=gateway.yaml PORT=4000)
	@exec $(BIN)/seqroute serve --config $(CONFIG) --port $(PORT)

# Files go to workers: what a file's tests share, they share in one process. Three on two cores, since tests wait for a
# retry or a timeout for more than half of their time. What failed runs once more, alone: a machine that stands still for
# seconds breaks limits of time that the tests rightly keep. Both runs are printed.
WORKERS ?= 3
TEST = $(PY) -m pytest -m "not faults"
test: setup ## Run the tests, on a real Postgres too (ARGS="tests/gateway -k name" for some)
	@$(TEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS) || { [ $$? = 1 ] && \
	  printf '\n== failed once; again, alone: what fails twice fails ==\n' && \
	  $(TEST) --last-failed --last-failed-no-failures none $(ARGS); }

faults: setup ## Run the tests that kill and cut off real processes (minutes)
	@$(PY) -m pytest -m faults $(ARGS)

clients: setup ## Run real SDKs, frameworks and coding agents at a gateway (AGENTS="codex ai-sdk")
	@$(PY) -m tests.clients.run $(AGENTS) $(ARGS)

clients-local: setup ## The same at a small model on this machine (AGENTS="openai-python-3")
	@$(PY) -m tests.clients.local $(AGENTS) $(ARGS)

SEED ?= 1
SIZE ?= 1
soak: setup ## Run kills, crashes and seeds for longer (SEED=1 SIZE=1, or PARTS, SEEDS)
	@$(PY) -m tests.harness.soak --seed $(SEED) --size $(SIZE) $(if $(PARTS),--parts $(PARTS)) \
	  $(if $(SEEDS),--seeds $(SEEDS))

soak-loop: setup ## Simulate a month of learning against known truth (SEED=1 SIZE=1)
	@$(PY) -m tests.harness.soak_loop --seed $(SEED) --size $(SIZE)

soak-overload: setup ## Offer more than can be served, beside LiteLLM Proxy (ARGS="--new")
	@$(PY) -m bench.overload $(ARGS)

fuzz: setup ## Fuzz every route of the OpenAPI description (SEED=1 SIZE=1)
	@$(PY) -m tests.harness.schema_fuzz --seed $(SEED) --size $(SIZE) $(ARGS)

audit: setup ## Name known vulnerabilities of what runs
	@$(BIN)/uv venv --quiet --allow-existing --python $(PY) build/audit
	@$(BIN)/uv pip install --quiet --python build/audit/bin/python --require-hashes -r requirements/audit.lock
	@build/audit/bin/pip-audit --progress-spinner off --disable-pip --require-hashes -r requirements/run.lock

check: setup ## Check lint, format, types, import contracts and docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(PY) -m pytest -q tests/test_house.py tests/test_docs.py tests/test_tidy.py

reference: setup ## Write the tables of docs/ that are generated from the code
	@$(PY) -m tests.harness.reference

format: setup ## Format the code and apply fixes of ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# What builds environments or gigabytes, or needs a quiet machine for long, runs only when named.
BENCHES = decision dialects ledger startup memory
bench: setup ## Measure and print tables (BENCH=name; bench/README.md lists them)
	@for name in $(or $(BENCH),$(BENCHES)); do \
	  printf '\n== %s ==\n' "$$name"; $(PY) -m bench.$$name $(ARGS); done

lock: setup ## Resolve the dependencies into requirements/*.lock, with hashes, and the SBOM
	@$(UV_COMPILE) --group setup -o requirements/setup.lock
	@$(UV_COMPILE) pyproject.toml --extra train -o requirements/run.lock
	@$(UV_COMPILE) pyproject.toml -c requirements/run.lock -o requirements/serve.lock
	@$(PY) -m tests.harness.sbom
	@$(UV_COMPILE) pyproject.toml --extra train --group dev -c requirements/run.lock -o requirements/dev.lock
	@$(UV_COMPILE) --group peers -o requirements/peers.lock
	@$(UV_COMPILE) --group audit -o requirements/audit.lock
	@for wanted in tests/clients/environments/*/requirements.in; do \
	  case "$$wanted" in */local-model/*) alone=--no-deps;; *) alone=;; esac; \
	  $(UV_COMPILE) $$alone "$$wanted" -o "$${wanted%.in}.lock"; done

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

clean: ## Remove .venv and every cache; databases and policies stay
	rm -rf $(VENV) .clients build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Each stamp is newer than what it was made from, so nothing happens twice.
# The byte code is compiled once here: some machines forbid it at run time, where LiteLLM then takes 20 s to import.
UV_INSTALL = $(BIN)/uv pip install --python $(PY) --compile-bytecode --require-hashes

$(VENV)/.tools-installed: requirements/setup.lock
	@python=""; for name in "$${PYTHON:-python3}" python3.11 python3.12 python3.13; do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "make setup: expected Python >= 3.11 on PATH (or PYTHON=/path/to/it), got $$(python3 --version 2>&1 || true)" >&2; exit 2; fi; \
	"$$python" -m venv $(VENV) || { echo "make setup: expected a Python with venv and pip (Debian: apt install python3-venv)" >&2; exit 2; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(VENV)/.run-installed: requirements/run.lock pyproject.toml $(VENV)/.tools-installed
	@echo "installing what seqroute runs on ..."
	@$(UV_INSTALL) --quiet -r $<
	@$(BIN)/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-installed: requirements/dev.lock $(VENV)/.run-installed
	@echo "installing the tools for tests and checks ..."
	@$(UV_INSTALL) --quiet -r $<
	@touch $@
