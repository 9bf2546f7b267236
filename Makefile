# Every target makes .venv by itself if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip finds torch, for example the CPU builds: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
SCALE ?= auto
DATA ?=
PRETRAINED ?=
IMAGES ?=
RECIPES := $(patsubst projects/%/recipe.toml,%,$(wildcard projects/*/recipe.toml))

.PHONY: help setup test test-all test-processors lint data bench gpu-check compare docs wheel serve report clean $(addprefix release-,$(RECIPES)) $(addprefix reproduce-,$(RECIPES)) $(addprefix sanity-,$(RECIPES))

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
	@echo "reproduce-NAME  run a recipe: $(RECIPES)   [SCALE=smoke|cpu|gpu|release|paper|paper-MODEL|cpu-scratch] [DATA=folder] [PRETRAINED=file]"
	@echo "release-NAME    train the readers of a recipe that can be compared with the other recipes' [WORDS=full|numbers] [IMAGES=number]"
	@echo "sanity-NAME     overfit 64 images with the recipe's recogniser"

$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or later is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# A build from another index has a local version (2.x+cpu) and needs none of the CUDA packages of the lock.
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --disable-pip-version-check -i "$(TORCH_INDEX)" torch torchvision)
	$(if $(TORCH_INDEX),grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==' requirements.lock > $(VENV)/requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(if $(TORCH_INDEX),$(VENV)/requirements.txt,requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "ready: run 'source $(VENV)/bin/activate', then 'strlab' shows where to start"

setup: $(VENV)/.ready  ## make .venv with the locked packages and install this tree into it

test: $(VENV)/.ready  ## the test suite (no GPU, two cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.ready  ## the suite with the slow tests
	$(BIN)/python -m pytest --slow -n 2 --dist loadfile

# test_runner injects errors into models: once, in `test`, is enough.
PARITY := -m pytest tests/parity --ignore tests/parity/test_runner.py --ignore tests/parity/test_derived.py -n 2 --dist loadfile -q
test-processors: $(VENV)/.ready  ## parity again as an AVX2 laptop and as a processor without vector units compute
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PARITY)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(BIN)/python $(PARITY)

lint: $(VENV)/.ready  ## ruff: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

data: $(VENV)/.ready  ## render the embedded corpus into data/synth
	$(BIN)/strlab data synth data/synth

bench: $(VENV)/.ready  ## time the data path and the models against plain references
	$(BIN)/strlab bench

gpu-check: $(VENV)/.ready  ## checks and throughput of a GPU in at most nine minutes, as one JSON file
	$(BIN)/strlab gpu-check

compare: $(VENV)/.ready  ## one table of the shipped readers on the words below DATA
	$(BIN)/strlab compare --any-data --data "$(or $(DATA),data/synth/evaluation)"

docs: $(VENV)/.ready  ## build the documentation site into site/
	$(BIN)/python -m mkdocs build --strict

wheel: $(VENV)/.ready  ## build dist/strlab-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

serve: $(VENV)/.ready  ## the web page and the HTTP API at http://127.0.0.1:8080
	$(BIN)/strlab serve

report: $(VENV)/.ready  ## write the reports of all finished runs again
	$(BIN)/strlab report outputs

$(addprefix reproduce-,$(RECIPES)): reproduce-%: $(VENV)/.ready
	$(BIN)/strlab reproduce $* --scale $(SCALE) $(if $(DATA),--data "$(DATA)") $(if $(PRETRAINED),--pretrained "$(PRETRAINED)")

$(addprefix release-,$(RECIPES)): release-%: $(VENV)/.ready
	$(BIN)/strlab reproduce $* --scale release $(if $(WORDS),--words $(WORDS)) $(if $(IMAGES),--images $(IMAGES))

$(addprefix sanity-,$(RECIPES)): sanity-%: $(VENV)/.ready
	$(BIN)/strlab sanity $*

clean:  ## remove outputs, rendered data and caches (keeps .venv)
	rm -rf outputs data/synth data/synth-* .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
