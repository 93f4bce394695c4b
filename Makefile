# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv and install by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu lint testbed testbed-leaderboard bench dionysus clean

demo: $(STAMP)
	$(BIN)/prunebench run --strategy topo --model testbed --sparsity 0.5 --controls --out runs/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Trains the shipped model from nothing (resumable) and puts it in place.
testbed: $(STAMP)
	$(BIN)/python -m prunebench_models.testbed.train --out runs/testbed-training
	install -m 644 runs/testbed-training/model/* runs/testbed-training/training_log.jsonl \
		plugins/prunebench_models/testbed/weights/

# Makes the committed tables of the shipped model anew; finished cells are kept.
testbed-leaderboard: $(STAMP)
	$(BIN)/prunebench run --strategy topo --model testbed --controls --out leaderboards/testbed \
		--sparsity 0.125 --sparsity 0.25 --sparsity 0.375 --sparsity 0.5 --sparsity 0.625 --sparsity 0.75 > /dev/null
	$(BIN)/prunebench leaderboard leaderboards/testbed --title "Testbed" \
		--out leaderboards/testbed.md --plot leaderboards/testbed.png
	$(BIN)/python benchmarks/testbed_layers.py --out leaderboards/testbed-layers

bench: $(STAMP)
	$(BIN)/python benchmarks/zigzag.py

# The user-named zigzag library: an optional engine and the tests' oracle. Builds from source (some minutes).
dionysus: $(STAMP)
	$(BIN)/python -m pip install "boost-headers>=1.85"
	CPATH="$$($(BIN)/python -c 'import boost_headers as b; print(b.__path__[0])')/include" \
		$(BIN)/python -m pip install --config-settings=cmake.define.build_examples=OFF dionysus

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
