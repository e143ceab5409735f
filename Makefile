# make install | demo | test | bench    the first that needs .venv makes it, with the versions that were tested
# make constraints                      renews those versions: run it once for each supported Python, then make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINOR := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
TESTED := constraints/python$(MINOR).txt
A_TEXT = $(shell $(BIN)/python -c 'import pydoc_data.topics as topics; print(topics.__file__)')
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --progress-bar on

.PHONY: install demo test test-slow bench constraints clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(wildcard constraints/*.txt)
	@test -f $(TESTED) || { echo "Python '$(MINOR)' has no tested versions here, $(patsubst constraints/python%.txt,%,$(wildcard constraints/*.txt)) have; \
	try make $(MAKECMDGOALS) PYTHON=/path/to/one of them" >&2; exit 2; }
	@echo "installing into $(VENV) (Python $(MINOR), about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --constraint $(TESTED) --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	@echo "installing what only the tests need (libtpu, pytest, hypothesis)"
	@$(PIP) --constraint $(TESTED) --editable '.[test]'
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

test: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest $(TESTS)

test-slow: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -m slow $(TESTS)

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

constraints:
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@build/constraints/bin/pip --disable-pip-version-check install --quiet '.[test]'
	@{ echo "# The versions that were tested on Python $(MINOR); 'make constraints PYTHON=python$(MINOR)' renews them."; \
	  build/constraints/bin/pip --disable-pip-version-check freeze --exclude tokenizer-lab --exclude setuptools; } > $(TESTED)
	@echo "wrote $(TESTED); now: make test PYTHON=$(PYTHON)"

clean:
	rm -rf $(VENV) build demo
