# Each target only calls the project's own commands, so that all of it works without make too.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.set-up

.PHONY: setup demo up test check faults fidelity bench format clean

setup: $(STAMP)

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt \
		--editable ./client --editable '.[api,worker,embedded,dev]'
	touch $@

demo: setup
	$(BIN)/python demo/run.py

up: setup
	@exec $(BIN)/darkroom up

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/client_api.py
	$(BIN)/mypy bench
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint infra/docker/api.Dockerfile infra/docker/worker.Dockerfile

# Measures how far pictures are from the pipelines' own, and writes the table in docs/fidelity.md.
fidelity: setup
	$(BIN)/pytest tests/integration/test_pipelines.py --write-docs

# The fault suite at full size, for about 40 minutes; writes bench/results/faults.json and the table in
# docs/reliability.md.
faults: setup
	$(BIN)/python -m tests.faults.run --write-docs

# The benchmarks, for about an hour; writes bench/results and the figures in docs/performance.md.
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench --write-docs

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .darkroom demo/out build dist
