# One name per chore. `make demo` and `make test` set up everything they need in .venv.
# A smaller CPU-only torch: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
DATASET ?= samples/lantern
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test e2e faults gpu deploy check bench format clean

demo: $(VENV)/.core
	$(BIN)/reconflow run $(DATASET) --out $(OUT)

# In the order of the folders: by default files of few tests come last, and those are the long ones.
test: $(VENV)/.dev node_modules/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What users, operators and callers meet: server, workers and object store as processes; docs/testing.md.
e2e: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e -m e2e -q

# Kills, cancellations and failing stores at random moments. Longer series: make faults FAULTS="--count 100 --seed 1"
faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults -m faults -q $(FAULTS)

# On a machine with a GPU: the networks, whole runs, workers; then how fast and how large a generation of full size is.
gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu -q
	$(BIN)/python -m benchmarks.generate --device cuda --voxels 12000 --steps 5

# Onto the server that PREFECT_API_URL names; options in DEPLOY, like DEPLOY="--device cpu --dry-run".
deploy: $(VENV)/.core
	$(BIN)/reconflow deploy $(DEPLOY)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) node_modules out build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev,s3]'
	touch $@

$(VENV)/.bench: $(VENV)/.core
	$(PIP) -e '.[dev,s3,bench]'
	touch $@

# The Khronos glTF validator; the tests that use it skip with a reason when npm is not at hand.
node_modules/.installed: package.json package-lock.json
	if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund; fi
	mkdir -p node_modules && touch $@
