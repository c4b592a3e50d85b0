# Everything a newcomer needs: `make demo` and `make test` set themselves up (python 3.11 and pip are enough).
PYTHON ?= python3
BIN := .venv/bin
PYTEST_WORKERS ?= 2
SOURCES := infra pipelines training tuning benchmarks tests docs

CLUSTER ?= oacir-data

.PHONY: cluster cluster-stop demo test check lint types layers docs long mutations bench drills clean help

help:  ## this list
	@grep -hE '^[.a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv: .venv/complete  ## the environment, made once and again when its definition changes

# The folder alone proves nothing: a failed or interrupted pip leaves it behind. The stamp in it is written last.
.venv/complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv  ## the whole way on a procedural world: photos → benchmark → features → training → evaluation → report
	$(BIN)/oacir demo

cluster: .venv  ## S3, MLflow, a Ray head and two nodes as plain processes of this machine, until Ctrl-C; says how to use them
	$(BIN)/oacir site start --root $(CLUSTER)

cluster-stop: .venv  ## ends them, also where the start was killed
	$(BIN)/oacir site stop --root $(CLUSTER)

# A file's tests stay in one process, which makes what they share once; the files with the longest tests come first.
test: .venv  ## all tests but the long ones
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder

long: .venv  ## the tests that take minutes: further drills, compiled layers, workers killed while they stream photos
	$(BIN)/pytest -m long

check: lint types layers docs test  ## what CI runs: ruff, mypy strict, layers, documentation, tests

lint: .venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: .venv
	$(BIN)/mypy

layers: .venv
	$(BIN)/lint-imports --no-logo

# Every warning is an error: a link to nothing, a page that no list names, a command that no page has.
docs: .venv  ## the documentation's site, build/site/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site -d build/site-cache . build/site

mutations: .venv  ## plants known mistakes one at a time and names the test that catches each
	$(BIN)/python tests/mutations.py

bench: .venv  ## speed and memory, results into benchmarks/results/
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.volume

drills: .venv  ## kill -9, lost nodes, hanging photos, failing storage at seeded random moments, results into benchmarks/results/
	$(BIN)/pytest -m drill tests/e2e
	$(BIN)/python tests/e2e/drill_build.py --trials 10 --seed 0 --instances 16 --json benchmarks/results/drill_build.json
	$(BIN)/python tests/e2e/drill_build.py --update --trials 10 --seed 0 --json benchmarks/results/drill_build_update.json
	$(BIN)/python tests/e2e/drill_worker.py --trials 10 --seed 0 --json benchmarks/results/drill_worker.json
	$(BIN)/python tests/e2e/drill_node.py --trials 10 --seed 0 --json benchmarks/results/drill_node.json
	$(BIN)/python tests/e2e/drill_hang.py --trials 10 --seed 0 --json benchmarks/results/drill_hang.json
	$(BIN)/python tests/e2e/drill_train.py --kills 10 --seed 0 --out benchmarks/results
	$(BIN)/python tests/e2e/drill_training.py --moments 10 --seed 0 --json benchmarks/results/drill_training.json
	$(BIN)/python tests/e2e/drill_storage.py --trials 1 --moments 10 --seed 0 --json benchmarks/results/drill_storage.json
	$(BIN)/python tests/e2e/drill_production.py --json benchmarks/results/drill_production.json

clean:  ## remove what the targets made (not ./oacir-data)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
