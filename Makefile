# make install | demo | test | bench    the first that needs .venv makes it, with the versions that were tested
# make lint                             formatting, common mistakes and types
# make docs                             build/docs/index.html: README, docs/ and a reference, with all links checked
# make constraints                      renews those versions: run it once for each supported Python, then make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINOR := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
IS_OLD := $(shell printf '%s\n' $(OLDEST) $(MINOR) | sort -VC || echo yes)
TESTED := $(wildcard constraints/python$(MINOR).txt)
A_TEXT = $(shell $(BIN)/python -c 'import pydoc_data.topics as topics; print(topics.__file__)')
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --progress-bar on $(addprefix --constraint ,$(TESTED))

# One line where PYTHON cannot be used; make says it before a command runs, with `make -n` too.
ANOTHER = make $(MAKECMDGOALS) PYTHON=/path/to/python3
REFUSE_UNFIT_PYTHON = $(if $(MINOR),,$(error $(PYTHON) does not run; give another: $(ANOTHER)))$\
  $(if $(IS_OLD),$(error Python $(MINOR) is too old, it takes $(OLDEST) or later: $(ANOTHER)))
WARN_OF_UNTESTED = $(if $(TESTED),,$\
  $(warning warning: constraints/ has none for Python $(MINOR), so the newest that pyproject.toml allows is installed))

.PHONY: install demo test test-slow lint bench docs constraints clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(wildcard constraints/*.txt)
	$(REFUSE_UNFIT_PYTHON)$(WARN_OF_UNTESTED)
	@echo "installing into $(VENV) (Python $(MINOR), about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(REFUSE_UNFIT_PYTHON)
	@echo "installing what only tests and lint need (libtpu, pytest, mypy, Sphinx)"
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-for-docs: $(VENV)/installed
	$(REFUSE_UNFIT_PYTHON)
	@echo "installing what only the docs need (Sphinx)"
	@$(PIP) --editable '.[docs]'
	@touch $@

demo: install
	@$(BIN)/toklab ingest embedded --out demo/corpus
	@$(BIN)/toklab fit byte --corpus demo/corpus --out demo/byte
	@$(BIN)/toklab fit subword --corpus demo/corpus --out demo/subword --vocab-size 2048
	@$(BIN)/toklab fit equal_info --corpus demo/corpus --out demo/equal_info --id-bits 8 --lm-recipe demo_compressor
	@for arm in byte subword equal_info; do \
	  $(BIN)/toklab train demo_$$arm --run-dir demo/runs/$$arm && \
	  $(BIN)/toklab eval demo/runs/$$arm && \
	  $(BIN)/toklab sample demo/runs/$$arm --prompt 'def main(' || exit $$?; \
	done
	@$(BIN)/toklab report demo/runs/byte demo/runs/subword demo/runs/equal_info --out demo/report
	@echo "toklab is $(BIN)/toklab; source $(BIN)/activate puts it on your PATH"

test: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest $(TESTS)

test-slow: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(VENV)/installed-for-tests
	@$(BIN)/ruff format --check --quiet . || { echo "run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

bench: $(VENV)/installed-for-tests demo
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/encode.py demo/byte demo/subword demo/equal_info --corpus-file $(A_TEXT)
	$(BIN)/python benchmarks/equal_info.py
	$(BIN)/python benchmarks/sample_replacements.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/loss_memory.py
	$(BIN)/python benchmarks/pipeline.py demo/byte demo/subword demo/equal_info --corpus demo/corpus --run demo/runs/byte
	$(BIN)/python benchmarks/trainer.py --text $(A_TEXT)
	$(BIN)/python benchmarks/scaling.py

# Sphinx sees the checkout without what was built in it: its pages, and the rest by links, as pages lead to code too.
docs: $(VENV)/installed-for-docs
	@rm -rf build/docs build/docs-source && mkdir -p build/docs-source
	@cp -R $(wildcard *.md) docs build/docs-source
	@ln -s $(addprefix $(CURDIR)/,$(filter-out build demo runs docs %.md,$(wildcard *))) build/docs-source
	@$(BIN)/sphinx-build --quiet --fail-on-warning --conf-dir docs \
	  --doctree-dir build/docs-source/.doctrees build/docs-source build/docs
	@echo build/docs/index.html

constraints: TESTED := constraints/python$(MINOR).txt
constraints:
	$(REFUSE_UNFIT_PYTHON)
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@build/constraints/bin/pip --disable-pip-version-check install --quiet '.[test]'
	@{ echo "# The versions that were tested on Python $(MINOR); 'make constraints PYTHON=python$(MINOR)' renews them."; \
	  build/constraints/bin/pip --disable-pip-version-check freeze --exclude tokenizer-lab --exclude setuptools; \
	  } > $(TESTED)
	@echo "wrote $(TESTED); now: make test PYTHON=$(PYTHON)"

clean:
	rm -rf $(VENV) build demo
