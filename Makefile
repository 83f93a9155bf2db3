PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint types bench clean

help: ## Show what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/ready ## Search, derive, evaluate and report on rendered scenes: a few minutes
	$(BIN)/python -m mtlsearch.run experiment=demo

test: .venv/ready ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: .venv/ready ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready ## Check types
	$(BIN)/mypy

bench: .venv/ready ## Run every benchmark and write benchmarks/README.md: many hours
	$(BIN)/python benchmarks/run_all.py

clean: ## Remove the virtual environment
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
