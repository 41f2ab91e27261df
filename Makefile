# ArcFlow's tasks. A machine needs Python 3.11+, make and a C++ compiler; `.venv` is made here.
#
#   make demo                        PYTHON=python3.12 make test

PYTHON ?= python3
VENV   ?= .venv
RECIPE ?= tiny
PROMPT ?= a panda
SEED   ?= 0
OUT    ?= out/demo.png
PREVIEWS ?= 6
PART   ?= all
WORKERS ?= 2
SECONDS ?= 60
COUNT   ?= 1000

export VENV
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CXX_FILES = $(shell find runtime/native examples tests/native \( -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' \
	-o -name '*.cuh' \) -not -path '*/build/*')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test pytest ctest native docs lint format sanitize fuzz soak tiny fullsize data constraints clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.base ## Generate an image with the embedded model and show it (PROMPT=..., SEED=..., OUT=...)
	@said=$$($(BIN)/python -m runtime.generate "$(PROMPT)" --seed $(SEED) --scale 8 --previews $(PREVIEWS) --out "$(OUT)") \
		&& printf '%s\n' "$$said" | tail -n 1
	@$(BIN)/python -m scripts.show "$(OUT)" --previews $(PREVIEWS)
	@echo "The image is in $(OUT)"

test: ## Lint, build the C++ library, then run every test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory native
	@$(MAKE) --no-print-directory ctest
	@$(MAKE) --no-print-directory pytest

pytest: $(VENV)/.native
	@scripts/browser.sh
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

ctest: $(VENV)/.dev
	@scripts/native.sh ctest release

lint: $(VENV)/.dev ## Check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.dev ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CXX_FILES)

native: $(VENV)/.dev ## Build the C++ library, its programs and tests into build/native, and the Python module over it
	@scripts/native.sh build release
	@$(MAKE) --no-print-directory $(VENV)/.native

docs: $(VENV)/.docs ## Build the documentation into build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

sanitize: $(VENV)/.dev ## Run the C++ tests under AddressSanitizer, UBSan and ThreadSanitizer (clang)
	@scripts/native.sh asan
	@scripts/native.sh tsan

fuzz: $(VENV)/.dev ## Fuzz every parser of foreign bytes, SECONDS each (clang)
	@scripts/native.sh fuzz $(SECONDS)

soak: $(VENV)/.dev ## Generate COUNT images under LeakSanitizer (clang)
	@scripts/native.sh soak $(COUNT)

# Each stage continues where an interrupted run stopped. State lies in .work/$(RECIPE), results in models/ and engines/.
tiny: $(VENV)/.dev data ## Train the embedded model anew: teacher, students, bundle, evaluation (by estimate 4 hours on 2 idle cores with AVX2)
	$(BIN)/python -m arcflow.teacher --recipe $(RECIPE)
	mkdir -p models/$(RECIPE) && rm -rf models/$(RECIPE)/teacher
	cp -R .work/$(RECIPE)/teacher .work/$(RECIPE)/classifier.safetensors models/$(RECIPE)/
	$(BIN)/python -m arcflow.distill --recipe $(RECIPE) --out models/$(RECIPE)/adapter
	$(BIN)/python -m arcflow.distill --recipe $(RECIPE) --student linear --out models/$(RECIPE)/linear
	$(BIN)/python -m export.build --model $(RECIPE) --precision fp16 --target cpu
	$(BIN)/python -m arcflow.evaluate --recipe $(RECIPE) --json

# Parts: flux (57 GB of disk, 22 GiB of memory), qwen (72 GB, 5 GiB), graphs (1 GB, 5 GiB); each removes what it made.
fullsize: $(VENV)/.dev ## Export and engine at true size, measured (PART=flux, qwen, graphs or all; hours, 74 GB of disk)
	$(BIN)/python benchmarks/fullsize.py --part $(PART)

data: ## Fetch the images that tiny is trained on into .data, installing nothing (MIT)
	@scripts/fetch-data.sh .data/fluent-emoji

constraints: $(VENV)/.dev ## Write constraints.txt from what is installed (after an upgrade that passes the tests)
	@scripts/freeze.sh $(BIN)/python > constraints.new && mv constraints.new constraints.txt

clean: ## Remove caches and outputs (keeps .venv, .data and .work)
	@rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find $(wildcard foundation arcflow export engines runtime tests scripts benchmarks) \
		-name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and .deps as well
	@rm -rf $(VENV) .deps

# Stamps: a second run installs nothing unless the requirements have changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ArcFlow needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "cannot make $(VENV): on Debian and Ubuntu, install the package python3-venv" >&2; exit 2; }
	@touch $@

$(VENV)/.base: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing the runtime into $(VENV) (no torch)"
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	@echo "Installing the documentation's tools into $(VENV)"
	@$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing training, export and development tools into $(VENV) (torch: a few minutes)"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The module holds a library of its own, so that the wheel is complete; it is made anew when a source has changed.
NATIVE_SOURCES = CMakeLists.txt $(wildcard cmake/*) $(shell find runtime/native engines/bundles -type f \
	-not -path '*/tests/*' -not -path '*/fuzz/*' -not -name '*.pyc')
$(VENV)/.native: $(VENV)/.dev $(NATIVE_SOURCES)
	@echo "Installing arcflow-native into $(VENV)"
	@scripts/native.sh wheel
	@touch $@
