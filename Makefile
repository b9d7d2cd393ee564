# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= m3-tiny
BIN := $(VENV)/bin
WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-quick lint types layers unit servers clean

demo: $(VENV)/.ready          ## search this Python's own documentation with all three representations
	$(BIN)/python -m m3_connectors.demo --model "$(MODEL)"

test: lint types layers unit  ## everything that CI runs

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

layers: $(VENV)/.ready
	$(BIN)/lint-imports

unit: $(VENV)/.ready          ## servers share the processors and some of their tests watch the clock: one at a time
	$(BIN)/pytest $(WORKERS) -m "not live"
	$(BIN)/pytest -m live

test-quick: $(VENV)/.ready    ## what needs no server: the tests of Milvus, Elasticsearch and faults are left out
	$(BIN)/pytest $(WORKERS) -m "not live"

servers: $(VENV)/.ready       ## start what this machine can start, print the URLs, until Ctrl-C
	$(BIN)/python -m m3_connectors.testing.servers --compose docker/compose.yaml

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-data
